"""How figures look, on light and dark grounds and to colour-blind people; and how they are written to files."""

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_mnist_jax.errors import RunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1b1c1d"
"""The colour of text and axes. A page replaces it by its own text colour."""

GROUND = "#ffffff"
"""The background of figures in files."""

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#bd6c9b"
"""Okabe and Ito, "Color Universal Design" (2008), the purple a little darker. Their yellow, orange and sky blue are
left out: their contrast to white is below 3, the minimum of WCAG 2.2 for graphics (1.4.11)."""

SERIES = (BLUE, VERMILION, GREEN, PURPLE)

LINES = ("-", "--", ":", "-.")
"""Series differ in their lines too, for readers who see no colours. After four, colours repeat with other lines."""

FAINT = 0.18
"""The opacity of grids and backgrounds, which are drawn in ink and so fit any ground."""

FONT_SIZE = 10
"""Points of text; none is below 8. Figures are made as wide as they are shown."""

FURTHER_FONTS = ("Noto Sans CJK JP", "Hiragino Sans", "Yu Gothic", "Arial Unicode MS")
"""For class names with letters that matplotlib's own font lacks."""

WIDTH = 7.0
"""Inches of a figure."""

DPI = 160
"""Of PNG files: sharp on screens with two pixels a point."""

LOG_RATIO = 5
"""Values whose maximum is more than so many times their minimum are drawn on a logarithmic axis."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure of a report.

    Attributes:
      name: the name of its files without the ending: small letters and hyphens, unique in the report.
      title: a few words, for a heading.
      caption: sentences with the main numbers of the figure, for readers who do not see it too.
      figure: of matplotlib.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"


def series_style(number: int) -> dict[str, Any]:
    """Colour and line of the n-th series of a picture, from 0."""
    return {"color": SERIES[number % 4], "linestyle": LINES[(number + number // 4) % 4]}


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's settings while figures are drawn and written; the caller's settings are restored."""
    import matplotlib

    settings = {
        "axes.axisbelow": True,
        "axes.edgecolor": INK,
        "axes.facecolor": "none",
        "axes.labelcolor": INK,
        "axes.labelsize": FONT_SIZE,
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
        "image.cmap": "gray",
        "image.interpolation": "none",
        "legend.fontsize": FONT_SIZE - 1,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "savefig.facecolor": GROUND,
        "svg.fonttype": "none",
        "text.color": INK,
        "text.parse_math": False,  # a class name may contain dollar signs
        "xtick.color": INK,
        "xtick.labelsize": FONT_SIZE - 1,
        "ytick.color": INK,
        "ytick.labelsize": FONT_SIZE - 1,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name may have letters that no installed font has: boxes in a PNG, and correct in a page.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


@contextmanager
def new_figure(height: float, width: float = WIDTH) -> Iterator["Figure"]:
    """A figure of so many inches, drawn with the settings of `styled`. At the end its layout is computed, once."""
    from matplotlib.figure import Figure  # half a second

    with styled():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        layout: Any = figure.get_layout_engine()
        layout.execute(figure)
        figure.set_layout_engine(None)  # with "none", which is a placeholder, savefig would draw everything twice


def _further_fonts() -> list[str]:
    """The installed ones of `FURTHER_FONTS`: matplotlib warns of others."""
    from matplotlib import font_manager

    return [name for name in FURTHER_FONTS if name in font_manager.get_font_names()]


def shown(name: str, most: int = 18) -> str:
    """A name as it fits into a figure: printable characters, at most `most`."""
    printable = "".join(character if character.isprintable() else " " for character in name).strip()
    return printable if len(printable) <= most else printable[: most - 1] + "…"


ERRORS = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 70, 100)
"""The ticks of an axis of error rates, in percent."""

MARKED_EPOCHS = 40
"""Curves of more epochs have no markers."""


def error_axis(axes: Any, errors: Iterable[float]) -> None:
    """Makes the y axis, of error rates in percent, one of accuracies: logarithmic in the error, so that 99.0 and 99.5
    are as far apart as 98 and 99, and linear near 100. The left axis shows the accuracy, the right one the error.

    Args:
      axes: of matplotlib.
      errors: all values to be shown, in percent.
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
    """Makes the x axis an axis of whole epochs."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    if label:
        axes.set_xlabel("epoch")
    axes.grid(axis="y")


def marker(epochs: np.ndarray) -> dict[str, Any]:
    """The markers of a curve, unless they would touch."""
    return {"marker": "o", "markersize": 3.5 if len(epochs) > 1 else 6} if len(epochs) <= MARKED_EPOCHS else {}


def log_scaled(values: np.ndarray) -> bool:
    """Whether values are better shown on a logarithmic axis."""
    return bool(values.min() > 0 and values.max() / values.min() > LOG_RATIO)


def log_axis(axes: Any) -> None:
    """Makes the y axis logarithmic, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    low, high = sorted(axes.get_ylim())
    decades = np.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if decades > 3 else (1, 3) if decades > 1.2 else (1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def draw_image(axes: Any, image: np.ndarray) -> None:
    """Draws an image, uint8 or 0 to 1, [height, width] or with channels: 3 are colours, of others the mean is drawn."""
    if image.ndim == 3 and image.shape[-1] != 3:
        image = image.mean(axis=-1)
    axes.imshow(image, vmin=0, vmax=255 if image.dtype == np.uint8 or image.max() > 1 else 1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, alpha=FAINT, color=INK)


def write_pictures(pictures: Sequence[Picture], folder: Path) -> list[Path]:
    """Writes each figure as NAME.png and NAME.svg. The folder is made; other files in it stay.

    Returns:
      The files.

    Raises:
      RunError: they cannot be written.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            for kind in ("png", "svg"):
                written.append(folder / f"{picture.name}.{kind}")
                written[-1].write_bytes(file_bytes(picture.figure, kind))
    except FileExistsError as error:
        reason = f"{error.filename} is a file, expected a folder for the figures."
        raise RunError(f"{reason} Choose another --into.") from error
    except OSError as error:
        reason = f"{error.filename or folder} cannot be written to: {error.strerror or error}."
        raise RunError(f"{reason} Choose another folder with --into.") from error
    return written


def file_bytes(figure: "Figure", kind: str, *, transparent: bool = False) -> bytes:
    """The contents of a PNG or SVG file of a figure, the same at every call.

    Args:
      figure: of matplotlib.
      kind: png or svg.
      transparent: without a background.
    """
    import matplotlib

    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    stream = io.BytesIO()
    with styled():
        matplotlib.rcParams["svg.hashsalt"] = "lstm-mnist-jax"  # the ids in an SVG stay the same
        figure.savefig(stream, format=kind, dpi=DPI, transparent=transparent, metadata=metadata)
    return stream.getvalue()
