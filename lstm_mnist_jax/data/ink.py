"""Finds the pieces of ink on a picture: what is darker than the paper, without ruled lines and frames.

1. The paper's brightness at each pixel is a morphological closing along rows and columns: it fills what is dark and
   narrower than half of the picture, and follows tables, shadows and uneven light, which are wider or reach the border.
2. What is darker than the paper is ink, in connected components, each down to a fraction of its own darkest pixel.
3. Ruled lines and frames are left out.

It does not depend on what is written: `lstm_mnist_jax.data.digits` chooses the digits among the pieces. Pixels are
compared in whole levels, so that a report's page decides the same in JavaScript (report/page/ink.js): a change here
needs the same change there.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32

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

SHADED_OUTLINE = 0.7
"""The brightness changes along less than this fraction of the outline of strokes in a soft shadow."""

DARK_EDGE = 0.6
"""The edge of strokes in a soft shadow, as a fraction of their darkest pixel."""

SHADED_AREA = 0.7
"""In a piece that is strokes in a soft shadow, the strokes are less than this fraction of the pixels."""

BLOT, LARGE = 0.2, 0.2
"""What is thicker than this fraction of its size, and larger than this fraction of the picture's shorter side, may be
paper in a shadow,"""

DARKEST, FEW = 0.8, 0.15
"""where at most the second fraction of it is darker than the first of its darkest pixel: the strokes. Of a digit of a
thick pen it is more than a fifth."""

WITHIN = 0.3
"""The paper in a shadow is a closing by so many times the thickness of the shadow each way."""

BEYOND = 0.06
"""Of the size of the largest piece: the outline's distance from the pixels with which it is compared."""

NEAR = 0.045
"""Pieces nearly touch within twice this fraction of the size of the largest piece."""

DENSE = 0.4
"""A row within a line covers at least this fraction of the picture's width."""

SLOPES = np.arange(-16, 17) / 100
"""The slopes of lines that are searched."""


class Component(NamedTuple):
    """Connected ink, or several pieces of one digit.

    Attributes:
      members: the numbers of its pieces.
      top, bottom, left, right: its bounding box, bottom and right exclusive.
      peak: its darkest pixel, in levels.
      bright: the mean level of the paper at its pixels, or of light ink: how light it is there.
      area: pixels.
      span: its area with all gaps along the rows.
      edge: the fraction of its outline where the brightness changes. Paper between strokes is open on a side.
      thick: the mean thickness of its strokes, in pixels.
      near: the same number for pieces that nearly touch.
      cut: it touches the border.
      sums: of x, y, x * x, x * y and y * y over its pixels.
    """

    members: tuple[int, ...]
    top: int
    bottom: int
    left: int
    right: int
    peak: int
    bright: float
    area: int
    span: int
    edge: float
    thick: float
    near: int
    cut: bool
    sums: tuple[int, ...]

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def size(self) -> int:
        return max(self.height, self.right - self.left)


def in_levels(
    grey: Float64[np.ndarray, "height width"],
) -> tuple[Int32[np.ndarray, "height width"], float, float]:
    """A picture in `LEVELS`, smoothed where it is noisy.

    Returns:
      (levels, noise, left): the standard deviation of the picture's noise, and of what is left in `levels`, of 1.
    """
    noise = _noise_of(grey)
    passes = 0 if max(grey.shape) < SMOOTHED_SIZE else int(noise > QUIET) + int(noise > LOUD)
    for _ in range(passes):
        grey = _means_of_nine(grey)
    return np.floor(LEVELS * grey + 0.5).astype(np.int32), noise, noise * SMOOTHED[passes]


def _noise_of(grey: Float64[np.ndarray, "height width"]) -> float:
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


def _paper(levels: Int32[np.ndarray, "height width"], reach: int) -> Int32[np.ndarray, "height width"]:
    """The brightness of the paper at each pixel: the larger of the closings along its row and along its column.

    The picture is continued by the pixels of its border, so that a dark rim is no ink.
    """
    from scipy.ndimage import maximum_filter1d, minimum_filter1d

    closings = []
    for axis in (0, 1):
        padding = [(reach, reach) if n == axis else (0, 0) for n in (0, 1)]
        padded = np.pad(levels, padding, "edge")
        for filtered in (maximum_filter1d, minimum_filter1d):
            padded = filtered(padded, 2 * reach + 1, axis, mode="nearest")
        inner = slice(reach, -reach)
        closings.append(padded[inner] if axis == 0 else padded[:, inner])
    return np.maximum(*closings)


