"""The results as tables on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

Result = dict[str, Any]


def show(result: Result, console: Console) -> None:
    """Prints all that was measured."""
    machine = result["machine"]
    console.print(
        f"{machine['processor']}, {machine['usable_cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"{result['platform']}, {machine['date'][:10]}; medians of {result['rounds']} alternating rounds",
        highlight=False,
    )
    console.print(f"our recurrence: {result['recurrence']}", highlight=False, markup=False)
    if peak := result.get("peak"):
        console.print(f"peak: {peak['flops_per_second'] / 1e9:.0f} GFLOP/s ({peak['by']})", highlight=False)
    for part, table in TABLES.items():
        if part in result["parts"]:
            table(result, result["parts"][part], console)
    for line in result["could_not_run"]:
        console.print(f"could not run {line['peer']} ({line['what']}), because {line['why']}", markup=False)
    if result["interrupted"]:
        console.print("interrupted: what stands here was measured before")


def _epoch(result: Result, part: Result, console: Console) -> None:
    if "peers" not in part:
        return
    title = f"epoch: {part['steps']} steps of {part['batch_size']}"
    if floor := result.get("peak", {}).get("epoch_floor_seconds"):
        title += f"; floor {_seconds(floor)} (matrix products at the peak)"
    table = _compared(part["peers"], title)
    console.print(table)


def _layers(result: Result, part: Result, console: Console) -> None:
    names = list(dict.fromkeys(name for point in part["points"] for name in point["peers"]))
    if not names:
        return
    table = Table(title="one layer, milliseconds (ratio to ours)", title_justify="left")
    for column in ("", "H", "B", "T", *names):
        table.add_column(column, justify="right" if column else "left")
    for point in part["points"]:
        medians = {name: peer["median"] for name, peer in point["peers"].items()}
        row = [
            "forward+backward" if point["backward"] else "forward",
            *(str(point[k]) for k in ("hidden", "batch", "time")),
        ]
        table.add_row(*row, *(_cell(medians, name) for name in names))
    console.print(table)
    for name, count in part.get("ours_against", {}).items():
        share = count["at_least_as_fast"] / count["points"]
        console.print(
            f"ours is at least as fast as {name} in {count['at_least_as_fast']} of {count['points']} points "
            f"({share:.0%})",
            highlight=False,
        )


def _cell(medians: dict[str, float], name: str) -> str:
    if name not in medians:
        return "-"
    ratio = f" ({medians[name] / medians['ours']:.2f})" if name != "ours" and "ours" in medians else ""
    return f"{1e3 * medians[name]:.3g}{ratio}"


def _inference(result: Result, part: Result, console: Console) -> None:
    if "single" in part:
        table = _compared(part["single"]["peers"], "single images, uint8 to probabilities", ("p50", "p99"))
        console.print(table)
    if "batched" in part:
        console.print(_compared(part["batched"]["peers"], "10,000 images, uint8 to probabilities"))


def _memory(result: Result, part: Result, console: Console) -> None:
    names = list(dict.fromkeys(name for point in part["points"] for name in point["peers"]))
    if not names:
        return
    table = Table(title="peak memory of forward+backward, MiB (seconds)", title_justify="left")
    for column in ("H", "B", "T", *names):
        table.add_column(column, justify="right")
    for point in part["points"]:
        cells = [
            f"{peer['median'] / 2**20:.3g} ({peer['seconds']:.2g})" if (peer := point["peers"].get(name)) else "-"
            for name in names
        ]
        table.add_row(*(str(point[key]) for key in ("hidden", "batch", "time")), *cells)
    console.print(table)
    for axis, fits in part.get("linear_in", {}).items():
        for peer, fit in sorted(fits.items()):
            apart = ", ".join(f"{name} {values['largest_residual_of_largest']:.1%}" for name, values in fit.items())
            console.print(f"{peer}, off a straight line in {axis}: {apart} of the largest", highlight=False)


def _compile(result: Result, part: Result, console: Console) -> None:
    for name, compared in part.items():
        console.print(_compared(compared["peers"], f"compilation of the {name}, no cache"))


def _loop(result: Result, part: Result, console: Console) -> None:
    if "peers" in part:
        console.print(_compared(part["peers"], "the epoch's loop", reference="epoch"))
    if "added_to_steps" in part:
        console.print(f"the epoch adds {part['added_to_steps']:+.1%} to its steps alone", highlight=False)


def _compared(peers: Result, title: str, further: tuple[str, ...] = (), reference: str = "ours") -> Table:
    table = Table(title=title, title_justify="left")
    columns = ("", "median", "least", "most", *further, "x " + reference, "ready in", "setting")
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "setting") else "right")
    base = peers.get(reference, {}).get("median")
    for name, peer in sorted(peers.items(), key=lambda item: item[1]["median"]):
        times = [_seconds(peer[key]) for key in ("median", "min", "max", *further)]
        ratio = f"{peer['median'] / base:.2f}" if base else "-"
        ready = f"{peer['ready_seconds']:.1f} s" if "ready_seconds" in peer else "-"
        table.add_row(name, *times, ratio, ready, peer.get("setting", ""))
    return table


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


TABLES = {
    "epoch": _epoch,
    "layers": _layers,
    "inference": _inference,
    "memory": _memory,
    "compile": _compile,
    "loop": _loop,
}
