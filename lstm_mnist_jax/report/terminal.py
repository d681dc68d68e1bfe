"""Images, bars and curves as strings of characters."""

import math
from collections.abc import Sequence

import numpy as np

SHADES = " ░▒▓█"
PLAIN_SHADES = " .+*#"

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bits of a Braille character's dots, [row][column]."""

BLANK = chr(0x2800)
"""The Braille character without a dot."""


def shades(levels: Sequence[float] | np.ndarray, *, wide: bool = True, plain: bool = False) -> str:
    """A row of pixels.

    Args:
      levels: of the pixels, 0 to 1.
      wide: two characters for a pixel, which is about square then.
      plain: in ASCII.
    """
    scale = PLAIN_SHADES if plain else SHADES
    return "".join((2 if wide else 1) * scale[min(len(scale) - 1, int(level * len(scale)))] for level in levels)


def bar(share: float, width: int, *, plain: bool = False) -> str:
    """A proportion as a bar, in eighths of a character; in whole ones of ASCII if `plain`."""
    if plain:
        return "#" * round(share * width)
    eighths = round(share * width * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).rstrip()


def curve(values: Sequence[float], width: int = 60, height: int = 6, *, logarithmic: bool = False) -> list[str]:
    """A curve in Braille characters, with the range of its values at the left.

    Args:
      values: finite, one or more; of more than `2 * width`, means of neighbours are drawn.
      width, height: in characters.
      logarithmic: a logarithmic scale, for values above 0.
    """
    shown = np.asarray(values, float)
    shown = np.array([part.mean() for part in np.array_split(shown, min(len(shown), 2 * width))])
    ends = number(float(shown.max())), number(float(shown.min()))
    shown = np.log(shown) if logarithmic else shown
    low, high = float(shown.min()), float(shown.max())
    span = high - low or 1.0
    columns = np.round(np.linspace(0, 2 * width - 1, len(shown))).astype(int) if len(shown) > 1 else np.array([0])
    heights = np.interp(np.arange(columns[-1] + 1), columns, (shown - low) / span * (4 * height - 1))
    cells = np.zeros((height, width), int)
    previous = None
    for x, y in enumerate(4 * height - 1 - np.round(heights).astype(int)):
        start = y if previous is None else previous
        for dot in range(min(start, y), max(start, y) + 1):
            cells[dot // 4, x // 2] |= DOTS[dot % 4][x % 2]
        previous = y
    labels = [""] * height
    labels[0], labels[-1] = ends if ends[0] != ends[1] else ("", ends[1])
    wide = max(map(len, labels))
    lines = ("".join(chr(0x2800 + int(cell)) for cell in row) for row in cells)
    return [f"{label:>{wide}} ┤{line.rstrip(BLANK)}" for label, line in zip(labels, lines, strict=True)]


def number(value: float) -> str:
    """A number with about four digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"


def percent(share: float, digits: int = 2) -> str:
    """A proportion in percent; 100 % and 0 % only if it is exactly 1 or 0."""
    shown, least = f"{share:.{digits}%}", 10.0 ** -(digits + 2)
    if shown == f"{1:.{digits}%}" and share < 1:
        return f">{1 - least:.{digits}%}"
    if shown == f"{0:.{digits}%}" and share > 0:
        return f"<{least:.{digits}%}"
    return shown
