"""Chooses the digits among the pieces of ink on a picture (`lstm_mnist_jax.data.ink`), in groups of one digit each.

1. A picture of two levels that one digit fills from border to border is that digit.
2. Dark ink on light paper and light ink on dark paper are searched for in the same way; the stronger is taken.
3. Pieces of ruled lines, specks and, where there is other ink, what touches the border are left out
   (`lstm_mnist_jax.data.signs`).
4. Pieces that are near to each other are one digit. Digits are in the order of reading.
5. Other ink in a line of digits, as dark and thick as theirs, is a mark that is not read: a sign, or part of a digit.
   What looks like a sign is read as a digit, with a warning.

A report's page makes the same decisions in JavaScript (report/page/digits.js): a change here needs the same change
there.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32

from lstm_mnist_jax.data.ink import (
    LEVELS,
    SMOOTHED_SIZE,
    Component,
    in_levels,
    pieces_of,
    run_lengths,
    spans_of,
)
from lstm_mnist_jax.data.signs import (
    BESIDE,
    FLAT_LINE,
    FLAT_PIECE,
    darkness,
    gap_to_mark,
    goes_with,
    is_cross,
    is_of_dashes,
    is_of_paper,
    is_rule_of,
    is_sign,
    is_steep_line,
    is_underlined,
    lies_within,
    marks_of,
)

FILLED_MARGIN = 0.09
"""The most paper beside a digit that fills its picture, as a fraction of the width or height."""

FILLED_SIZE = 16
"""Smaller pictures are not taken for a digit that fills them."""

RECTANGULAR = 0.85
"""A sheet or a frame fills this fraction of its bounding box, with all gaps along the rows."""

TWO_LEVELS = 0.85
"""The fraction of the variance that two levels explain on a picture of two levels."""

EDGED = 0.85
"""The brightness changes along at least this fraction of the outline of ink."""

BLURRED = 0.65
"""The same of a piece as large, thick and dark as one that is ink."""

APART = 0.15
"""The most paper between two strokes of a digit, one below the other, as a fraction of its size."""

LOWER, GAP = 0.65, 0.035
"""What is beside a digit, and lower than so many times its height, is no stroke of it but a sign where so much paper is
between them, as a fraction of the digit's size. What is left of a broken stroke is mostly above or below the rest."""

COLUMN = 0.6
"""Digits whose left sides are less than so many heights apart are below each other."""

CRUMB = 0.05
"""What is left beside a ruled line is no digit below this fraction of the line's score."""

BETWEEN = 4
"""Light ink among dark lines alone, or dark among light, is what is between them below so many times their score."""

SMALLEST, SHORT_DASH = 0.4, 0.75
"""What is less than so many times as large as the main digit is none: what looks like one, and a minus or `=` beside
digits, which is no 1 on a page that is turned."""

LEAST_SIZE = 8
"""A smaller piece is no digit, in pixels, on pictures that are not smaller than `SMOOTHED_SIZE`."""


Labels = Int32[np.ndarray, "height width"]


class Ink(NamedTuple):
    """The ink of one digit.

    Attributes:
      levels: the difference from the paper where its strokes are, else 0.
      top, left: of `levels` on the picture, in pixels.
      core: where its strokes are without their soft edges.
      noise: the standard deviation of the noise of `levels`.
      cut: it touches the border of the picture.
      marks: other ink that is nearest to it and is not read, (top, bottom, left, right) in pixels of the picture.
      is_sign: it may be a sign or a line.
    """

    levels: Float64[np.ndarray, "rows columns"]
    top: int
    left: int
    core: Bool[np.ndarray, "rows columns"]
    noise: float
    cut: bool
    marks: tuple[tuple[int, int, int, int], ...] = ()
    is_sign: bool = False


def find_ink(grey: Float[np.ndarray, "height width"]) -> list[Ink]:
    """The digits on a picture, from left to right and from top to bottom; none if nothing is visible.

    Args:
      grey: from 0 to 1, of at most some 500 pixels a side.
    """
    grey = grey.astype(np.float64)
    levels, noise, left = in_levels(grey)
    darker = _darker(levels)
    for sign, kind in () if darker is None else ((1, darker), (-1, ~darker)):
        if (core := _filling(kind)) is not None:
            level = int(np.median(levels[~core]))
            return [Ink(np.maximum(0, sign * (level / LEVELS - grey)), 0, 0, core, noise, True)]
    offers = []
    for sign in (1, -1):  # dark ink, and light ink
        pieces, labels, paper, ruled = pieces_of(levels, sign, left)
        digits, lines = _chosen(pieces, labels)
        of_lines = max(ruled**3 / LEVELS**2 * min(levels.shape), *map(_score, lines), 0)
        offers.append((digits, of_lines, pieces, labels, paper, sign))
    digits, _, pieces, labels, paper, sign = offers[_is_light(*offers[0][:2], *offers[1][:2])]
    raw = np.maximum(0, paper / LEVELS - sign * grey)
    order = reading_order([(digit.top, digit.bottom, digit.left) for digit in digits])
    marks, are_signs = marks_of(pieces, digits), [is_sign(digit, digits, pieces) for digit in digits]
    return [_ink(raw, labels, digits[n], noise)._replace(marks=tuple(marks[n]), is_sign=are_signs[n]) for n in order]


def _filling(kind: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"] | None:
    """Of the pixels of one kind, the ink of a digit that fills the picture up to the border, as if cut out along it;
    None if there is none.

    The closings would take its strokes along the border for a table. A table or a rim is most of the border, or does
    not reach all sides, or has ink beside it. A sheet or a frame is rectangular.
    """
    from scipy.ndimage import label

    height, width = kind.shape
    labels, count = label(kind, np.ones((3, 3), bool))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    core = labels == areas.argmax()
    area = int(areas.max())
    if not 0.12 * kind.size <= area <= 0.6 * kind.size or area < 0.97 * areas.sum():
        return None
    for is_ink, length in ((core.any(axis=1), height), (core.any(axis=0), width)):
        if max(is_ink.argmax(), is_ink[::-1].argmax()) > FILLED_MARGIN * length:
            return None
    border = np.concatenate([core[0], core[-1], core[1:-1, 0], core[1:-1, -1]])
    if 2 * np.count_nonzero(border) > border.size:
        return None
    if int(spans_of(core.astype(np.int32), 1)[1]) > RECTANGULAR * core.any(axis=1).sum() * core.any(axis=0).sum():
        return None
    thick = np.minimum(run_lengths(core), run_lengths(core.T).T)[core].sum() / area
    return core if thick >= 0.05 * min(height, width) else None


def _darker(levels: Int32[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"] | None:
    """The darker pixels of a picture of two levels, by the level that divides them best (Otsu 1979); None of other
    pictures, of whose variance it explains too little."""
    if min(levels.shape) < FILLED_SIZE:
        return None
    least = int(levels.min())
    counts = np.bincount((levels - least).ravel())
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(counts * np.arange(len(counts)))
    total, above = int(sums[-1]), levels.size - below
    if not len(below):  # of one colour
        return None
    between = (total * below / levels.size - sums[:-1]) ** 2 / (below * above)
    best = int(between.argmax())
    mean = total / levels.size
    variance = float((counts * np.square(np.arange(len(counts)) - mean)).sum()) / levels.size
    return levels - least <= best if between[best] >= TWO_LEVELS * variance else None


def _is_light(dark: list[Component], dark_lines: float, light: list[Component], light_lines: float) -> bool:
    """Whether the ink is light on dark paper, by the digits that are found in each case, and the scores of ruled lines.

    What lies within the other is the ink: a sheet of paper on a dark table is light, but the digit is dark. What is
    between dark lines is no light ink.
    """
    if not dark:
        return sum(map(_score, light)) >= BETWEEN * dark_lines
    if not light:
        return sum(map(_score, dark)) < BETWEEN * light_lines
    whole = [_all_united(digits) for digits in (dark, light)]
    ratios = [sum(digit.thick / digit.size for digit in digits) / len(digits) for digits in (dark, light)]
    for inner, outer in ((0, 1), (1, 0)):
        one, other = whole[inner], whole[outer]
        is_sheet = ratios[outer] >= 0.26 and one.area + other.area >= 0.9 * other.span
        is_thinner = ratios[inner] < ratios[outer] and one.thick < 0.3 * other.thick  # than what is around a hole
        is_stroke = is_thinner and one.size >= 0.12 * other.size and one.edge >= 0.9
        if is_sheet and is_stroke and lies_within(one, other):
            return inner == 1
    scores = [sum(_score(digit) for digit in digits) for digits in (dark, light)]
    return scores[1] > scores[0]


def _score(piece: Component) -> float:
    """Cubed peak times size; little for a sheet or a blot, which is as thick as it is long, and for wood or a shadow,
    whose edges are less sharp than those of ink."""
    sharp = max(0.0, piece.edge - 0.8) / 0.2
    return piece.peak**3 / LEVELS**2 * max(0.1 * piece.size, piece.size - 2 * piece.thick) * sharp


def _chosen(found: list[Component], labels: Labels) -> tuple[list[Component], list[Component]]:
    """The digits among the pieces of ink, and what is of ruled lines."""
    shape = labels.shape
    edged = [piece for piece in found if piece.edge >= EDGED]  # not the paper within a stroke
    if not edged:
        return [], []
    sharpest = max(edged, key=_score)
    pieces = [piece for piece in found if piece.edge >= EDGED or _is_blurred(piece, sharpest)]
    are_lines = [is_of_paper(piece, shape, FLAT_PIECE) for piece in pieces]
    others = [piece for piece, is_line in zip(pieces, are_lines, strict=True) if not is_line]
    lines, strokes = list[Component](), list[Component]()
    for piece in (piece for piece, is_line in zip(pieces, are_lines, strict=True) if is_line):
        is_stroke = not piece.cut and any(goes_with(piece, other) for other in others)
        (strokes if is_stroke else lines).append(piece)
    pieces = others + strokes
    if not pieces:
        return [line for line in lines if len(lines) == 1 and is_steep_line(line) and not line.cut], lines
    strongest = max(pieces, key=_score)
    pieces = [piece for piece in pieces if piece.size >= 0.03 * strongest.size]
    inner = [piece for piece in pieces if not piece.cut]
    if inner and max(_score(piece) for piece in inner) >= 0.15 * max(_score(piece) for piece in pieces):
        pieces = inner + [piece for piece in pieces if piece.cut and _goes_on(piece, inner, labels)]
    main = max(pieces, key=_score)
    groups = _grouped([piece for piece in pieces if _is_as_strong(piece, main)], labels)
    lines += [group for group in groups if is_of_paper(group, shape, FLAT_LINE)]
    groups = [group for group in groups if group not in lines and not is_rule_of(group, groups)]
    if not groups:
        return [], lines
    upright = [group for group in groups if not is_of_dashes(group, found) and not is_cross(group)]
    main = max(upright or groups, key=_score)
    if lines and _score(main) < CRUMB * _score(max(lines, key=_score)):
        return [], lines
    least = LEAST_SIZE if min(shape) >= SMOOTHED_SIZE else 0
    are_marks = [
        group not in upright and any(gap_to_mark(group, other) is not None for other in upright) for group in groups
    ]
    limits = [max(least, (SHORT_DASH if is_mark else SMALLEST) * main.size) for is_mark in are_marks]
    return [group for group, limit in zip(groups, limits, strict=True) if group.size >= limit], lines


def _is_blurred(piece: Component, sharp: Component) -> bool:
    """Whether a piece is of a digit like another but for its outline, as in a shadow, where ruled lines join them."""
    if piece.edge < BLURRED or piece.cut or darkness(piece, sharp) < 0.75:
        return False
    sizes, thicks = sorted((piece.size, sharp.size)), sorted((piece.thick, sharp.thick))
    return sizes[0] >= 0.6 * sizes[1] and thicks[0] >= 0.4 * thicks[1]


def _is_as_strong(piece: Component, main: Component) -> bool:
    """Whether a piece is about as dark as the main one, or paler but about as thick: else it is of a ruled line or a
    pen."""
    dark = darkness(piece, main)
    thinner, thicker = sorted((piece.thick, main.thick))
    return dark >= 0.75 or (dark >= 0.5 and dark * thinner >= 0.3 * thicker)


def _goes_on(piece: Component, inner: list[Component], labels: Labels) -> bool:
    """Whether a piece that touches the border is a stroke of a digit that does not: as thick, nearly touching it."""
    return any(
        piece.near == other.near
        and max(piece.thick, other.thick) <= 1.5 * min(piece.thick, other.thick)
        and _belong_together(piece, other, other.size, labels)
        for other in inner
    )


def _grouped(pieces: list[Component], labels: Labels) -> list[Component]:
    """Unites the pieces of one digit, until no two belong together."""
    groups, merged = list(pieces), True
    typical = max(pieces, key=_score).size
    while merged:
        merged = False
        for first in range(len(groups)):
            for second in range(first + 1, len(groups)):
                if _belong_together(groups[first], groups[second], typical, labels):
                    groups[first] = _united(groups[first], groups.pop(second))
                    merged = True
                    break
            if merged:
                break
    return groups


def _belong_together(one: Component, other: Component, typical: int, labels: Labels) -> bool:
    """Whether two pieces, or groups of them, are of one digit, by the size of a typical digit on the picture."""
    both = _united(one, other)
    larger = max(one.size, other.size)
    across = min(one.right, other.right) - max(one.left, other.left)  # the overlap; below 0, a gap
    down = min(one.bottom, other.bottom) - max(one.top, other.top)
    heights = sorted((one.height, other.height))
    covers = across >= 0.5 * min(one.right - one.left, other.right - other.left)
    alike = max(one.thick, other.thick) <= 1.5 * min(one.thick, other.thick)
    most = APART * (typical if both.size <= 1.1 * typical else larger) if alike else 0.12 * larger
    if covers and (down >= 0.5 * heights[0] or -down <= most):
        return not is_underlined(one, other)
    is_broken = len(one.members) + len(other.members) > 3  # into crumbs, as pencil is
    is_low = heights[0] < LOWER * heights[1] and across <= 0 and not is_broken
    if is_low and _are_apart(one, other, math.ceil(GAP * max(larger, typical)), labels):
        return False
    if heights[0] < 0.5 * heights[1] and math.hypot(min(0, across), min(0, down)) <= 0.15 * larger:
        return True
    widest = 0.9 if across <= 0 else 1.1  # two digits beside each other are wider
    return one.near == other.near and both.right - both.left <= widest * both.height


def _are_apart(one: Component, other: Component, least: int, labels: Labels) -> bool:
    """Whether at least so many pixels of paper are between two pieces."""
    from scipy.ndimage import maximum_filter

    rows = slice(max(0, one.top - least), one.bottom + least)
    columns = slice(max(0, one.left - least), one.right + least)
    around = labels[rows, columns]
    grown = maximum_filter(np.isin(around, one.members), 2 * least + 1, mode="constant")
    return not grown[np.isin(around, other.members)].any()


def _all_united(digits: list[Component]) -> Component:
    whole = digits[0]
    for digit in digits[1:]:
        whole = _united(whole, digit)
    return whole


def _united(one: Component, other: Component) -> Component:
    return Component(
        one.members + other.members,
        min(one.top, other.top),
        max(one.bottom, other.bottom),
        min(one.left, other.left),
        max(one.right, other.right),
        max(one.peak, other.peak),
        (one.bright * one.area + other.bright * other.area) / (one.area + other.area),
        one.area + other.area,
        one.span + other.span,
        (one.edge * one.area + other.edge * other.area) / (one.area + other.area),
        (one.thick * one.area + other.thick * other.area) / (one.area + other.area),
        one.near,
        one.cut or other.cut,
        tuple(a + b for a, b in zip(one.sums, other.sums, strict=True)),
    )


def reading_order(boxes: Sequence[tuple[float | int, float | int, float | int]]) -> list[int]:
    """The numbers of boxes (top, bottom, left), line by line from the top, and from left to right.

    A box is in the line that ends beside it, so that a line may slope. Lines are in the order of their mean middles.
    """

    def overlap(number: int, line: list[int]) -> float:
        top, bottom, _ = boxes[number]
        others = (boxes[other] for other in line[-2:])
        return max((min(bottom, low) - max(top, high)) / min(bottom - top, low - high) for high, low, _ in others)

    def are_one(one: list[int], other: list[int]) -> bool:
        heights = [bottom - top for top, bottom, _ in (boxes[one[-1]], boxes[other[-1]])]
        apart = min(abs(boxes[number][2] - boxes[near][2]) for number in one for near in other)
        return max(heights) <= 1.5 * min(heights) and apart >= COLUMN * min(heights)

    lines: list[list[int]] = []
    for number in sorted(range(len(boxes)), key=lambda number: (boxes[number][2], boxes[number][0] + boxes[number][1])):
        beside = [line for line in lines if overlap(number, line) >= BESIDE]
        nearest = max(beside, key=partial(overlap, number), default=[])
        # Two lines beside it are one whose digits are higher and lower, unless some are below each other.
        same = [line for line in beside if line is nearest or are_one(line, nearest)]
        lines = [line for line in lines if line not in same]
        lines.append([*sorted(sum(same, list[int]()), key=lambda other: boxes[other][2]), number])
    lines.sort(key=lambda line: sum(boxes[number][0] + boxes[number][1] for number in line) / len(line))
    return [number for line in lines for number in line]


def _ink(raw: np.ndarray, labels: np.ndarray, digit: Component, noise: float) -> Ink:
    """The ink of a digit with its soft edges: of two pixels, or a twentieth of its size."""
    from scipy.ndimage import maximum_filter

    soft = max(2, digit.size // 20)
    height, width = labels.shape
    rows = slice(max(0, digit.top - soft), min(height, digit.bottom + soft))
    columns = slice(max(0, digit.left - soft), min(width, digit.right + soft))
    core = np.isin(labels[rows, columns], digit.members)
    near = maximum_filter(core.astype(np.uint8), 2 * soft + 1, mode="constant") > 0
    return Ink(raw[rows, columns] * near, rows.start, columns.start, core, noise, digit.cut)
