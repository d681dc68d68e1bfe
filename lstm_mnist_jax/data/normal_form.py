"""Preprocessing of images for prediction: to MNIST's normal form, or fitted to the size of the training images.

MNIST's normal form (yann.lecun.com/exdb/mnist): the larger side of a digit is scaled to 20 pixels with anti-aliasing,
its aspect kept, and its centre of mass is in the middle of 28 x 28 pixels, white on black.

A report's page preprocesses drawings by the same algorithm in JavaScript (lstm_mnist_jax/report/page/): a change here
needs the same change there.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from lstm_mnist_jax.data.pictures import Picture, reduced
from lstm_mnist_jax.errors import DataError, did_you_mean

FORMS = ("digit", "whole", "plain")

FACES = 20 / 28
"""The larger side of a digit, as a fraction of the side of the image."""

SOUGHT_SIZE = 256
"""Larger images are reduced to this length of the longer side, in pixels, before the digit is searched."""

LEAST_CONTRAST = 0.06
"""The least contrast between ink and paper, of 1; below it, an image is of one colour."""

EDGE = 0.25
"""The edge of a stroke, as a fraction of the darkest ink."""

FAINT_EDGE = 0.01
"""The same for an image that is in normal form already, whose outermost pixels may be nearly white."""

SURE = 6.0
"""The least mean of 3 x 3 pixels of ink, in standard deviations of the noise of such a mean."""

EVENLY = 0.5
"""The correction of uneven light is used where it reduces the deviations along the border at least to this fraction."""

TAKEN_OFF = 2.0
"""The noise that is subtracted after scaling, in standard deviations."""

Normal = Float32[np.ndarray, "rows columns *channels"]


def normalise(picture: Picture, image_shape: Sequence[int], form: str) -> Normal:
    """An image, preprocessed as the training images are.

    Args:
      picture: from 0 to 1, [height, width] or [height, width, 3], of any size.
      image_shape: (height, width) or (height, width, channels) of the network's images.
      form: "digit", handwriting, dark on light or light on dark, in MNIST's normal form; "whole", the whole image
        scaled to fit, and inverted where its border is light and the network's images are grey; or "plain",
        unchanged, of the right size.

    Returns:
      Floats from 0 to 1 of `image_shape`.

    Raises:
      DataError: nothing is visible, the size is wrong (plain), or the form unknown.
    """
    height, width, *channels = image_shape
    if form == "plain":
        return _plain(picture, tuple(image_shape))
    if form == "digit" and not channels:
        return digit(picture, height, width)
    if form not in FORMS:
        raise DataError(f"Unknown form {form!r}; expected one of {', '.join(FORMS)}{did_you_mean(form, FORMS)}")
    if form == "digit":
        raise DataError(f"The form of digits is grey, but this network reads {channels[0]} channels; use whole.")
    levels = _with_channels(picture, channels)
    if not channels and np.median(_border(levels)) > 0.5:
        levels = 1 - levels
    return _fitted(levels, height, width)


def digit(picture: Picture, height: int = 28, width: int = 28) -> Float32[np.ndarray, "rows columns"]:
    """Handwriting in MNIST's normal form. An image in this form is unchanged.

    Raises:
      DataError: no ink can be distinguished from the paper.
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
    """The bounding box of the ink, as the difference of each pixel from the paper, 0 or more for ink.

    Args:
      differences: of the image from its paper.
      noise: the standard deviation of the paper's noise.
      edge: of a stroke, as a fraction of the darkest ink.
    """
    strokes, means = differences, _means_of_nine(differences)
    if -means.min() > means.max():
        strokes, means = -strokes, -means
    peak = float(strokes.max())
    is_ink = (strokes > edge * peak) & (means > SURE * noise / 3)
    if peak < LEAST_CONTRAST or not is_ink.any():
        why = "It is of one colour" if peak < LEAST_CONTRAST else "Its border is as uneven as its inside"
        raise DataError(f"Nothing can be seen on the picture. {why}.")
    rows, columns = (np.flatnonzero(is_ink.any(axis=axis)) for axis in (1, 0))
    return strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _paper(grey: np.ndarray) -> tuple[float, float]:
    """The brightness of the paper, and the standard deviation of its noise, from the border, which is mostly paper."""
    border = _border(grey)
    middle = float(np.sort(border)[(len(border) - 1) // 2])
    # The median difference of neighbours, in standard deviations: of normal noise, and of noise that is clipped at
    # white or black.
    is_cut = np.mean((border <= 0) | (border >= 1)) > 0.25
    median_difference = 0.394 if is_cut else 0.954
    noise = float(np.median(np.abs(np.diff(border)))) / median_difference if len(border) > 1 else 0.0
    return float(border[np.abs(border - middle) <= 3 * noise].mean(dtype=np.float64)), noise


def _evenly_lit(grey: np.ndarray) -> np.ndarray:
    """The image less a plane through the medians of its four sides, where that makes its border more even."""
    height, width = grey.shape
    down, right = (float(np.median(side[-1]) - np.median(side[0])) for side in (grey, grey.T))
    light = down * np.linspace(-0.5, 0.5, height)[:, None] + right * np.linspace(-0.5, 0.5, width)
    lit = (grey - light).astype(np.float32)
    before, after = (np.abs(_border(levels) - np.median(_border(levels))).mean() for levels in (grey, lit))
    return lit if after < EVENLY * before else grey


def _means_of_nine(levels: np.ndarray) -> np.ndarray:
    """The mean of each pixel and its neighbours within the image."""
    sums, counts = (np.pad(array, 1) for array in (levels, np.ones_like(levels)))
    for _ in range(2):  # down the columns, and then along the rows
        sums, counts = ((array[:-2] + array[1:-1] + array[2:]).T for array in (sums, counts))
    return sums / counts


def resampling(before: int, after: int) -> Float32[np.ndarray, "after before"]:
    """The matrix that resamples a line of `before` pixels to `after`: linear interpolation when enlarging, and a
    triangle filter (anti-aliasing) when reducing."""
    scale = before / after
    reach = max(1.0, scale)
    centres = (np.arange(after) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(before) - centres[:, None]) / reach)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _start(mass: np.ndarray, length: int) -> int:
    """The start of a line of ink that puts its centre of mass in the middle, or as near to it as there is room."""
    centre = float(np.arange(len(mass)) @ mass / mass.sum())
    return min(max(0, _rounded(length / 2 - centre)), length - len(mass))


def _rounded(number: float) -> int:
    """To the nearest integer, halves up, as JavaScript's Math.round."""
    return math.floor(number + 0.5)


def _plain(picture: Picture, shape: tuple[int, ...]) -> Normal:
    levels = picture
    if len(shape) == 2 or shape[2:] == (picture.shape[2] if picture.ndim == 3 else 1,):
        levels = _with_channels(picture, list(shape[2:]))
    if levels.shape != shape:
        size, expected = (" x ".join(map(str, lengths)) for lengths in (picture.shape, shape))
        raise DataError(f"The picture is {size}; in the form plain it has to be {expected}.")
    return levels.astype(np.float32)


def _with_channels(picture: np.ndarray, channels: list[int]) -> np.ndarray:
    """The image in grey ([]) or with so many channels."""
    if channels in ([], [1]):  # the luma of ITU-R BT.601
        grey = picture if picture.ndim == 2 else picture @ np.array([0.299, 0.587, 0.114], np.float32)
        return grey[..., None] if channels else grey
    if channels != [3]:
        raise DataError(f"This network reads {channels[0]} channels; pictures of files have one or three.")
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)


def _border(levels: np.ndarray) -> np.ndarray:
    return np.concatenate([levels[0], levels[-1], levels[1:-1, 0], levels[1:-1, -1]])


def _fitted(levels: np.ndarray, height: int, width: int) -> Normal:
    """The whole image, scaled to fit, its aspect kept, on the colour of its border."""
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
