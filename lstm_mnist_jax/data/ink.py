"""Finds the digits on a picture: the ink that is no table, shadow, line, frame or speck, in groups of one digit each.

0. A picture of two levels that one digit fills from border to border is that digit.
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
from collections.abc import Sequence
from functools import partial
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

LINE_EDGE = 0.2
"""The edge of a line, as a fraction of the darkest pixel of its component. Lines are paler than strokes."""

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

DENSE = 0.4
"""A row within a line covers at least this fraction of the picture's width."""

FILLED_MARGIN = 0.09
"""The most paper beside a digit that fills its picture, as a fraction of the width or height."""

FILLED_SIZE = 16
"""Smaller pictures are not taken for a digit that fills them."""

RECTANGULAR = 0.85
"""A sheet or a frame fills this fraction of its bounding box, with all gaps along the rows."""

TWO_LEVELS = 0.85
"""The fraction of the variance that two levels explain on a picture of two levels."""

BESIDE = 0.4
"""A digit is in the line of one of which it overlaps this fraction of the smaller height."""

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
    darker = _darker(levels)
    for sign, kind in () if darker is None else ((1, darker), (-1, ~darker)):
        if (core := _filling(kind)) is not None:
            level = int(np.median(levels[~core]))
            return [Ink(np.maximum(0, sign * (level / LEVELS - grey)), 0, 0, core, noise, True)]
    offers = []
    for sign in (1, -1):  # dark ink, and light ink
        paper = _paper(sign * levels)
        typical = int(np.median(paper - sign * levels))
        labels, digits = _digits(paper - sign * levels - typical, levels, noise * SMOOTHED[passes])
        offers.append((digits, labels, np.maximum(0, (paper - typical) / LEVELS - sign * grey)))
    digits, labels, raw = offers[_is_light(*(digits for digits, _, _ in offers))]
    order = reading_order([(digit.top, digit.bottom, digit.left) for digit in digits])
    return [_ink(raw, labels, digits[number], noise) for number in order]


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
    if int(_spans(core.astype(np.int32), 1)[1]) > RECTANGULAR * core.any(axis=1).sum() * core.any(axis=0).sum():
        return None
    thick = np.minimum(_run_lengths(core), _run_lengths(core.T).T)[core].sum() / area
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
        is_thinner = ratios[inner] < ratios[outer] and one.thick < 0.3 * other.thick  # than what is around a hole
        is_stroke = is_thinner and one.size >= 0.12 * other.size and one.edge >= 0.9
        if is_sheet and is_stroke and _lies_within(one, other):
            return inner == 1
    scores = [sum(digit.score for digit in digits) for digits in (dark, light)]
    return scores[1] > scores[0]


