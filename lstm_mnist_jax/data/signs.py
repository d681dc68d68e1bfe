"""What is no digit among the pieces of ink on a picture: ruled lines, signs and marks (`lstm_mnist_jax.data.digits`).

A ruled line is thinner, straighter and longer than strokes are. A sign is known by its shape and its place beside the
digits. A mark is other ink beside them that is not read.

A report's page makes the same decisions in JavaScript (report/page/signs.js): a change here needs the same change
there.
"""

import math

from lstm_mnist_jax.data.ink import NEAR, THIN, Component

FLAT = 0.36
"""The steepest slope of a stroke that is no 1."""

FLAT_LINE, STEEP_LINE = 8.0, 26.0
"""The least length of what is thin, straight and of a ruled line, in times its width: where it lies flat, and where it
is steep;"""

FLAT_PIECE = 20.0
"""of a flat piece, which may be of a digit with other pieces;"""

FLAT_EDGE, STEEP_EDGE = 5.0, 12.0
"""and where it is cut off at the border."""

FINE_PEN = 40
"""So many times as large as its strokes are thick, a digit is of a thin pen:"""

LEAST_STROKES, MOST_STROKES = 0.5, 2.15
"""and its strokes are at least so many times as long as it is large, and at most so many times as long as its height
and width together (two ellipses, an 8: 2.1). Those of a table are longer, crumbs of lines shorter."""

DASH, FILLED = 2.0, 0.7
"""A flat stroke is no digit where it is so many times as long as it is wide and fills this fraction of the rectangle of
that length and width, nor are several: a minus, `=`."""

MIDDLE = 0.0505
"""The ink of a plus or an arrow is near its middle row, a plus's near its middle column too: the mean squared distance
is at most this fraction of its height or width, squared (of a plus, in the mean of both). Of digits it is more."""

BARS, BAR = 0.82, 0.75
"""A plus has at most this fraction of the ink of two bars of its mean thickness, as long as it is wide and high;
and the shorter is at least this fraction of the longer."""

ARROW = 1.4
"""An arrow is at least so many times as wide as it is high."""

SHADOW = 3.6
"""Paper in a shadow is at most so many times darker. What is darker is a table, as is what reaches the border."""

BESIDE = 0.4
"""A digit is in the line of one of which it overlaps this fraction of the smaller height."""

SLENDER = 4.0
"""A slash or a bracket is so many times as long as it is wide,"""

BELOW = 0.1
"""and reaches below the digits beside it by this fraction of their heights."""

SMALLER = 0.55
"""What is so many times as large as the digits beside it, or smaller, may be a sign."""

MARK = 0.06
"""A smaller piece is no mark, as a fraction of the size of a digit beside it."""

SMALL_DIGIT, FAR = 0.2, 5.0
"""What is as high as this fraction of the largest digit may be a smaller digit: a mark, too, at so many times the
distance."""


def is_of_paper(piece: Component, shape: tuple[int, ...], flat: float) -> bool:
    """Whether a piece, or pieces near to each other, are of ruled lines, of a margin or of a table: thin, and straight
    and longer than strokes are, or a lattice, or what is left of one."""
    thickest = max(2, int(min(shape) * THIN))
    if piece.size < FLAT_EDGE or piece.thick > 2 * thickest:
        return False
    long, wide, is_flat = _straightness(piece)
    if piece.thick > thickest:
        return is_flat and piece.cut and long >= FLAT_EDGE * wide
    least = (FLAT_EDGE, STEEP_EDGE) if piece.cut else (flat, STEEP_LINE)
    if long >= least[not is_flat] * wide:
        return True
    strokes = piece.area / piece.thick
    is_long = strokes > MOST_STROKES * (piece.bottom - piece.top + piece.right - piece.left)
    return piece.size >= FINE_PEN * piece.thick and (strokes < LEAST_STROKES * piece.size or is_long)


def is_rule_of(line: Component, groups: list[Component]) -> bool:
    """Whether a piece of any thickness is a flat line, wider than the others are large: it underlines them."""
    long, wide, is_flat = _straightness(line)
    others = [group.size for group in groups if group is not line]
    return is_flat and long >= FLAT_LINE * wide and bool(others) and line.size >= 1.2 * max(others)


