"""Arrays as pictures: which shapes and types are some, .npy files without NumPy's loader, large ones made smaller.

Knows arrays and bytes, no decoder: see `pictures` for files of all kinds.
"""

import io
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32

from lstm_mnist_jax.errors import DataError

Picture = Float32[np.ndarray, "height width"] | Float32[np.ndarray, "height width 3"]
"""From 0 (black) to 1 (white): grey, or red, green and blue."""

MAX_PIXELS = 52_000_000
"""Of a picture, and of all in an array of a file: decoding takes up to twenty bytes each, so a gigabyte at most."""

KEPT_SIZE = 1024
"""The longer side of what is made of larger pictures, in pixels, as soon as they are read: networks read far less."""

NPY = np.lib.format.MAGIC_PREFIX


def from_npy(content: bytes, shown: str) -> np.ndarray:
    """The array of a .npy file of any format version, byte order and memory order. Nothing is copied or unpickled.

    Args:
      content: of the file.
      shown: what it is called in errors.

    Raises:
      DataError: it is damaged, too large, or not of numbers.
    """
    file = io.BytesIO(content)
    try:
        major, _ = np.lib.format.read_magic(file)
        # Version 3 differs from 2 in the names of fields alone, which no picture has.
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that Python 2 wrote
            shape, is_fortran, dtype = read_header(file)
    except Exception as error:  # headers are Python literals, and say what they like
        raise DataError(f"{shown} is a damaged .npy file: its header cannot be read.") from error
    if dtype.hasobject:
        raise DataError(f"{shown} holds Python objects, which are not read. Save numbers.")
    _require_type(dtype, shown)
    if any(length < 0 for length in shape):
        raise DataError(f"{shown} is a damaged .npy file: it says that its shape is {list(shape)}.")
    _require_shape(shape, shown)
    require_pixels(shape[:3], shown)
    count, start = int(np.prod(shape)), file.tell()
    if (missing := count * dtype.itemsize - (len(content) - start)) > 0:
        raise DataError(f"{shown} is a damaged .npy file: {missing:,} bytes of its numbers are missing.")
    flat = np.frombuffer(content, dtype, count, start)
    return flat.reshape(shape, order="F" if is_fortran else "C")


def pictures_of(array: np.ndarray, shown: str = "The array") -> Iterator[Picture]:
    """The pictures in an array, one after another.

    Args:
      array: uint8 (0 to 255), uint16 (0 to 65,535), bool, or floats from 0 to 1: [height, width], or [height, width,
        3] in colour; and any number of these, [n, height, width] or [n, height, width, 3].
      shown: what it is called in errors.

    Raises:
      DataError: it is of another shape or type, empty, or holds other numbers.
    """
    _require_type(array.dtype, shown)
    _require_shape(array.shape, shown)
    if array.dtype.kind == "f" and not ((array >= 0) & (array <= 1)).all():  # nor is NaN
        raise DataError(f"{shown} holds floats outside 0 to 1, or NaN. Divide by the largest, or save uint8.")
    return map(_picture, [array] if is_one_picture(array) else array)


def is_one_picture(array: np.ndarray) -> bool:
    """Whether an array is a picture, rather than several of them."""
    return array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3))


def require_pixels(lengths: Sequence[int], shown: str) -> None:
    """Refuses what would take too much memory, before any is taken.

    Raises:
      DataError: there are more than `MAX_PIXELS`.
    """
    count = 1
    for length in lengths:
        count *= int(length)  # Python's integers do not overflow
    if count > MAX_PIXELS:
        size = " x ".join(f"{length:,}" for length in lengths)
        raise too_large(shown, size if len(size) < 80 else "far too many")


def too_large(shown: str, size: str) -> DataError:
    """The error of a picture of so many pixels, in words."""
    return DataError(f"{shown} is too large ({size} pixels; at most {MAX_PIXELS:,} are read). Save it smaller.")


def _require_type(dtype: np.dtype, shown: str) -> None:
    if not (dtype.kind in "bf" or (dtype.kind == "u" and dtype.itemsize <= 2)):
        raise DataError(
            f"{shown} is of type {dtype}; expected uint8 (0 to 255), uint16 (0 to 65,535), bool, or floats from 0 to 1."
        )


def _require_shape(shape: tuple[int, ...], shown: str) -> None:
    if len(shape) not in (2, 3, 4) or (len(shape) == 4 and shape[-1] not in (1, 3)):
        raise DataError(
            f"{shown} has shape {list(shape)}; expected [height, width], [height, width, 3], [n, height, width] or "
            "[n, height, width, 3]."
        )
    if 0 in shape:
        raise DataError(f"{shown} is empty: its shape is {list(shape)}.")


def _picture(array: np.ndarray) -> Picture:
    levels = reduced(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array, KEPT_SIZE)
    return levels / np.float32(np.iinfo(array.dtype).max) if array.dtype.kind == "u" else levels


def reduced(array: np.ndarray, most: int) -> np.ndarray:
    """The means over squares of pixels, as small as they can be for at most `most` of them side by side."""
    side = -(-max(array.shape[:2]) // most)
    if side == 1:
        return array.astype(np.float32, copy=False)
    for axis, length in enumerate(array.shape[:2]):
        starts = np.arange(0, length, side)
        lengths = np.diff(starts, append=length).astype(np.float32)
        sums = np.add.reduceat(array, starts, axis=axis, dtype=np.float32)
        array = sums / lengths.reshape(-1, *[1] * (array.ndim - 1 - axis))
    return array
