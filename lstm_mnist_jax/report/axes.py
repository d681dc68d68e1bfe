"""What several pictures draw alike: axes of accuracies near 100 %, epochs, images."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lstm_mnist_jax.report.style import FAINT, INK

ERRORS = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 70, 100)
"""Percentages where an axis of errors has its marks."""

MARKED_EPOCHS = 40
"""Up to so many epochs each one is marked on a curve."""


def error_axis(axes: Any, errors: Iterable[float]) -> None:
    """Makes the y axis, of errors in percent, one of accuracies: logarithmic in the error, so that 99.0 and 99.5 are as
    far apart as 98 and 99, but with a place for 100. Left the accuracy, right the error.

    Args:
      axes: of matplotlib.
      errors: all that are to be seen, in percent.
    """
    known = [error for error in errors if np.isfinite(error)] or [0.0, 100.0]
    low, high = min(known), max(known)
    inside = [number for number, mark in enumerate(ERRORS) if low <= mark <= high]
    below = max((number for number, mark in enumerate(ERRORS) if mark < low), default=0)
    above = min((number for number, mark in enumerate(ERRORS) if mark > high), default=len(ERRORS) - 1)
    marks = [ERRORS[number] for number in sorted({below, *inside, above})]
    limits = max(high, marks[-1]) * 1.05 + 0.002, min(low, marks[0]) - 0.01
    for side, labels, title in (
        (axes, [f"{100 - mark:g}" for mark in marks], "accuracy, %"),
        (axes.twinx(), [f"{mark:g}" for mark in marks], "error, %"),
    ):
        side.set_yscale("asinh", linear_width=0.1)
        side.set_ylim(limits)
        side.set_yticks(marks, labels)
        side.yaxis.minorticks_off()
        side.set_ylabel(title)
        side.spines["right"].set_visible(True)


def epoch_axis(axes: Any, epochs: np.ndarray, label: bool = True) -> None:
    """Makes the x axis one of whole epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    if label:
        axes.set_xlabel("epoch")
    axes.grid(axis="y")


def marker(epochs: np.ndarray) -> dict[str, Any]:
    """How points of a curve are marked; none is where they would touch."""
    return {"marker": "o", "markersize": 3.5 if len(epochs) > 1 else 6} if len(epochs) <= MARKED_EPOCHS else {}


def plain_log(axes: Any, which: str = "y") -> None:
    """Makes an axis logarithmic, with numbers as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = sorted(getattr(axes, f"get_{which}lim")())
    decades = np.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1,) if decades > 3 else (1, 3) if decades > 1.2 else (1, 2, 3, 5, 7)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def draw_image(axes: Any, image: np.ndarray) -> None:
    """Draws an image, uint8 or 0 to 1, [height, width] or with channels: three are colours, others' mean is drawn."""
    if image.ndim == 3 and image.shape[-1] != 3:
        image = image.mean(axis=-1)
    top = 255 if image.dtype == np.uint8 or image.max() > 1 else 1
    if image.ndim == 3:
        axes.imshow(image if image.dtype == np.uint8 else image / top)
    else:
        axes.imshow(image, vmin=0, vmax=top)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, alpha=FAINT, color=INK)


def settled(figure: Any) -> Any:
    """The same figure, laid out once for all: it is written several times."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure
