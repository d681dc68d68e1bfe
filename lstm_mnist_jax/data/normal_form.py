"""Preprocessing of images for prediction: to MNIST's normal form, or fitted to the size of the training images.

MNIST's normal form (yann.lecun.com/exdb/mnist): the larger side of a digit is scaled to 20 pixels with anti-aliasing,
its aspect kept, and its centre of mass is in the middle of 28 x 28 pixels, white on black.

`lstm_mnist_jax.data.digits` finds the digits on a picture. A report's page does the same in JavaScript
(lstm_mnist_jax/report/page/): a change here needs the same change there.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from lstm_mnist_jax.data.digits import Ink, find_ink
from lstm_mnist_jax.data.ink import LEAST_CONTRAST, rounded
from lstm_mnist_jax.data.pictures import Picture, reduced
from lstm_mnist_jax.errors import DataError, did_you_mean

FORMS = ("digit", "whole", "plain")

FACES = 20 / 28
"""The larger side of a digit, as a fraction of the side of the image."""

SOUGHT_SIZE = 512
"""Larger images are reduced to this length of the longer side, in pixels, before the digits are searched."""

FAINT_EDGE = 0.01
"""The edge of a stroke, as a fraction of the darkest ink, in an image that is in normal form already, whose outermost
pixels may be nearly white;"""

EDGE = 0.25
"""and in others."""

SURE_OF_EDGE = 3.0
"""The least level of a stroke's edge, in standard deviations of the noise."""

TAKEN_OFF = 2.0
"""The noise that is subtracted after scaling, in standard deviations."""

FINE = 4
"""Strokes are measured and thickened on images of so many times the side of a digit."""

THIN, NORMAL = 1.1, 2.2
"""Strokes that are thinner than the first are thickened to the second, in pixels of a digit of 20."""

FORM_EXAMPLES = 200
"""So many of the training images decide the form of a data set."""

UNEVEN = 12
"""The levels of paper in the training images, of 255, differ by so much at most, as after JPEG."""

SIGN = "it may be a sign or a line"
UNREAD = "a mark beside it is not read"

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


def are_digits(class_names: Sequence[str]) -> bool:
    """Whether the classes of a data set are named by digits, as numbered classes of any kind are."""
    return set(class_names) <= set("0123456789")


def default_form(images: UInt8[np.ndarray, "n height width *channels"], class_names: Sequence[str]) -> str:
    """The form of pictures for a network that was trained on these images: "digit" if the classes are digits and most
    of the images are strokes of one size, about that of MNIST, on paper of one level; else "whole"."""
    if not are_digits(class_names) or images.ndim != 3 or not len(images):
        return "whole"
    levels = images[:FORM_EXAMPLES].astype(np.int16)
    border = np.concatenate([levels[:, 0], levels[:, -1], levels[:, :, 0], levels[:, :, -1]], axis=1)
    paper = np.median(border, axis=1)
    is_even = (np.abs(border - paper[:, None]) <= UNEVEN).mean(axis=1) >= 0.9
    ink = np.abs(levels - paper[:, None, None].astype(np.int16))
    most = ink.max(axis=(1, 2), keepdims=True)
    is_ink = (ink > EDGE * most) & (most > 4 * UNEVEN)
    rows, columns = is_ink.any(axis=2), is_ink.any(axis=1)
    lengths = [line.shape[1] - line.argmax(axis=1) - line[:, ::-1].argmax(axis=1) for line in (rows, columns)]
    sizes = np.maximum(*lengths)
    size = np.median(sizes)
    are_alike = is_even & (np.minimum(paper, 255 - paper) <= UNEVEN) & (np.abs(sizes - size) <= max(1, 0.1 * size))
    is_size = 0.6 <= size / min(levels.shape[1:]) <= 0.9
    return "digit" if is_size and are_alike.mean() >= 0.75 and is_ink.sum() < 0.5 * np.square(sizes).sum() else "whole"


class Digit(NamedTuple):
    """A digit on a picture.

    Attributes:
      image: in MNIST's normal form.
      box: (top, left, height, width) on the picture, as fractions of its height and width.
      warning: why it may not be one digit, or not all of the ink; None if nothing was found. A run adds what it finds.
      marks: the boxes of other ink that is not read, of which this is the nearest digit: a sign beside it, a line below
        it, a part of it that was not recognized as such.
    """

    image: Float32[np.ndarray, "rows columns"]
    box: tuple[float, float, float, float]
    warning: str | None = None
    marks: tuple[tuple[float, float, float, float], ...] = ()


def find_digits(picture: Picture, height: int = 28, width: int = 28) -> list[Digit]:
    """The digits on a picture, from left to right and line by line, each in MNIST's normal form.

    Args:
      picture: from 0 to 1, [height, width] or [height, width, 3], of any size: a photograph, scan or drawing, dark on
        light or light on dark. Tables around the paper, shadows, ruled lines, frames and specks are left out.
      height, width: of the images.

    Raises:
      DataError: no ink can be distinguished from the paper.
    """
    grey = _with_channels(reduced(picture, SOUGHT_SIZE), []).astype(np.float64)
    side = rounded(FACES * min(height, width))
    if _is_in_normal_form(grey, height, width, side):
        image = np.abs(grey - np.median(_border(grey)))
        return [Digit(image.astype(np.float32), (0.0, 0.0, 1.0, 1.0))]
    inks = find_ink(grey)
    if not inks:
        if np.ptp(grey) < LEAST_CONTRAST:
            raise DataError("Nothing can be seen on the picture. It is of one colour, or nearly so.")
        raise DataError(
            "No digit can be seen on the picture. No part of it differs from its surroundings as strokes do, or only "
            "straight lines, as of ruled paper, a minus or =."
        )
    return [_digit(ink, grey.shape, height, width, side) for ink in inks]


