"""How the pictures look: colours that colour-blind people tell apart, on light and on dark ground; sizes of text."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
