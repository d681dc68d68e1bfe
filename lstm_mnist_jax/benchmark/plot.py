"""The results as a picture. Imports matplotlib, which is in the extra `bench`."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

Result = dict[str, Any]


def plot(result: Result, path: Path) -> bool:
    """Draws the epoch, the layers' ratios and the memory, as far as they were measured.

    Args:
      result: as it is written as JSON.
      path: the .png file.

    Returns:
      Whether there was anything to draw.

    Raises:
      ImportError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = result["parts"]
    drawings: list[tuple[Any, Any]] = []
    if parts.get("epoch", {}).get("peers"):
        drawings.append((_epoch, result))
    points = parts.get("layers", {}).get("points", [])
    others = {name for point in points for name in point["peers"]} - {"ours"}
    for name, backward in product(sorted(others), (False, True)):
        chosen = [p for p in points if p["backward"] == backward and {"ours", name} <= p["peers"].keys()]
        if chosen:
            drawings.append((_ratios, (chosen, name, backward)))
    measured = [point for point in parts.get("memory", {}).get("points", []) if point["peers"]]
    if measured:
        drawings.append((_memory, measured))
    if not drawings:
        return False
    columns = min(2, len(drawings))
    rows = -(-len(drawings) // columns)
    figure = Figure(figsize=(7 * columns, 4.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (draw, what) in zip(np.ravel(figure.subplots(rows, columns)), drawings, strict=False):
        draw(axes, what)
    for axes in figure.axes[len(drawings) :]:
        axes.set_axis_off()
    machine = result["machine"]
    figure.suptitle(f"{machine['processor']}, {machine['usable_cores']} cores, {machine['date'][:10]}")
    figure.savefig(path, dpi=120)
    return True


def _epoch(axes: Any, result: Result) -> None:
    peers = sorted(result["parts"]["epoch"]["peers"].items(), key=lambda item: -item[1]["median"])
    medians = np.array([peer["median"] for _, peer in peers])
    spread = [medians - [peer["min"] for _, peer in peers], [peer["max"] for _, peer in peers] - medians]
    axes.barh([name for name, _ in peers], medians, xerr=spread, capsize=3)
    if floor := result.get("peak", {}).get("epoch_floor_seconds"):
        axes.axvline(floor, color="black", linestyle=":", label="matrix products at the machine's peak")
        axes.legend(loc="upper right")
    axes.set(title="one epoch of the tutorial", xlabel="seconds: median, least and most")


def _ratios(axes: Any, what: tuple[list[Result], str, bool]) -> None:
    points, name, backward = what
    rows = sorted({point["hidden"] for point in points})
    columns = sorted({(point["time"], point["batch"]) for point in points})
    ratios = np.full((len(rows), len(columns)), np.nan)
    for point in points:
        place = rows.index(point["hidden"]), columns.index((point["time"], point["batch"]))
        ratios[place] = point["peers"][name]["median"] / point["peers"]["ours"]["median"]
    axes.imshow(np.log2(ratios), cmap="RdYlGn", vmin=-2, vmax=2, aspect="auto")
    for row, column in np.argwhere(np.isfinite(ratios)):
        axes.text(column, row, f"{ratios[row, column]:.2f}", ha="center", va="center")
    axes.set_yticks(range(len(rows)), [f"H={hidden}" for hidden in rows])
    axes.set_xticks(range(len(columns)), [f"T={time}\nB={batch}" for time, batch in columns])
    axes.set_title(f"time of {name} / ours, {'forward+backward' if backward else 'forward'} (above 1: ours is faster)")


def _memory(axes: Any, points: list[Result]) -> None:
    points = sorted(points, key=lambda point: point["time"] * point["batch"])
    for name in sorted({name for point in points for name in point["peers"]}):
        here = [point for point in points if name in point["peers"]]
        x = [point["time"] * point["batch"] for point in here]
        axes.plot(x, [point["peers"][name]["median"] / 2**20 for point in here], marker="o", label=name)
    axes.set(title=f"peak memory of forward+backward, H={points[0]['hidden']}", xlabel="T x B", ylabel="MiB")
    axes.legend()