def digit(picture: Picture, height: int = 28, width: int = 28) -> Float32[np.ndarray, "rows columns"]:
    """Handwriting in MNIST's normal form: the largest digit, if there are several. An image in this form is unchanged.

    Raises:
      DataError: no ink can be distinguished from the paper.
    """
    return max(find_digits(picture, height, width), key=lambda digit: max(digit.box[2:])).image


def _is_in_normal_form(grey: np.ndarray, height: int, width: int, side: int) -> bool:
    """Whether a picture has the normal size, paper of one level, and ink, down to the faintest, of a digit's size."""
    if grey.shape != (height, width) or (paper := np.median(_border(grey))) not in (0, 1):
        return False
    levels = np.abs(grey - paper)
    if levels.max() < 0.9:
        return False
    boxes = [_box(levels, edge * levels.max()) for edge in (FAINT_EDGE, EDGE)]
    return any(max(rows.stop - rows.start, columns.stop - columns.start) == side for rows, columns in boxes)


def _digit(ink: Ink, shape: tuple[int, ...], height: int, width: int, side: int) -> Digit:
    """A digit in normal form."""
    strokes, noise = ink.levels, ink.noise
    most = _level(strokes, ink.core)
    rows, columns = _box(strokes, max(EDGE * most, min(SURE_OF_EDGE * noise, 0.75 * most)))
    strokes = strokes[rows, columns]
    box = (
        (ink.top + rows.start) / shape[0],
        (ink.left + columns.start) / shape[1],
        strokes.shape[0] / shape[0],
        strokes.shape[1] / shape[1],
    )
    thicker = _thickened(np.minimum(strokes, most), side)
    strokes, noise = (strokes, noise) if thicker is None else (thicker, 0.0)
    tall, wide = (max(1, rounded(side * length / max(strokes.shape))) for length in strokes.shape)
    if strokes.shape != (tall, wide):
        by_row, by_column = resampling(strokes.shape[0], tall), resampling(strokes.shape[1], wide)
        strokes = by_row @ strokes @ by_column.T
        noise *= math.sqrt(np.square(by_row[tall // 2]).sum() * np.square(by_column[wide // 2]).sum())
    most = min(most, float(strokes.max()))
    least = min(TAKEN_OFF * noise, 0.5 * most)
    strokes = np.clip((strokes - least) / (most - least), 0, 1)
    top, left = (_start(strokes.sum(axis=axis), length) for axis, length in ((1, height), (0, width)))
    normal = np.zeros((height, width), np.float32)
    normal[top : top + tall, left : left + wide] = strokes
    marks = tuple(
        (top / shape[0], left / shape[1], (bottom - top) / shape[0], (right - left) / shape[1])
        for top, bottom, left, right in ink.marks
    )
    doubts = [SIGN] * ink.is_sign + [UNREAD] * bool(marks)
    return Digit(normal, box, "; ".join(doubts) or None, marks)


def _level(strokes: np.ndarray, core: np.ndarray) -> float:
    """The level of the ink: that which a quarter of the pixels of its strokes reaches."""
    levels = np.sort(strokes[core])
    return float(levels[(3 * (len(levels) - 1)) // 4])


def _thickened(strokes: np.ndarray, side: int) -> np.ndarray | None:
    """Strokes of a thin pen, as thick as those of MNIST; None if they are that thick."""
    from scipy.ndimage import maximum_filter, minimum_filter

    longest, fine = max(strokes.shape), FINE * side
    tall, wide = (max(1, rounded(fine * length / longest)) for length in strokes.shape)
    scaled = resampling(strokes.shape[0], tall) @ strokes @ resampling(strokes.shape[1], wide).T
    mask = np.pad(scaled > 0.4 * scaled.max(), 1)
    inner = minimum_filter(mask, 3)
    width = 2 / max(1 - inner.sum() / max(mask.sum(), 1), 0.01)  # of the strokes
    missing = rounded((NORMAL * fine / 20 - width) / 2)
    if width >= THIN * fine / 20 or missing <= 0:
        return None
    disc = np.hypot(*np.ogrid[-missing : missing + 1, -missing : missing + 1]) <= missing + 0.3
    return maximum_filter(np.pad(scaled, missing), footprint=disc, mode="constant")


def _box(strokes: np.ndarray, edge: float) -> tuple[slice, slice]:
    """The rows and columns of the ink above a level."""
    is_ink = strokes > edge
    rows, columns = (np.flatnonzero(is_ink.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


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
    return min(max(0, rounded(length / 2 - centre)), length - len(mass))


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
    tall, wide = (min(most, max(1, rounded(scale * n))) for n, most in zip(levels.shape, (height, width), strict=False))
    fitted = np.moveaxis(levels.reshape(*levels.shape[:2], -1), -1, 0)
    fitted = resampling(levels.shape[0], tall) @ fitted @ resampling(levels.shape[1], wide).T
    paper = np.median(_border(levels), axis=0)
    canvas = np.empty((height, width, len(fitted)), np.float32)
    canvas[...] = paper
    top, left = (height - tall) // 2, (width - wide) // 2
    canvas[top : top + tall, left : left + wide] = np.moveaxis(fitted, 0, -1)
    return np.clip(canvas.reshape(height, width, *levels.shape[2:]), 0, 1)