def goes_with(line: Component, other: Component) -> bool:
    """Whether a thin straight piece is a stroke of a digit with another piece, nearly touching, as dark and thick."""
    alike = max(line.thick, other.thick) <= 1.5 * min(line.thick, other.thick)
    return line.near == other.near and alike and 2 * other.size >= line.size and other.peak >= 0.75 * line.peak


def is_steep_line(piece: Component) -> bool:
    """Whether a piece is straight, steep, and longer than a 1 is: a line of the paper, or a 1 that was drawn with a
    ruler."""
    long, wide, is_flat = _straightness(piece)
    return not is_flat and long >= STEEP_LINE * wide


def is_underlined(one: Component, other: Component) -> bool:
    """Whether one of two pieces is a flat line below or above the other, apart from it, and wider."""
    line, above = (one, other) if one.right - one.left > other.right - other.left else (other, one)
    long, wide, is_flat = _straightness(line)
    is_line = is_flat and long >= FLAT_LINE * wide and line.left <= above.left and line.right >= above.right
    return is_line and max(line.top - above.bottom, above.top - line.bottom) > 2 * NEAR * above.size


def _is_dash(piece: Component) -> bool:
    long, wide, is_flat = _straightness(piece)
    return is_flat and long >= DASH * wide and piece.area >= FILLED * long * wide


def is_of_dashes(digit: Component, pieces: list[Component]) -> bool:
    """Whether all pieces of a digit are flat and straight."""
    return all(map(_is_dash, _parts(digit, pieces)))


def _parts(digit: Component, pieces: list[Component]) -> list[Component]:
    """The pieces of a digit without crumbs; the largest at least."""
    parts = [pieces[number - 1] for number in digit.members]
    least = min(0.15 * digit.size, max(part.size for part in parts))
    return [part for part in parts if part.size >= least]


def is_cross(piece: Component) -> bool:
    """Whether a piece is two straight strokes, about as long, that cross in their middles."""
    tall, wide = piece.height, piece.right - piece.left
    is_middle = sum(_spreads(piece)) <= 2 * MIDDLE and min(tall, wide) >= BAR * max(tall, wide)
    return is_middle and piece.area <= BARS * piece.thick * (tall + wide - piece.thick)


def _is_arrow(piece: Component) -> bool:
    is_wide = piece.right - piece.left >= ARROW * piece.height
    return is_wide and _spreads(piece)[0] <= MIDDLE and _straightness(piece)[2]


def _spreads(piece: Component) -> tuple[float, float]:
    """The mean squared distances of a piece's ink from its middle row and column, in heights and widths, squared."""
    x, y, xx, _, yy = (total / piece.area for total in piece.sums)
    column, row, wide = (piece.left + piece.right - 1) / 2, (piece.top + piece.bottom - 1) / 2, piece.right - piece.left
    across, down = xx - 2 * column * x + column * column, yy - 2 * row * y + row * row
    return down / (piece.height * piece.height), across / (wide * wide)


def marks_of(pieces: list[Component], digits: list[Component]) -> list[list[tuple[int, int, int, int]]]:
    """For each digit, the boxes of the marks of which it is the nearest digit: (top, bottom, left, right)."""
    marks: list[list[tuple[int, int, int, int]]] = [[] for _ in digits]
    members = {number for digit in digits for number in digit.members}
    least = max(3, MARK * min((digit.size for digit in digits), default=0))
    least_digit = SMALL_DIGIT * max((digit.size for digit in digits), default=0)
    for piece in pieces:
        if piece.size >= least and not piece.cut and members.isdisjoint(piece.members):
            is_upright = piece.right - piece.left <= 1.5 * piece.height  # not an edge of the paper
            reach = FAR if is_upright and piece.height >= least_digit else 1.0
            gaps = [(gap, n) for n, digit in enumerate(digits) if (gap := gap_to_mark(piece, digit, reach)) is not None]
            if gaps and not any(lies_within(piece, digit) for digit in digits):  # a crumb of its strokes
                marks[min(gaps)[1]].append((piece.top, piece.bottom, piece.left, piece.right))
    return marks


