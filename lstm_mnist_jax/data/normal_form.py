"""Pictures as a network knows them: MNIST's own normal form, and others.

MNIST's authors describe theirs (yann.lecun.com/exdb/mnist): a digit's largest side is brought to 20 pixels with
anti-aliasing, its aspect kept, and it lies in 28 x 28 with its centre of mass in the middle, white on black.
Plain arrays in and out. What is drawn on a report's page is brought to the same form by a twin of `digit` in
JavaScript, in lstm_mnist_jax/report/page/: what changes here must change there.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from lstm_mnist_jax.data.picture_arrays import Picture, reduced
from lstm_mnist_jax.errors import DataError

FORMS = ("digit", "whole", "plain")

FACES = 20 / 28
"""The share of the side of MNIST's images that a digit's largest side takes."""

SOUGHT_SIZE = 256
"""The longer side of the picture in which a digit is looked for, in pixels; larger ones are reduced."""

LEAST_CONTRAST = 0.06
"""Between the ink and the paper, of 1: below, a picture is said to be of one colour."""

EDGE = 0.25
"""The share of the darkest ink at which a stroke's edge is taken to be."""

FAINT_EDGE = 0.01
"""The same in a picture that is in normal form already, whose outermost pixels may be all but white."""

SURE = 6.0
"""Standard deviations of noise, of the mean of 3 x 3 pixels, above which there is ink: noise is, one in 10^9 times."""

EVENLY = 0.5
"""The share of the unevenness of its border that a picture keeps when uneven light is taken off, if it was that."""

TAKEN_OFF = 2.0
"""Standard deviations of what is left of the noise that are taken off what is left of the paper."""

Normal = Float32[np.ndarray, "rows columns *channels"]


def normalise(picture: Picture, image_shape: Sequence[int], form: str) -> Normal:
    """A picture in the form that a network was trained on.

    Args:
      picture: from 0 to 1, [height, width] or [height, width, 3], of any size.
      image_shape: (height, width) or (height, width, channels) of the network's images.
      form: "digit", something written, dark on light or light on dark, brought to MNIST's form; "whole", the
        picture as it is, fitted in, and inverted where its border is light and the network's images are grey; or
        "plain", of the right size and taken as it is.

    Returns:
      Floats from 0 to 1 of `image_shape`.

    Raises:
      DataError: there is nothing to be seen, the size is wrong (plain), or the form unknown.
    """
    height, width, *channels = image_shape
    if form == "plain":
        return _plain(picture, tuple(image_shape))
    if form == "digit" and not channels:
        return digit(picture, height, width)
    if form not in FORMS:
        raise DataError(f"Unknown form {form!r}; expected one of {', '.join(FORMS)}.")
    if form == "digit":
        raise DataError(f"The form of digits is grey, but this network reads {channels[0]} channels; use whole.")
    levels = _with_channels(picture, channels)
    if not channels and np.median(_border(levels)) > 0.5:
        levels = 1 - levels
    return _fitted(levels, height, width)


