"""The results as tables on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

Result = dict[str, Any]


def show(result: Result, console: Console) -> None:
    """Prints all that was measured."""

    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    machine, peak, parts = result["machine"], result["peak"], result["parts"]
    line(
        f"{machine['processor']}, {machine['usable_cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"{result['platform']}, {machine['date'][:10]}; medians of {result['rounds']} alternating rounds"
    )
    if machine["vector_bits"]:
        line(f"vectors of {machine['vector_bits']} bits")
    line(f"{machine['busy']:.0%} of the cores in use by other programs at the start")
    line(f"our recurrence: {result['recurrence']}")
    if peak:
        line(f"peak: {peak['flops_per_second'] / 1e9:.0f} GFLOP/s ({peak['by']})")
    for title, found, columns in tables(parts, peak):
        if found:
            console.print(_compared(title, found, columns))
    if parts.get("layers", {}).get("points"):
        console.print(_grid(parts["layers"]["points"]))
        for name, count in parts["layers"]["ours_against"].items():
            line(f"ours is at least as fast as {name} in {count['at_least_as_fast']} of {count['points']} points")
    for missing in result["could_not_run"]:
        line(f"could not run {missing['library']} ({missing['what']}), because {missing['why']}")
    if result["interrupted"]:
        line("interrupted: these were measured before")


def tables(parts: Result, peak: Result) -> list[tuple[str, Result, tuple[str, ...]]]:
    """Title, measurements by library, and further columns of each table."""
    found: list[tuple[str, Result, tuple[str, ...]]] = []
    if epoch := parts.get("epoch"):
        floor = _seconds(peak["epoch_floor_seconds"])
        title = f"epoch: {epoch['steps']} steps of {epoch['batch_size']}; floor {floor} (matrix products at the peak)"
        found.append((title, epoch["libraries"], ("setting",)))
    inference, memory = parts.get("inference", {}), parts.get("memory")
    for name, what, columns in (("single", "single", ("p50", "p99")), ("batched", "10,000", ())):
        title = f"{what} images, uint8 to probabilities"
        found.append((title, inference.get(name, {}), (*columns, "setting")))
    if memory:
        layer = memory["layer"]
        title = f"peak memory of forward+backward, H={layer['hidden']} B={layer['batch']} T={layer['time']}"
        found.append((title, memory["libraries"], ()))
    found.append(("start of programs", parts.get("start", {}), ()))
    found += [(f"compilation of the {name}, no cache", times, ()) for name, times in parts.get("compile", {}).items()]
    return found


def _compared(title: str, found: Result, columns: tuple[str, ...]) -> Table:
    """Medians and their spread, the smallest first."""
    table = Table(title=title, title_justify="left")
    for column in ("", "median", "least", "most", "x ours", *columns):
        table.add_column(column, justify="left" if column in ("", "setting") else "right")
    show = _bytes if "memory" in title else _seconds
    base = found.get("ours", {}).get("median")
    for name, facts in sorted(found.items(), key=lambda item: item[1]["median"]):
        values = [show(facts[key]) for key in ("median", "min", "max")]
        further = [facts[key] if key == "setting" else show(facts[key]) for key in columns]
        table.add_row(name, *values, f"{facts['median'] / base:.2f}" if base else "-", *further)
    return table


def _grid(points: list[Result]) -> Table:
    names = list(dict.fromkeys(name for point in points for name in point["libraries"]))
    table = Table(title="one layer, milliseconds (ratio to ours)", title_justify="left")
    for column in ("", "", "H", "B", "T", *names):
        table.add_column(column, justify="right" if column else "left")
    for point in points:
        medians = {name: facts["median"] for name, facts in point["libraries"].items()}
        cells = [_ratio(medians, name) if name in medians else "-" for name in names]
        passes = "forward+backward" if point["backward"] else "forward"
        kind = point["cell"].upper() + ", different lengths" * point["ragged"]
        table.add_row(kind, passes, *(str(point[key]) for key in ("hidden", "batch", "time")), *cells)
    return table


def _ratio(medians: dict[str, float], name: str) -> str:
    ratio = f" ({medians[name] / medians['ours']:.2f})" if name != "ours" and "ours" in medians else ""
    return f"{1e3 * medians[name]:.3g}{ratio}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _bytes(value: float) -> str:
    return f"{value / 2**20:.3g} MiB"