def gap_to_mark(piece: Component, digit: Component, reach: float = 1.0) -> float | None:
    """The distance of a piece from a digit, if it is a mark beside, below or above it; None if it is not."""
    tall, size = digit.height, digit.size
    if not (MARK * size <= piece.size and piece.height <= 1.3 * size and darkness(piece, digit) >= 0.6):
        return None
    if not 0.35 * digit.thick <= piece.thick <= 2.5 * digit.thick:
        return None
    across = max(digit.left - piece.right, piece.left - digit.right, 0)
    down = max(digit.top - piece.bottom, piece.top - digit.bottom, 0)
    is_near = across <= reach * 0.8 * size and down <= reach * 0.4 * tall
    return math.sqrt(across * across + down * down) if is_near else None


def is_sign(digit: Component, digits: list[Component], pieces: list[Component]) -> bool:
    """Whether a digit may be a sign: much smaller than the digits beside it; or a line, dashes, a plus or an arrow; or
    a slash or a bracket, which begins as high as they do and reaches below all of them; or a percent sign, a stroke
    between two pieces."""
    tall, near, beside = digit.height, list[Component](), list[Component]()
    for other in digits:
        gap = max(other.left - digit.right, digit.left - other.right)
        overlap = min(other.bottom, digit.bottom) - max(other.top, digit.top)
        if other is not digit and gap <= max(tall, other.height) and overlap > 0:
            near.append(other)  # a comma reaches below the line
            if overlap >= BESIDE * min(tall, other.height):
                beside.append(other)
    if near and all(digit.size <= SMALLER * other.size for other in near):
        return True
    if is_steep_line(digit) or is_cross(digit) or _is_arrow(digit) or is_of_dashes(digit, pieces):
        return True
    if _is_slender(digit):
        wide = [other for other in beside if not _is_slender(other)]
        return bool(wide) and all(
            digit.bottom >= other.bottom + BELOW * other.height and digit.top <= other.top + BELOW * other.height
            for other in wide
        )
    if not beside:
        return False
    parts = _parts(digit, pieces)
    stroke = max(parts, key=lambda part: part.size)
    sides = [_side(part, stroke) for part in parts]
    return _is_slender(stroke) and stroke.size >= 0.8 * digit.size and {1, -1} <= set(sides)


def _is_slender(piece: Component) -> bool:
    long, wide, is_flat = _straightness(piece)
    return not is_flat and long >= SLENDER * wide


def _side(part: Component, stroke: Component) -> int:
    """1 if a piece is left of and above the middle of a stroke, -1 if it is right of and below it, else 0."""
    left, above = (
        part.left + part.right - stroke.left - stroke.right,
        part.top + part.bottom - stroke.top - stroke.bottom,
    )
    return 1 if left < 0 and above < 0 else -1 if left > 0 and above > 0 else 0


def _straightness(piece: Component) -> tuple[float, float, bool]:
    """The length and the width of the rectangle with a piece's moments of inertia, and whether it lies flat."""
    x, y, xx, xy, yy = (total / piece.area for total in piece.sums)
    across, both, down = xx - x * x, xy - x * y, yy - y * y
    middle, apart = (across + down) / 2, math.sqrt((across - down) * (across - down) / 4 + both * both)
    # A pixel has a width: its own variance is 1 / 12.
    long, wide = math.sqrt(12 * (middle + apart) + 1), math.sqrt(12 * max(0.0, middle - apart) + 1)
    # The direction of the length is (both, middle + apart - across).
    return long, wide, abs(middle + apart - across) <= FLAT * abs(both) or (both == 0 and across >= down)


def darkness(piece: Component, other: Component) -> float:
    """How many times as dark as another a piece is. In a shadow, ink and paper differ less, by the same ratio."""
    light = other.bright / piece.bright
    return piece.peak / other.peak * (light if 1 < light <= SHADOW and not piece.cut else 1)


def lies_within(inner: Component, outer: Component) -> bool:
    """Nine tenths of its bounding box, each way."""
    down = min(inner.bottom, outer.bottom) - max(inner.top, outer.top)
    across = min(inner.right, outer.right) - max(inner.left, outer.left)
    return down >= 0.9 * inner.height and across >= 0.9 * (inner.right - inner.left)