def noise_of(grey: Float64[np.ndarray, "height width"]) -> float:
    """The standard deviation of the noise, from the median second difference along the rows."""
    if grey.shape[1] < 3:
        return 0.0
    second = np.abs(grey[:, :-2] - 2 * grey[:, 1:-1] + grey[:, 2:])
    middle = (second.size - 1) // 2
    # The median of normal noise, and of noise that is cut off at white or black, in standard deviations.
    median = 0.76 if np.mean((grey <= 0) | (grey >= 1)) > 0.25 else 0.6745 * math.sqrt(6)
    return float(np.partition(second, middle, axis=None)[middle]) / median


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
    from scipy.ndimage import label

    everywhere = np.ones((3, 3), bool)
    depth = np.maximum(0, depth)
    least = int(LEVELS * max(LEAST_CONTRAST, SURE * noise))
    labels, count = label(depth > least // 2, everywhere)
    if count == 0:
        return labels, []
    peaks = _peaks(depth, labels, count)
    strong = peaks[labels] >= least
    mask, weak = (strong & (depth > edge * peaks[labels]) for edge in (EDGE, LINE_EDGE))
    labels, count = label(mask, everywhere)
    pieces = [piece for piece in _outlined(depth, labels, count) if piece.size >= 3]
    frames = [number for piece in _frames(pieces) for number in piece.members]
    kept = mask & ~np.isin(labels, frames)
    labels, count = label(_without_lines(kept, kept if frames else weak), everywhere)
    pieces = _pieces(depth, levels, labels, count)
    return labels, _chosen(pieces)


def _peaks(depth: np.ndarray, labels: np.ndarray, count: int) -> Int32[np.ndarray, " numbers"]:
    """The darkest pixel of each piece, by its number; 0 for number 0."""
    peaks, is_ink = np.zeros(count + 1, np.int32), labels > 0
    np.maximum.at(peaks, labels[is_ink], depth[is_ink])
    return peaks


def _without_lines(
    mask: Bool[np.ndarray, "height width"], weak: Bool[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    """The ink without straight thin lines across most of the picture, as of ruled paper and frames; all the ink if no
    other is left. Lines may be of `weak` ink in part."""
    thickness = max(2, int(min(mask.shape) * THIN))
    lines = np.zeros_like(mask)
    for turned in (False, True):
        ink, strong = (weak.T, mask.T) if turned else (weak, mask)
        width = ink.shape[1]
        runs = np.where(strong, _run_lengths(strong), _run_lengths(ink))  # weak ink makes strokes on a line thicker
        thin = ink & (runs <= thickness)
        searched = _may_be_lines(thin, thickness)
        if not searched.any():
            continue
        y, x = np.divmod(np.flatnonzero(thin & searched[:, None]), width)
        centred = np.arange(width) - width // 2
        covered = np.zeros(((len(ink) + 2 * width) // (thickness + 1) + 2, width), bool)
        for slope in SLOPES:
            rows = y + (np.floor(0.5 - slope * centred).astype(int) + width // 2)[x]
            for offset in (0, thickness // 2 + 1):  # in bands that overlap
                band = (rows + offset) // (thickness + 1)
                covered[band, x] = True
                is_whole = covered.sum(axis=1) >= LINE * width
                if is_whole.any():
                    dense = np.bincount(rows, minlength=rows.max() + 1) >= DENSE * width
                    is_line = is_whole[band] & dense[rows]
                    (lines.T if turned else lines)[y[is_line], x[is_line]] = True
                covered[band, x] = False
    left = mask & ~lines
    return left if left.sum() > 0.02 * mask.sum() else mask


def _may_be_lines(thin: Bool[np.ndarray, "height width"], thickness: int) -> Bool[np.ndarray, " height"]:
    """The rows in which lines of any slope may be: among as many rows as a line takes, most columns have thin ink."""
    height, width = thin.shape
    tall = math.ceil(max(SLOPES) * width) + thickness + 3
    step = max(1, tall // 2)
    above = np.pad(thin.cumsum(axis=0, dtype=np.int32), ((1, 0), (0, 0)))  # down to each row
    rows = np.zeros(height, bool)
    for top in range(0, height, step):
        bottom = min(height, top + tall + step)
        if np.count_nonzero(above[bottom] > above[top]) >= LINE * width:
            rows[top:bottom] = True
    return rows


def _run_lengths(ink: Bool[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
    """The length of the vertical run of ink at each pixel."""
    columns = np.pad(ink.T, ((0, 0), (0, 1))).ravel()  # one after the other, with a gap
    changes = np.flatnonzero(np.diff(columns, prepend=False))
    lengths = changes[1::2] - changes[::2]
    runs = np.zeros(columns.shape, np.int32)
    runs[columns] = np.repeat(lengths, lengths)
    return runs.reshape(-1, len(ink) + 1)[:, :-1].T


def _outlined(depth: np.ndarray, labels: np.ndarray, count: int) -> list[Component]:
    """The connected pieces of ink: where they are and their darkest pixels, which is enough to find frames."""
    from scipy.ndimage import find_objects

    height, width = labels.shape
    areas, peaks = np.bincount(labels.ravel(), minlength=count + 1).tolist(), _peaks(depth, labels, count).tolist()
    pieces = []
    for number, (rows, columns) in enumerate(find_objects(labels), 1):
        top, bottom, left, right = rows.start, rows.stop, columns.start, columns.stop
        cut = top == 0 or left == 0 or bottom == height or right == width
        box = (top, bottom, left, right, peaks[number], areas[number])
        pieces.append(Component((number,), *box, span=0, edge=0.0, thick=0.0, near=0, cut=cut))
    return pieces


def _pieces(depth: np.ndarray, levels: np.ndarray, labels: np.ndarray, count: int) -> list[Component]:
    from scipy.ndimage import label, maximum_filter

    pieces = _outlined(depth, labels, count)
    longest = max((piece.size for piece in pieces), default=0)
    reach = _rounded(NEAR * longest)
    near, _ = label(maximum_filter((labels > 0).astype(np.uint8), 2 * reach + 1), np.ones((3, 3), bool))
    at = np.flatnonzero(labels)
    number = labels.ravel()[at]
    ink = labels > 0
    thick = np.minimum(_run_lengths(ink), _run_lengths(ink.T).T).ravel()[at]
    areas = np.bincount(number, minlength=count + 1)
    thicks = (np.bincount(number, thick, count + 1) / np.maximum(areas, 1)).tolist()
    groups = np.zeros(count + 1, int)
    groups[number] = near.ravel()[at]
    edges = _edges(depth, levels, labels, count, max(3, _rounded(BEYOND * longest))).tolist()
    spans = _spans(labels, count).tolist()
    return [
        piece._replace(span=spans[n], edge=edges[n], thick=thicks[n], near=int(groups[n]))
        for n, piece in enumerate(pieces, 1)
    ]


def _spans(labels: Int32[np.ndarray, "height width"], count: int) -> Int[np.ndarray, " numbers"]:
    """The area of each piece with all gaps along the rows."""
    rows, columns = np.divmod(np.flatnonzero(labels), labels.shape[1])
    place = labels[rows, columns] * len(labels) + rows
    found, first = np.unique(place, return_index=True)
    last = len(place) - 1 - np.unique(place[::-1], return_index=True)[1]
    spans = columns[last] - columns[first] + 1
    return np.bincount(found // len(labels), spans, count + 1).astype(int)


def _edges(depth: np.ndarray, levels: np.ndarray, labels: np.ndarray, count: int, distance: int) -> np.ndarray:
    """For each piece, the fraction of its pixels near the outline that differ from the picture beyond, to 4 sides."""
    outline, changes = np.zeros(count + 1, int), np.zeros(count + 1, int)
    height, width = labels.shape
    rows, columns = np.divmod(np.flatnonzero(labels), width)
    number, level, least = (array[rows, columns] for array in (labels, levels, 0.4 * depth))
    for down, right in ((distance, 0), (-distance, 0), (0, distance), (0, -distance)):
        y, x = rows + down, columns + right
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        at = np.where(inside, y * width + x, 0)
        is_outline = inside & (labels.ravel()[at] != number)
        outline += np.bincount(number[is_outline], minlength=count + 1)
        changed = is_outline & (np.abs(level - levels.ravel()[at]) >= least)
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


def _frames(pieces: list[Component]) -> list[Component]:
    """The frames around other ink, and what is as large and thin as one of them: the empty boxes beside it."""
    frames = [piece for piece in pieces if _is_frame(piece, pieces)]
    return [piece for piece in pieces if any(_alike(piece, frame) for frame in frames)]


def _is_frame(piece: Component, pieces: list[Component]) -> bool:
    """Whether a piece is a thin outline around other ink of some size, or several such side by side."""
    height, width = piece.bottom - piece.top, piece.right - piece.left
    size = height if width > 1.5 * height else piece.size  # of one of several boxes in a row
    margin = 0.04 * size
    return piece.area < 0.35 * height * width and any(
        other.size >= 0.2 * size
        and other.peak >= 0.35 * piece.peak
        and other.top >= piece.top + margin
        and other.bottom <= piece.bottom - margin
        and other.left >= piece.left + margin
        and other.right <= piece.right - margin
        for other in pieces
    )


def _alike(one: Component, other: Component) -> bool:
    """Whether two pieces have about the same height, width and area."""
    pairs = (
        (one.bottom - one.top, other.bottom - other.top),
        (one.right - one.left, other.right - other.left),
        (one.area, other.area),
    )
    return all(abs(a - b) <= 0.1 * b for a, b in pairs)


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


def reading_order(boxes: Sequence[tuple[float | int, float | int, float | int]]) -> list[int]:
    """The numbers of boxes (top, bottom, left), line by line from the top, and from left to right.

    A box is in the line that ends beside it, so that a line may slope. Lines are in the order of their mean middles.
    """

    def overlap(number: int, line: list[int]) -> float:
        top, bottom, _ = boxes[number]
        others = (boxes[other] for other in line[-2:])
        return max((min(bottom, low) - max(top, high)) / min(bottom - top, low - high) for high, low, _ in others)

    lines: list[list[int]] = []
    for number in sorted(range(len(boxes)), key=lambda number: (boxes[number][2], boxes[number][0] + boxes[number][1])):
        nearest = max(lines, key=partial(overlap, number), default=None)
        if nearest is not None and overlap(number, nearest) >= BESIDE:
            nearest.append(number)
        else:
            lines.append([number])
    lines.sort(key=lambda line: sum(boxes[number][0] + boxes[number][1] for number in line) / len(line))
    return [number for line in lines for number in line]


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