def pieces_of(
    levels: Int32[np.ndarray, "height width"], sign: int, noise: float
) -> tuple[list[Component], Int32[np.ndarray, "height width"], Int32[np.ndarray, "height width"], int]:
    """The pieces of ink on a picture, without ruled lines and frames.

    Args:
      levels: of the picture, of `LEVELS`.
      sign: 1 for dark ink on light paper, -1 for light ink on dark paper.
      noise: the standard deviation of what noise is left in `levels`, of 1.

    Returns:
      (pieces, labels, paper, ruled): the number of the piece at each pixel, 0 for none; the paper's level, times
        `sign`; and the darkness of the ruled lines that were left out, in levels, 0 where there are none.
    """
    from scipy.ndimage import label

    paper = _paper(sign * levels, max(1, min(levels.shape) // 4))
    depth = paper - sign * levels
    typical = int(np.median(depth))
    paper, depth = paper - typical, np.maximum(0, depth - typical)
    everywhere = np.ones((3, 3), bool)
    least = int(LEVELS * max(LEAST_CONTRAST, SURE * noise))
    labels, count = label(depth > least // 2, everywhere)
    if count == 0:
        return [], labels, paper, 0
    peaks = _peaks(depth, labels, count)
    strong = peaks[labels] >= least
    mask, weak = (strong & (depth > edge * peaks[labels]) for edge in (EDGE, LINE_EDGE))
    labels, count = label(mask, everywhere)
    outlines = [piece for piece in _outlined(depth, labels, count) if piece.size >= 3]
    frames = [number for piece in _frames(outlines, labels) for number in piece.members]
    kept = mask & ~np.isin(labels, frames)
    unruled = _without_lines(kept, kept if frames else weak)
    ruled = depth[kept & ~unruled]
    labels, count = label(unruled, everywhere)
    pieces = _described(depth, paper, levels, labels, count)
    dark = depth > DARK_EDGE * np.array([0, *(piece.peak for piece in pieces)])[labels]
    areas = np.bincount(labels[dark], minlength=count + 1).tolist()
    limits = np.zeros(count + 1)  # of the strokes in a shadow
    for n, piece in enumerate(pieces, 1):
        if piece.size < 3 or piece.peak < 2 * least:
            continue
        if piece.thick > BLOT * piece.size and piece.size >= LARGE * min(levels.shape):
            limits[n] = _shadow_taken(depth, paper, sign * levels, labels, piece, 2 * least)
        if not limits[n] and areas[n] < SHADED_AREA * piece.area and piece.edge < SHADED_OUTLINE:
            limits[n] = DARK_EDGE * piece.peak
    if limits.any():
        labels, count = label((labels > 0) & (depth > limits[labels]), everywhere)
        pieces = _described(depth, paper, levels, labels, count)
    return pieces, labels, paper, int(ruled.sum()) // ruled.size if ruled.size else 0


def _shadow_taken(
    depth: np.ndarray, paper: np.ndarray, levels: np.ndarray, labels: np.ndarray, blot: Component, least: int
) -> float:
    """Where a blot is paper in a shadow, with strokes at least so dark: measures `depth` there anew, from the `paper`
    within the blot. Returns the edge of the strokes; 0 if there are none."""
    rows, columns = slice(blot.top, blot.bottom), slice(blot.left, blot.right)
    within = labels[rows, columns] == blot.members[0]
    if np.count_nonzero(within & (depth[rows, columns] > DARKEST * blot.peak)) > FEW * blot.area:
        return 0.0
    inner = np.where(within, levels[rows, columns], -LEVELS)
    own = _paper(inner, int(WITHIN * blot.thick) + 1)
    darker = (own - inner)[within]
    if darker.max() < least:
        return 0.0
    depth[rows, columns][within] = darker
    paper[rows, columns][within] = own[within]
    return EDGE * int(darker.max())


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
        runs = np.where(strong, run_lengths(strong), run_lengths(ink))  # weak ink makes strokes on a line thicker
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


def run_lengths(ink: Bool[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
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
        box, area = (top, bottom, left, right), areas[number]
        pieces.append(Component((number,), *box, peaks[number], 1.0, area, 0, 0.0, 0.0, 0, cut, (0,) * 5))
    return pieces


def _described(
    depth: np.ndarray, paper: np.ndarray, levels: np.ndarray, labels: np.ndarray, count: int
) -> list[Component]:
    from scipy.ndimage import label, maximum_filter

    pieces = _outlined(depth, labels, count)
    longest = max((piece.size for piece in pieces), default=0)
    reach = rounded(NEAR * longest)
    near, _ = label(maximum_filter((labels > 0).astype(np.uint8), 2 * reach + 1), np.ones((3, 3), bool))
    at = np.flatnonzero(labels)
    number = labels.ravel()[at]
    ink = labels > 0
    thick = np.minimum(run_lengths(ink), run_lengths(ink.T).T).ravel()[at]
    areas = np.bincount(number, minlength=count + 1)
    bright = np.maximum(paper, depth - paper).ravel()[at]
    thicks, brights = (
        (np.bincount(number, each, count + 1) / np.maximum(areas, 1)).tolist() for each in (thick, bright)
    )
    groups = np.zeros(count + 1, int)
    groups[number] = near.ravel()[at]
    edges = _edges(depth, levels, labels, count, max(3, rounded(BEYOND * longest))).tolist()
    spans = spans_of(labels, count).tolist()
    y, x = np.divmod(at, labels.shape[1])
    sums = (
        np.stack([np.bincount(number, each, count + 1) for each in (x, y, x * x, x * y, y * y)], 1).astype(int).tolist()
    )
    return [
        piece._replace(
            bright=brights[n], span=spans[n], edge=edges[n], thick=thicks[n], near=int(groups[n]), sums=tuple(sums[n])
        )
        for n, piece in enumerate(pieces, 1)
    ]


def spans_of(labels: Int32[np.ndarray, "height width"], count: int) -> Int[np.ndarray, " numbers"]:
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


def _frames(pieces: list[Component], labels: Int32[np.ndarray, "height width"]) -> list[Component]:
    """The frames around other ink, and what is as large and thin as one of them: the empty boxes beside it."""
    frames = [piece for piece in pieces if _is_frame(piece, pieces, labels)]
    return [piece for piece in pieces if any(_alike(piece, frame) for frame in frames)]


def _is_frame(piece: Component, pieces: list[Component], labels: Int32[np.ndarray, "height width"]) -> bool:
    """Whether a piece is a thin outline around other ink of some size, or several such side by side."""
    height, width = piece.bottom - piece.top, piece.right - piece.left
    size = height if width > 1.5 * height else piece.size  # of one of several boxes in a row
    margin = 0.04 * size
    is_large = size >= 0.35 * min(labels.shape)  # else it may be a 0 with a stroke of its own within it
    return piece.area < 0.35 * height * width and any(
        other.size >= (0.2 if is_large else 0.4) * size
        and other.peak >= 0.5 * piece.peak
        and other.top >= piece.top + margin
        and other.bottom <= piece.bottom - margin
        and other.left >= piece.left + margin
        and other.right <= piece.right - margin
        and _goes_around(piece.members[0], other, labels)
        for other in pieces
    )


def _goes_around(number: int, other: Component, labels: Int32[np.ndarray, "height width"]) -> bool:
    """Whether there is ink of a piece above, below, left and right of another: that of a broken digit is not all
    around."""
    rows, columns = slice(other.top, other.bottom), slice(other.left, other.right)
    above, below = labels[: other.top, columns], labels[other.bottom :, columns]
    before, after = labels[rows, : other.left], labels[rows, other.right :]
    return all((side == number).any() for side in (above, below, before, after))


def _alike(one: Component, other: Component) -> bool:
    """Whether two pieces have about the same height, width and area."""
    pairs = (
        (one.bottom - one.top, other.bottom - other.top),
        (one.right - one.left, other.right - other.left),
        (one.area, other.area),
    )
    return all(abs(a - b) <= 0.1 * b for a, b in pairs)


def rounded(number: float) -> int:
    """To the nearest integer, halves up, as JavaScript's Math.round."""
    return math.floor(number + 0.5)
