"""Finds the digits on a picture: the ink that is no table, shadow, line, frame or speck, in groups of one digit each.

1. The paper's brightness at each pixel is a morphological closing along rows and columns: it fills what is dark and
   narrower than half of the picture, and follows tables, shadows and uneven light, which are wider or reach the border.
2. What is darker than the paper is ink, in connected components, each down to a fraction of its own darkest pixel.
   Light ink on dark paper is found in the same way in the negative; the stronger of the two is taken.
3. Ruled lines, frames, specks and, where there is other ink, what touches the border are left out.
4. Components that are near to each other are one digit. Digits are in the order of reading.

The decisions are made on integers, so that a report's page makes the same in JavaScript (report/page/ink.js): a change
here needs the same change there.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int32

LEVELS = 4000
"""The levels from black to white on which the decisions are made."""

LEAST_CONTRAST = 0.06
"""The least contrast between ink and paper, of 1; below it, an image is of one colour."""

EDGE = 0.35
"""The edge of a stroke, as a fraction of the darkest pixel of its component."""

SURE = 6.0
"""The least contrast of ink, in standard deviations of the noise."""

QUIET, LOUD = 0.008, 0.04
"""The standard deviations of noise above which the decisions are made on means of 3 x 3 pixels, once and twice."""

SMOOTHED = (1.0, 1 / 3, 19 / 81)
"""What remains of the standard deviation of the noise after no, one and two means of 3 x 3 pixels."""

SMOOTHED_SIZE = 100
"""Smaller pictures are not smoothed: their strokes are as thin as the noise."""

LINE = 0.8
"""A straight line is no stroke where it covers this fraction of the picture's width or height;"""

THIN = 1 / 40
"""and is no thicker than this fraction of the picture's shorter side, in pixels."""

EDGED = 0.85
"""The brightness changes along at least this fraction of the outline of ink."""

BEYOND = 0.06
"""Of the size of the largest piece: the outline's distance from the pixels with which it is compared."""

NEAR = 0.035
"""Pieces nearly touch within twice this fraction of the size of the largest piece."""

SLOPES = np.arange(-16, 17) / 100
"""The slopes of lines that are searched."""


class Component(NamedTuple):
    """Connected ink, or several pieces of one digit.

    Attributes:
      members: the numbers of its pieces.
      top, bottom, left, right: its bounding box, bottom and right exclusive.
      peak: its darkest pixel, in levels.
      area: pixels.
      span: its area with all gaps along the rows.
      edge: the fraction of its outline where the brightness changes. Paper between strokes is open on a side.
      thick: the mean thickness of its strokes, in pixels.
      near: the same number for pieces that nearly touch.
      cut: it touches the border.
    """

    members: tuple[int, ...]
    top: int
    bottom: int
    left: int
    right: int
    peak: int
    area: int
    span: int
    edge: float
    thick: float
    near: int
    cut: bool

    @property
    def size(self) -> int:
        return max(self.bottom - self.top, self.right - self.left)

    @property
    def score(self) -> float:
        """Squared peak times size; little for a sheet or a blot, which is as thick as it is long."""
        return self.peak**2 / LEVELS * max(0.1 * self.size, self.size - 2 * self.thick)


class Ink(NamedTuple):
    """The ink of one digit.

    Attributes:
      levels: the difference from the paper where its strokes are, else 0.
      top, left: of `levels` on the picture, in pixels.
      core: where its strokes are without their soft edges.
      noise: the standard deviation of the noise of `levels`.
      cut: it touches the border of the picture.
    """

    levels: Float64[np.ndarray, "rows columns"]
    top: int
    left: int
    core: Bool[np.ndarray, "rows columns"]
    noise: float
    cut: bool


def find_ink(grey: Float[np.ndarray, "height width"]) -> list[Ink]:
    """The digits on a picture, from left to right and from top to bottom; none if nothing is visible.

    Args:
      grey: from 0 to 1, of at most some 500 pixels a side.
    """
    grey = grey.astype(np.float64)
    noise = noise_of(grey)
    smooth, passes = grey, 0 if max(grey.shape) < SMOOTHED_SIZE else int(noise > QUIET) + int(noise > LOUD)
    for _ in range(passes):
        smooth = _means_of_nine(smooth)
    levels = np.floor(LEVELS * smooth + 0.5).astype(np.int32)
    offers = []
    for sign in (1, -1):  # dark ink, and light ink
        paper = _paper(sign * levels)
        typical = int(np.median(paper - sign * levels))
        labels, digits = _digits(paper - sign * levels - typical, levels, noise * SMOOTHED[passes])
        offers.append((digits, labels, np.maximum(0, (paper - typical) / LEVELS - sign * grey)))
    digits, labels, raw = offers[_is_light(*(digits for digits, _, _ in offers))]
    return [_ink(raw, labels, digit, noise) for digit in _in_order(digits)]


