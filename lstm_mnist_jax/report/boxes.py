"""A picture with boxes around its digits, and the label and probability of each: as a figure, and in characters."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from lstm_mnist_jax.report.style import BLUE, FONT_SIZE, WIDTH, draw_image, shown, styled
from lstm_mnist_jax.report.terminal import percent, shades

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, LINES = 80, 40
"""A picture in characters is at most so large."""

DARKEST = 0.9
"""A character shows the quantile of its pixels at which thin strokes are still seen, and noise is not."""

ROUNDING = 1e-6
"""Characters; the ends of boxes are fractions, and their sums are not exact."""

SOLID, DASHED = tuple("┌─┐│└┘"), tuple("┌╌┐╎└┘")
PLAIN_SOLID, PLAIN_DASHED = tuple("+-+|++"), tuple("+.+:++")

SMALLEST_FONT = 8.0
"""Points of the labels of small boxes."""

TALLEST, NARROWEST, EDGE, TITLE = 9.0, 3.0, 0.1, 0.6
"""Inches of a figure: the most for the height of the picture, the least for the width, the edge, and above it."""


class Mark(NamedTuple):
    """What is drawn around a digit.

    Attributes:
      box: (top, left, height, width) as fractions of the picture's height and width.
      label: the predicted class.
      probability: from 0 to 1.
      is_doubtful: there is a warning; the box is dashed then, and the label has a question mark.
    """

    box: tuple[float, float, float, float]
    label: str
    probability: float
    is_doubtful: bool = False

    def text(self, digits: int) -> str:
        """Label and probability."""
        return f"{self.name} {percent(self.probability, digits)}"

    @property
    def name(self) -> str:
        return shown(self.label, 10) + "?" * self.is_doubtful


def draw_boxes(
    picture: Float[np.ndarray, "height width *channels"] | UInt8[np.ndarray, "height width *channels"],
    marks: Sequence[Mark],
    *,
    title: str = "",
) -> "Figure":
    """Draws a picture with boxes around its digits.

    Args:
      picture: from 0 to 1, or uint8; grey, or red, green and blue.
      marks: of each digit.
      title: a heading.

    Returns:
      The figure: `savefig` writes it, a notebook shows it.

    Examples:
      >>> figure = draw_boxes(np.ones((60, 80)), [Mark((0.2, 0.1, 0.5, 0.3), "7", 0.98)], title="a sheet")
      >>> [text.get_text() for text in figure.axes[0].texts]
      ['7 98.0%']
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    tall, wide = picture.shape[:2]
    width = min(WIDTH - 2 * EDGE, TALLEST * wide / tall)
    height = width * tall / wide
    size = max(width, NARROWEST) + 2 * EDGE, height + EDGE + TITLE
    with styled():
        figure = Figure(figsize=size)
        figure.text(EDGE / size[0], 1 - EDGE / size[1], shown(title, 70), weight="bold", va="top")
        axes = figure.add_axes((EDGE / size[0], EDGE / size[1], width / size[0], height / size[1]))
        draw_image(axes, picture)
        halo = [withStroke(linewidth=3.5, foreground="white")]
        margin = 0.008 * max(tall, wide)
        for mark in marks:
            top, left, high, broad = mark.box
            corner = left * wide - margin - 0.5, top * tall - margin - 0.5
            rectangle = Rectangle(
                corner,
                broad * wide + 2 * margin,
                high * tall + 2 * margin,
                fill=False,
                edgecolor=BLUE,
                linewidth=1.5,
                linestyle="--" if mark.is_doubtful else "-",
                path_effects=halo,
                clip_on=False,
            )
            axes.add_patch(rectangle)
            points = 72 * width * broad  # the width of the box
            font = min(FONT_SIZE, max(SMALLEST_FONT, points / 4.5))
            style = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
            text = mark.text(1 if points > 4 * font else 0)
            axes.text(*corner, text, fontsize=font, weight="bold", color=BLUE, va="bottom", bbox=style)
    return figure


def boxed_lines(
    picture: Float[np.ndarray, "height width"], marks: Sequence[Mark], *, width: int = COLUMNS, plain: bool = False
) -> list[str]:
    """A picture in characters, with boxes around its digits. Paper is blank, whether it is light or dark.

    Args:
      picture: grey, from 0 to 1.
      marks: of each digit.
      width: of the terminal, in characters.
      plain: in ASCII.

    Examples:
      >>> sheet = np.ones((20, 20))
      >>> sheet[5:15, 8:12] = 0
      >>> print("\\n".join(boxed_lines(sheet, [Mark((0.25, 0.4, 0.5, 0.2), "1", 0.98)], plain=True)))
      <BLANKLINE>
             +1 98%
             |    |
             |####|
             |####|
             |####|
             |####|
             |    |
             +----+
      <BLANKLINE>
    """
    tall, wide = picture.shape
    columns = max(1, min(COLUMNS, width, wide, round(2 * LINES * wide / tall)))
    lines = max(1, min(tall, round(columns * tall / wide / 2)))  # characters are about twice as high as wide
    levels = 1 - picture if np.median(picture) > 0.5 else picture
    cells = np.empty((lines, columns))
    across = np.arange(columns + 1) * wide // columns
    for line in range(lines):
        rows = levels[line * tall // lines : (line + 1) * tall // lines]
        for column in range(columns):
            pixels = np.sort(rows[:, across[column] : across[column + 1]], axis=None)
            cells[line, column] = pixels[int(DARKEST * (len(pixels) - 1))]
    places = [_place(mark.box, lines, columns) for mark in marks]
    paper = np.median(cells)
    inked = [cells[top : bottom + 1, left : right + 1].max() for top, bottom, left, right in places]
    most = max(max(inked, default=1.0), paper + 0.1)
    drawn = [list(shades(np.clip((row - paper) / (most - paper), 0, 1), wide=False, plain=plain)) for row in cells]
    for mark, place in zip(marks, places, strict=True):
        beside = [left for top, bottom, left, _ in places if top <= place[0] <= bottom and left > place[2]]
        _draw_box(drawn, mark, place, min(beside, default=columns), plain)
    return ["".join(line).rstrip() for line in drawn]


def _place(box: tuple[float, float, float, float], lines: int, columns: int) -> tuple[int, int, int, int]:
    """The first and last line and column of a box, around the characters of the digit."""
    top, left, height, width = box
    return (
        max(0, math.floor(top * lines + ROUNDING) - 1),
        min(lines - 1, math.ceil((top + height) * lines - ROUNDING)),
        max(0, math.floor(left * columns + ROUNDING) - 1),
        min(columns - 1, math.ceil((left + width) * columns - ROUNDING)),
    )


def _draw_box(drawn: list[list[str]], mark: Mark, place: tuple[int, int, int, int], end: int, plain: bool) -> None:
    """Draws a box, whose text may be longer than it is wide, but has to end before a column."""
    solid, dashed = (PLAIN_SOLID, PLAIN_DASHED) if plain else (SOLID, DASHED)
    top_left, level, top_right, upright, bottom_left, bottom_right = dashed if mark.is_doubtful else solid
    top, bottom, left, right = place
    inner = right - left - 1
    room = end - left - 2
    text = mark.text(0) if len(mark.text(0)) <= room else mark.name[: max(room, 1)]
    line = top_left + (text.ljust(inner, level) + top_right if len(text) <= inner else text)
    drawn[bottom][left : right + 1] = bottom_left + level * inner + bottom_right
    drawn[top][left : left + len(line)] = line
    for row in drawn[top + 1 : bottom]:
        row[left] = row[right] = upright
