"""How figures look: colours that colour-blind people can distinguish on light and dark; text, axes, images."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1b1c1d"
"""Of text, axes and marks without a meaning of their own. A themed picture has the page's text colour in its place."""

GROUND = "#ffffff"
"""Behind pictures in files."""

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#bd6c9b"
"""Okabe and Ito, "Color Universal Design" (2008); the purple a little darker. Their yellow, orange and sky blue are not
taken: on white they have less than three times its contrast, which WCAG 2.2 asks of graphics (1.4.11)."""

SERIES = (BLUE, VERMILION, GREEN, PURPLE)

LINES = ("-", "--", ":", "-.")
"""Series differ in these too, for whoever sees no colours. Beyond four, colours come again with other lines."""

FAINT = 0.18
"""Opacity of grids and of what stands behind: of ink, so that it is right on any ground."""

FONT_SIZE = 10
"""Points of text; nothing is below 8. Figures are made as wide as they are shown, so that they stay so."""

FURTHER_FONTS = ("Noto Sans CJK JP", "Hiragino Sans", "Yu Gothic", "Arial Unicode MS")
"""For names of classes with letters that matplotlib's own font has not."""

WIDTH = 7.0
"""Inches of a picture."""


def series_style(number: int) -> dict[str, Any]:
    """Colour and line of the n-th series of a picture, from 0."""
    return {"color": SERIES[number % 4], "linestyle": LINES[(number + number // 4) % 4]}


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's settings while pictures are made and written; outside, they stay as the caller has them."""
    import matplotlib

    settings = {
        "axes.axisbelow": True,
        "axes.edgecolor": INK,
        "axes.facecolor": "none",
        "axes.grid": False,
        "axes.labelcolor": INK,
        "axes.labelsize": FONT_SIZE,
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": FONT_SIZE,
        "axes.titleweight": "bold",
        "figure.facecolor": GROUND,
        "font.family": ["DejaVu Sans", *_further_fonts()],
        "font.size": FONT_SIZE,
        "grid.alpha": FAINT,
        "grid.color": INK,
        "grid.linewidth": 0.8,
        "hatch.color": INK,
        "image.cmap": "gray",
        "image.interpolation": "none",
        "legend.fontsize": FONT_SIZE - 1,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "patch.edgecolor": INK,
        "savefig.facecolor": GROUND,
        "svg.fonttype": "none",
        "text.color": INK,
        "text.parse_math": False,  # a class may have a dollar sign in its name
        "xtick.color": INK,
        "xtick.labelsize": FONT_SIZE - 1,
        "ytick.color": INK,
        "ytick.labelsize": FONT_SIZE - 1,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name may have letters that no font here has: boxes in a PNG, and as they should be in a page.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def _further_fonts() -> list[str]:
    """Of `FURTHER_FONTS`, those that are here: matplotlib complains of others."""
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in FURTHER_FONTS if name in known]


def shown(name: str, most: int = 18) -> str:
    """A name as it fits into a picture: printable, and cut where it is long."""
    printable = "".join(character if character.isprintable() else " " for character in name).strip()
    return printable if len(printable) <= most else printable[: most - 1] + "…"


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


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a report.

    Attributes:
      name: of its files, without the ending; made of small letters and hyphens, and the only one of this name.
      title: a few words, for a heading.
      caption: sentences that say with numbers what is to be seen; they serve those who do not see it, too.
      figure: the picture.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"