def _is_light(dark: list[Component], light: list[Component]) -> bool:
    """Whether the ink is light on dark paper, by the digits that are found in each case.

    What lies within the other is the ink: a sheet of paper on a dark table is light, but the digit is dark.
    """
    if not dark or not light:
        return bool(light)
    whole = [_all_united(digits) for digits in (dark, light)]
    ratios = [sum(digit.thick / digit.size for digit in digits) / len(digits) for digits in (dark, light)]
    for inner, outer in ((0, 1), (1, 0)):
        one, other = whole[inner], whole[outer]
        is_sheet = ratios[outer] >= 0.26 and one.area + other.area >= 0.9 * other.span
        is_stroke = ratios[inner] < ratios[outer] and one.size >= 0.12 * other.size and one.edge >= 0.9
        if is_sheet and is_stroke and _lies_within(one, other):
            return inner == 1
    scores = [sum(digit.score for digit in digits) for digits in (dark, light)]
    return scores[1] > scores[0]


def noise_of(grey: Float64[np.ndarray, "height width"]) -> float:
    """The standard deviation of the noise, from the median second difference along the rows."""
    if grey.shape[1] < 3:
        return 0.0
    second = np.sort(np.abs(grey[:, :-2] - 2 * grey[:, 1:-1] + grey[:, 2:]), axis=None)
    # The median of normal noise, and of noise that is cut off at white or black, in standard deviations.
    median = 0.76 if np.mean((grey <= 0) | (grey >= 1)) > 0.25 else 0.6745 * math.sqrt(6)
    return float(second[(second.size - 1) // 2]) / median


def _means_of_nine(levels: Float64[np.ndarray, "height width"]) -> Float64[np.ndarray, "height width"]:
    """The mean of 3 x 3 pixels, the border repeated."""
    for _ in range(2):  # down the columns, and then along the rows
        padded = np.pad(levels, ((1, 1), (0, 0)), "edge")
        levels = ((padded[:-2] + padded[1:-1] + padded[2:]) / 3).T
    return levels


def _paper(levels: Int32[np.ndarray, "height width"]) -> Int32[np.ndarray, "height width"]:
    """The brightness of the paper at each pixel: the larger of the closings along its row and along its column.

    The picture is continued by the pixels of its border, so that a dark rim is no ink.
    """
    from scipy.ndimage import maximum_filter1d, minimum_filter1d

    reach = max(1, min(levels.shape) // 4)
    closings = []
    for axis in (0, 1):
        padding = [(reach, reach) if n == axis else (0, 0) for n in (0, 1)]
        padded = np.pad(levels, padding, "edge")
        for filtered in (maximum_filter1d, minimum_filter1d):
            padded = filtered(padded, 2 * reach + 1, axis, mode="nearest")
        inner = slice(reach, -reach)
        closings.append(padded[inner] if axis == 0 else padded[:, inner])
    return np.maximum(*closings)


def _digits(
    depth: Int32[np.ndarray, "height width"], levels: Int32[np.ndarray, "height width"], noise: float
) -> tuple[Int32[np.ndarray, "height width"], list[Component]]:
    """The numbers of the pieces of ink at each pixel, and the digits, by how much darker than paper each pixel is."""
    from scipy.ndimage import label, maximum

    everywhere = np.ones((3, 3), bool)
    depth = np.maximum(0, depth)
    least = int(LEVELS * max(LEAST_CONTRAST, SURE * noise))
    labels, count = label(depth > least // 2, everywhere)
    if count == 0:
        return labels, []
    peaks = np.concatenate([[0], maximum(depth, labels, np.arange(1, count + 1))])
    mask = (depth > EDGE * peaks[labels]) & (peaks[labels] >= least)
    labels, _ = label(mask, everywhere)
    pieces = [piece for piece in _pieces(depth, levels, labels) if piece.size >= 3]
    frames = [number for piece in pieces if _is_frame(piece, pieces) for number in piece.members]
    labels, _ = label(_without_lines(mask & ~np.isin(labels, frames)), everywhere)
    pieces = _pieces(depth, levels, labels)
    return labels, _chosen(pieces)


def _without_lines(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The ink without straight thin lines across most of the picture, as of ruled paper and frames; all the ink if no
    other is left."""
    thickness = max(2, int(min(mask.shape) * THIN))
    lines = np.zeros_like(mask)
    for turned in (False, True):
        ink = mask.T if turned else mask
        width = ink.shape[1]
        y, x = np.nonzero(ink & (_run_lengths(ink) <= thickness))
        centred = x - width // 2
        for slope in SLOPES:
            rows = np.floor(y - slope * centred + 0.5).astype(int) + width // 2
            for offset in (0, thickness // 2 + 1):  # in bands that overlap
                band = (rows + offset) // (thickness + 1)
                cover = np.bincount(np.unique(band * width + x) // width)
                is_line = cover[band] >= LINE * width
                (lines.T if turned else lines)[y[is_line], x[is_line]] = True
    left = mask & ~lines
    return left if left.sum() > 0.02 * mask.sum() else mask


def _run_lengths(ink: Bool[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
    """The length of the vertical run of ink at each pixel."""
    above, below = np.zeros(ink.shape, int), np.zeros(ink.shape, int)
    for row in range(len(ink)):
        above[row] = (above[row - 1] + 1 if row else 1) * ink[row]
        below[-1 - row] = (below[-row] + 1 if row else 1) * ink[-1 - row]
    return np.where(ink, above + below - 1, 0)


def _pieces(depth: np.ndarray, levels: np.ndarray, labels: np.ndarray) -> list[Component]:
    from scipy.ndimage import find_objects, label, maximum_filter

    boxes = find_objects(labels)
    longest = max((max(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes), default=0)
    reach = _rounded(NEAR * longest)
    near, _ = label(maximum_filter((labels > 0).astype(np.uint8), 2 * reach + 1), np.ones((3, 3), bool))
    height, width = labels.shape
    thick = np.minimum(_run_lengths(labels > 0), _run_lengths((labels > 0).T).T)
    edges = _edges(depth, levels, labels, len(boxes), max(3, _rounded(BEYOND * longest)))
    pieces = []
    for number, box in enumerate(boxes, 1):
        rows, columns = box
        inside = labels[box] == number
        peak = int(depth[box][inside].max())
        cut = rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width
        pieces.append(
            Component(
                (number,),
                rows.start,
                rows.stop,
                columns.start,
                columns.stop,
                peak,
                int(inside.sum()),
                _span(inside),
                edges[number],
                float(thick[box][inside].mean()),
                int(near[box][inside][0]),
                cut,
            )
        )
    return pieces


def _span(inside: Bool[np.ndarray, "rows columns"]) -> int:
    first, last = inside.argmax(axis=1), inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)
    return int(np.where(inside.any(axis=1), last - first + 1, 0).sum())


def _edges(depth: np.ndarray, levels: np.ndarray, labels: np.ndarray, count: int, distance: int) -> np.ndarray:
    """For each piece, the fraction of its pixels near the outline that differ from the picture beyond, to 4 sides."""
    outline, changes = np.zeros(count + 1, int), np.zeros(count + 1, int)
    for axis in (0, 1):
        ones, others = slice(distance, None), slice(None, -distance)
        for here, there in ((ones, others), (others, ones)):
            inside, outside = (here, there) if axis == 0 else ((slice(None), here), (slice(None), there))
            number = labels[inside]
            is_outline = (number > 0) & (labels[outside] != number)
            outline += np.bincount(number[is_outline], minlength=count + 1)
            changed = is_outline & (np.abs(levels[inside] - levels[outside]) >= 0.4 * depth[inside])
            changes += np.bincount(number[changed], minlength=count + 1)
    return changes / np.maximum(outline, 1)


def _chosen(pieces: list[Component]) -> list[Component]:
    """The digits among the pieces of ink."""
    pieces = [piece for piece in pieces if piece.edge >= EDGED]  # not the paper within a stroke
    if not pieces:
        return []
    strongest = max(pieces, key=lambda piece: piece.score)
    pieces = [piece for piece in pieces if piece.size >= 0.03 * strongest.size]
    inner = [piece for piece in pieces if not piece.cut]
    if inner and max(piece.score for piece in inner) >= 0.15 * max(piece.score for piece in pieces):
        pieces = inner
    main = max(pieces, key=lambda piece: piece.score)
    groups = _grouped([piece for piece in pieces if piece.peak >= 0.5 * main.peak])
    main = max(groups, key=lambda group: group.score)
    return [group for group in groups if group.size >= 0.4 * main.size]


def _is_frame(piece: Component, pieces: list[Component]) -> bool:
    """Whether a piece is a thin outline around other ink of some size."""
    margin = 0.04 * piece.size
    is_thin = piece.area < 0.35 * (piece.bottom - piece.top) * (piece.right - piece.left)
    return is_thin and any(
        other.size >= 0.2 * piece.size
        and other.peak >= 0.35 * piece.peak
        and other.top >= piece.top + margin
        and other.bottom <= piece.bottom - margin
        and other.left >= piece.left + margin
        and other.right <= piece.right - margin
        for other in pieces
    )


def _grouped(pieces: list[Component]) -> list[Component]:
    """Unites the pieces of one digit, until no two belong together."""
    groups, merged = list(pieces), True
    while merged:
        merged = False
        for first in range(len(groups)):
            for second in range(first + 1, len(groups)):
                if _belong_together(groups[first], groups[second]):
                    groups[first] = _united(groups[first], groups.pop(second))
                    merged = True
                    break
            if merged:
                break
    return groups


def _belong_together(one: Component, other: Component) -> bool:
    larger = max(one.size, other.size)
    across = min(one.right, other.right) - max(one.left, other.left)  # the overlap; below 0, a gap
    down = min(one.bottom, other.bottom) - max(one.top, other.top)
    heights = sorted((one.bottom - one.top, other.bottom - other.top))
    covers = across >= 0.5 * min(one.right - one.left, other.right - other.left)
    if covers and (down >= 0.5 * heights[0] or -down <= 0.12 * larger):
        return True
    if heights[0] < 0.5 * heights[1] and math.hypot(min(0, across), min(0, down)) <= 0.15 * larger:
        return True
    both = _united(one, other)
    return one.near == other.near and both.right - both.left <= 0.9 * (both.bottom - both.top)


def _lies_within(inner: Component, outer: Component) -> bool:
    """Nine tenths of its bounding box, each way."""
    down = min(inner.bottom, outer.bottom) - max(inner.top, outer.top)
    across = min(inner.right, outer.right) - max(inner.left, outer.left)
    return down >= 0.9 * (inner.bottom - inner.top) and across >= 0.9 * (inner.right - inner.left)


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
        one.area + other.area,
        one.span + other.span,
        min(one.edge, other.edge),
        (one.thick * one.area + other.thick * other.area) / (one.area + other.area),
        one.near,
        one.cut or other.cut,
    )


def _rounded(number: float) -> int:
    """To the nearest integer, halves up, as JavaScript's Math.round."""
    return math.floor(number + 0.5)


def _in_order(digits: list[Component]) -> list[Component]:
    """Line by line from the top, and from left to right. A digit is in the line of one that it is beside."""
    lines: list[list[Component]] = []
    for digit in sorted(digits, key=lambda digit: (digit.top + digit.bottom, digit.left)):
        middle = (digit.top + digit.bottom) / 2
        if lines and middle < max(lines[-1], key=lambda other: other.bottom - other.top).bottom:
            lines[-1].append(digit)
        else:
            lines.append([digit])
    return [digit for line in lines for digit in sorted(line, key=lambda digit: digit.left)]


def _ink(raw: np.ndarray, labels: np.ndarray, digit: Component, noise: float) -> Ink:
    """The ink of a digit with its soft edges: of two pixels, or a twentieth of its size."""
    soft = max(2, digit.size // 20)
    height, width = labels.shape
    rows = slice(max(0, digit.top - soft), min(height, digit.bottom + soft))
    columns = slice(max(0, digit.left - soft), min(width, digit.right + soft))
    core = np.isin(labels[rows, columns], digit.members)
    from scipy.ndimage import maximum_filter

    near = maximum_filter(core.astype(np.uint8), 2 * soft + 1, mode="constant") > 0
    return Ink(raw[rows, columns] * near, rows.start, columns.start, core, noise, digit.cut)