def digit(picture: Picture, height: int = 28, width: int = 28) -> Float32[np.ndarray, "rows columns"]:
    """Something written, in MNIST's normal form. One that is in it already stays as it is.

    Raises:
      DataError: nothing can be told from the paper.
    """
    grey = _evenly_lit(_with_channels(reduced(picture, SOUGHT_SIZE), []))
    paper, noise = _paper(grey)
    differences = grey - paper
    side = _rounded(FACES * min(height, width))
    strokes = _cut_out(differences, noise, FAINT_EDGE)
    if max(strokes.shape) != side:
        strokes = _cut_out(differences, noise, EDGE)
    tall, wide = (max(1, _rounded(side * length / max(strokes.shape))) for length in strokes.shape)
    if strokes.shape != (tall, wide):
        by_row, by_column = resampling(strokes.shape[0], tall), resampling(strokes.shape[1], wide)
        strokes = by_row @ strokes @ by_column.T
        noise *= math.sqrt(np.square(by_row[tall // 2]).sum() * np.square(by_column[wide // 2]).sum())
    most = float(strokes.max())
    if most < LEAST_CONTRAST:
        raise DataError(
            "Nothing can be seen on the picture. What is on it vanishes when it is made as small as a digit."
        )
    least = min(TAKEN_OFF * noise, 0.5 * most)
    strokes = np.clip((strokes - least) / (most - least), 0, 1)
    top, left = (_start(strokes.sum(axis=axis), length) for axis, length in ((1, height), (0, width)))
    normal = np.zeros((height, width), np.float32)
    normal[top : top + tall, left : left + wide] = strokes
    return normal


def _cut_out(differences: np.ndarray, noise: float, edge: float) -> np.ndarray:
    """The rectangle of what is written, lighter or darker than the paper: by how much each of its pixels is so.

    Args:
      differences: of the picture from its paper.
      noise: the standard deviation of the paper's noise.
      edge: the share of the darkest ink at which ink begins.

    Raises:
      DataError: nothing can be told from the paper.
    """
    strokes, means = differences, _means_of_nine(differences)
    if -means.min() > means.max():
        strokes, means = -strokes, -means
    peak = float(strokes.max())
    is_ink = (strokes > edge * peak) & (means > SURE * noise / 3)
    if peak < LEAST_CONTRAST or not is_ink.any():
        why = "It is of one colour" if peak < LEAST_CONTRAST else "Its border is as uneven as what is within"
        raise DataError(f"Nothing can be seen on the picture. {why}.")
    rows, columns = (np.flatnonzero(is_ink.any(axis=axis)) for axis in (1, 0))
    return strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _paper(grey: np.ndarray) -> tuple[float, float]:
    """The brightness of the paper, and the standard deviation of its noise (0 where a program has drawn it).

    The border is taken to be paper for the most part.
    """
    border = _border(grey)
    middle = float(np.sort(border)[(len(border) - 1) // 2])
    # The median difference of neighbours, in standard deviations: of normal noise, and of what remains of it on
    # white or black paper, which cuts one half off.
    is_cut = np.mean((border <= 0) | (border >= 1)) > 0.25
    median_difference = 0.394 if is_cut else 0.954
    noise = float(np.median(np.abs(np.diff(border)))) / median_difference if len(border) > 1 else 0.0
    return float(border[np.abs(border - middle) <= 3 * noise].mean(dtype=np.float64)), noise


def _evenly_lit(grey: np.ndarray) -> np.ndarray:
    """The picture without a light that falls from one side: less a plane through the middles of its four sides, if
    its border is paper in that light. One that ink reaches is not, nor one that a program has drawn."""
    height, width = grey.shape
    down, right = (float(np.median(side[-1]) - np.median(side[0])) for side in (grey, grey.T))
    light = down * np.linspace(-0.5, 0.5, height)[:, None] + right * np.linspace(-0.5, 0.5, width)
    lit = (grey - light).astype(np.float32)
    before, after = (np.abs(_border(levels) - np.median(_border(levels))).mean() for levels in (grey, lit))
    return lit if after < EVENLY * before else grey


def _means_of_nine(levels: np.ndarray) -> np.ndarray:
    """The mean of each pixel and its neighbours, as far as there are any."""
    sums, counts = (np.pad(array, 1) for array in (levels, np.ones_like(levels)))
    for _ in range(2):  # down the columns, and then along the rows
        sums, counts = ((array[:-2] + array[1:-1] + array[2:]).T for array in (sums, counts))
    return sums / counts


def resampling(before: int, after: int) -> Float32[np.ndarray, "after before"]:
    """The matrix that resamples a line of `before` pixels to `after`: each a weighted mean, by a triangle as wide as
    a pixel of the coarser line, which is linear interpolation upwards and anti-aliasing downwards."""
    scale = before / after
    reach = max(1.0, scale)
    centres = (np.arange(after) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(before) - centres[:, None]) / reach)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _start(mass: np.ndarray, length: int) -> int:
    """Where a line of ink begins, so that its centre of mass is the middle, as far as it has room."""
    centre = float(np.arange(len(mass)) @ mass / mass.sum())
    return min(max(0, _rounded(length / 2 - centre)), length - len(mass))


def _rounded(number: float) -> int:
    """To the nearest integer, halves up, as JavaScript's Math.round has it."""
    return math.floor(number + 0.5)


def _plain(picture: Picture, shape: tuple[int, ...]) -> Normal:
    levels = picture
    if len(shape) == 2 or shape[2:] == (picture.shape[2] if picture.ndim == 3 else 1,):
        levels = _with_channels(picture, list(shape[2:]))
    if levels.shape != shape:
        raise DataError(
            f"The picture is {' x '.join(map(str, picture.shape))}, and as it is (form plain) it has to be "
            f"{' x '.join(map(str, shape))}."
        )
    return levels.astype(np.float32)


def _with_channels(picture: np.ndarray, channels: list[int]) -> np.ndarray:
    """Grey ([]) or of so many channels, of which the first three are colours."""
    if channels in ([], [1]):  # the luma of ITU-R BT.601
        grey = picture if picture.ndim == 2 else picture @ np.array([0.299, 0.587, 0.114], np.float32)
        return grey[..., None] if channels else grey
    if channels != [3]:
        raise DataError(f"This network reads {channels[0]} channels; pictures of files have one or three.")
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)


def _border(levels: np.ndarray) -> np.ndarray:
    return np.concatenate([levels[0], levels[-1], levels[1:-1, 0], levels[1:-1, -1]])


def _fitted(levels: np.ndarray, height: int, width: int) -> Normal:
    """The whole picture as large as it fits, its aspect kept, on its border's colour."""
    scale = min(height / levels.shape[0], width / levels.shape[1])
    tall, wide = (
        min(most, max(1, _rounded(scale * n))) for n, most in zip(levels.shape, (height, width), strict=False)
    )
    fitted = np.moveaxis(levels.reshape(*levels.shape[:2], -1), -1, 0)
    fitted = resampling(levels.shape[0], tall) @ fitted @ resampling(levels.shape[1], wide).T
    paper = np.median(_border(levels), axis=0)
    canvas = np.empty((height, width, len(fitted)), np.float32)
    canvas[...] = paper
    top, left = (height - tall) // 2, (width - wide) // 2
    canvas[top : top + tall, left : left + wide] = np.moveaxis(fitted, 0, -1)
    return np.clip(canvas.reshape(height, width, *levels.shape[2:]), 0, 1)
