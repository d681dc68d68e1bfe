"""Image files as arrays: PNG, JPEG, BMP, GIF, WebP, TIFF, JPEG 2000, AVIF and .npy, and arrays that are images already.

Files are not trusted: sizes are checked before anything is decoded, pickles are refused, and every error of a decoder
becomes a `DataError`. `normal_form` turns the result into what a network reads.
"""

import contextlib
import glob
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from lstm_mnist_jax.errors import DataError, os_errors_as

if TYPE_CHECKING:
    from PIL import Image

Picture = Float32[np.ndarray, "height width"] | Float32[np.ndarray, "height width 3"]
"""From 0 (black) to 1 (white): grey, or red, green and blue."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".jp2", ".avif", ".npy")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "JPEG2000", "AVIF")
REFUSED_SUFFIXES = (".heic", ".heif")
"""Of pictures that are not read, but are named with what to do, instead of being left out."""

HEIC_BRANDS = ("heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs", "mif1", "msf1")
AVIF_BRANDS = ("avif", "avis")
"""In the first bytes of a file, ISO/IEC 14496-12; an AVIF file has those of HEIF as well."""

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
"""Of Pillow, what is converted to grey or RGB without a choice to make."""

STDIN = "-"

MAX_BYTES = 256 * 2**20
"""The largest file."""

MAX_PIXELS = 52_000_000
"""The most pixels in a file. Decoding takes up to 20 bytes a pixel, so 1 GB at most."""

TIFF_TILE = (322, 323)
"""The tags of the width and height of a tile, which is decoded as a whole."""

LONG_STRIP = 8
"""An array so many times as long as wide is no picture, where its rows can be images."""

VISIBLE = 16 / 255
"""Images in which nothing is brighter, as a fraction of white, have another scale: of 0 to 16, or of 12 bits."""

KEPT_SIZE = 1024
"""Larger images are reduced to this length of the longer side, in pixels, as soon as they are read."""


def find_pictures(words: Sequence[str]) -> list[str]:
    """The image files in folders, the files that match patterns, and all other words as they are."""
    found: list[str] = []
    for word in words:
        path, matches = os.path.expanduser(word), []
        if word != STDIN and os.path.isdir(path):
            endings = (*SUFFIXES, *REFUSED_SUFFIXES)
            matches = [str(file) for file in Path(path).rglob("*") if file.suffix.lower() in endings]
        elif not os.path.lexists(path) and glob.has_magic(path):
            matches = glob.glob(path, recursive=True)
        found += sorted(match for match in matches if not os.path.isdir(match)) or [path]
    return found


def read_pictures(
    name: str, note: Callable[[str], None] | None = None, size: tuple[int, ...] = ()
) -> Iterator[tuple[str, Picture]]:
    """The images in a file, each with a name. All are read of a .npy file, and the first of other files.

    Args:
      name: a file, or "-" for standard input.
      note: is called with a line of text if the file holds further pictures (an animation, pages). None refuses such a
        file.
      size: (height, width) or (height, width, 3) of images that may be the rows of a .npy file, [n, height * width], or
        of any width, as for `pictures_of`; () takes each array of two axes for one image.

    Raises:
      DataError: there is no such file, or it is not an image, damaged, or too large.
    """
    with os_errors_as(DataError, printable(name), "read"):
        content = _read_stdin() if name == STDIN else _read(name)
    name = "standard input" if name == STDIN else name
    shown = printable(name)
    if not content:
        raise DataError(f"{shown} is empty.")
    if len(content) > MAX_BYTES:
        raise DataError(f"{shown} is larger than {MAX_BYTES // 2**20} MiB, too large for a picture.")
    if not content.startswith(np.lib.format.MAGIC_PREFIX):
        yield name, _decode(content, shown, note)
        return
    array = _from_npy(content, shown, size)
    if size and array.ndim == 2 and array.shape[1] == math.prod(size) and array.shape != size:
        count, width, each = *array.shape, " x ".join(map(str, size))
        if max(array.shape) >= LONG_STRIP * min(array.shape):
            array = array.reshape(-1, *size)
            said = f"an array of {count:,} x {width} is read as {count:,} image{'s' * (count > 1)} of {each}, one a row"
        else:
            listed = ", ".join(map(str, (count, *size)))
            said = f"read as one picture of {count} x {width}; if each row is an image of {each}, save it as [{listed}]"
        if note is not None:
            note(said)
    for n, picture in enumerate(pictures_of(array, shown, size)):
        yield (name if _is_one_picture(array.shape, size) else f"{name}[{n}]"), picture


def pictures_of(given: Any, shown: str = "The array", size: tuple[int, ...] = ()) -> Iterator[Picture]:
    """One picture or several, one after another.

    Args:
      given: an array, which is one picture or several by its axes: [height, width], or [height, width, 3] in colour;
        [n, height, width] or [n, height, width, 3]. Or an image of Pillow, read as a file is. Or a list of these, or
        others that are iterated: several pictures, one each. Nested lists of numbers are the array that NumPy makes of
        them. The numbers: integers from 0 to 255, uint16 (0 to 65,535), bool, or floats from 0 to 1.
      shown: the name of the array, or of each in a list, in errors.
      size: (height, width) of images that are grey also where they are 1, 3 or 4 pixels wide, as are colours.

    Raises:
      DataError: an array is of another shape or type, empty, or holds other numbers; or one in a list is several
        pictures.
    """
    if isinstance(given, list | tuple) and given and isinstance(given[0], list | tuple):
        given = array_of(given, shown)
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(given, pillow.Image) and given.mode != "F":
        return iter([_from_pillow(given, shown)])
    is_array = hasattr(given, "ndim") and str(getattr(given, "dtype", None)) != "object"  # which holds arrays
    if isinstance(given, Iterable) and not is_array and not isinstance(given, str | bytes):
        return (one_picture(each, shown, size) for each in given)
    array = array_of(given, shown)
    _require_pictures(array.dtype, array.shape, shown, size)
    array = checked_levels(array, shown)
    return map(_picture, [array] if _is_one_picture(array.shape, size) else array)


def one_picture(given: Any, shown: str, size: tuple[int, ...] = ()) -> Picture:
    """As `pictures_of`, of one picture. Raises DataError where there are several, or none."""
    pictures = [*pictures_of(given, shown, size)]
    if len(pictures) != 1:
        shape = f", of shape {list(given.shape)}" if hasattr(given, "shape") else ""
        raise DataError(f"{shown} is {len(pictures)} pictures{shape}; give one.")
    return pictures[0]


def array_of(given: Any, shown: str) -> np.ndarray:
    """An array, one of bfloat16 as float32. Raises DataError for a file's name, and for lists that make no array."""
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise DataError(
            f"{shown} is a list whose parts differ in shape; give an array, or a list of arrays."
        ) from error
    if (
        array.dtype.kind in "OSU"
        and array.size
        and array.ndim < 2
        and isinstance(name := array.flat[0], str | bytes | os.PathLike)
    ):
        name = str(os.fsdecode(name))
        name = name if len(name) < 200 else f"{name[:60]}..."  # the contents of a file
        raise DataError(
            f"{shown} is the text {name!r}, expected an array. For a file: from lstm_mnist_jax.data.pictures import "
            f"read_pictures; picture = next(read_pictures({name!r}))[1]."
        )
    return array.astype(np.float32) if array.dtype.kind == "V" and array.dtype.name == "bfloat16" else array


def checked_levels(array: np.ndarray, shown: str) -> np.ndarray:
    """Images as bool, uint8 (0 to 255), uint16 (0 to 65,535) or floats (0 to 1), in an array of any shape.

    Raises:
      DataError: it is of another type, or holds numbers out of range, or none that differs visibly from black, as where
        1 or 16 is white in integers, or floats were divided by 255 twice.
    """
    if array.dtype == np.uint8 and array.max(initial=0) > 255 * VISIBLE:
        return array  # as usual: of a single image, the rest takes a tenth of its prediction
    kind = array.dtype.kind
    most = 1 if kind == "f" else 65535 if kind == "u" and array.dtype.itemsize == 2 else 255
    read = f"{shown} is of type {array.dtype}, which is read from 0 to {most:,}"
    if kind not in "bfiu":
        raise DataError(
            f"{shown} is of type {array.dtype}; expected integers from 0 to 255, uint16 (0 to 65,535), bool, or floats "
            "from 0 to 1."
        )
    if kind == "b" or array.size == 0:
        return array
    darkest, brightest = array.min(), array.max()
    if not (darkest >= 0 and brightest <= most):  # nor is NaN
        value = array[place := _first(~((array >= 0) & (array <= most)))]
        what = "Divide by the value of white, such as 255, or use uint8." if kind == "f" else ""
        if not np.isfinite(value):
            what = "Replace NaN and infinity, by 0 for black."
        elif kind == "f" and darkest < 0:
            what = "Undo a normalization: some are negative."
        read = f"{shown} holds floats outside 0 to 1" if kind == "f" else read
        raise DataError(f"{read}: at {list(place)} is {value:g}. {what}".rstrip())
    if 0 < brightest <= most * VISIBLE:
        found = f"{brightest:.3g} ({255 * brightest:.3g} of 255)" if kind == "f" else f"{brightest}"
        other = {"1": ", or use bool", "255": ", or use uint8"}.get(found, "")
        raise DataError(
            f"{read}, but nothing is above {found}. If that is white, multiply by {most / brightest:.4g}{other}."
        )
    return array.astype(np.uint8, copy=False) if most == 255 else array


def _first(which: np.ndarray) -> tuple[int, ...]:
    """The index of the first True."""
    return tuple(int(n) for n in np.unravel_index(which.argmax(), which.shape))


def reduced(array: np.ndarray, most: int) -> np.ndarray:
    """The means over squares of pixels, of the smallest side that leaves at most `most` of them side by side."""
    side = -(-max(array.shape[:2]) // most)
    if side == 1:
        return array.astype(np.float32, copy=False)
    for axis, length in enumerate(array.shape[:2]):
        starts = np.arange(0, length, side)
        lengths = np.diff(starts, append=length).astype(np.float32)
        sums = np.add.reduceat(array, starts, axis=axis, dtype=np.float32)
        array = sums / lengths.reshape(-1, *[1] * (array.ndim - 1 - axis))
    return array


def printable(name: str) -> str:
    """A file's name with escapes for control characters and others that would confuse a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError("Standard input is a terminal. Send a picture: lstm-mnist predict RUN_DIR - < digit.png")
    return sys.stdin.buffer.read(MAX_BYTES + 1)


def _read(name: str) -> bytes:
    if os.path.isdir(name):
        raise DataError(f"The folder {printable(name)} holds no pictures ({', '.join(SUFFIXES)}).")
    try:
        with open(name, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        what = "file that matches" if glob.has_magic(name) else "file"
        raise DataError(f"There is no {what} {printable(name)}.") from error


def _from_npy(content: bytes, shown: str, size: tuple[int, ...]) -> np.ndarray:
    """The array of a .npy file of any format version, byte order and memory order. Nothing is copied or unpickled."""
    file = io.BytesIO(content)
    try:
        major, _ = np.lib.format.read_magic(file)
        # Version 3 differs from 2 in the names of fields alone, which no image has.
        read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that Python 2 wrote
            shape, is_fortran, dtype = read_header(file)
    except Exception as error:  # a header is a Python literal, which may hold anything
        raise DataError(f"{shown} is a damaged .npy file: its header cannot be read.") from error
    if dtype.hasobject:
        raise DataError(f"{shown} holds Python objects, which are not read. Save numbers.")
    if any(length < 0 for length in shape):
        raise DataError(f"{shown} is a damaged .npy file: its header gives the shape {list(shape)}.")
    _require_pictures(dtype, shape, shown, size)
    _require_pixels(shape[:3], shown)
    count, start = math.prod(shape), file.tell()
    if (missing := count * dtype.itemsize - (len(content) - start)) > 0:
        raise DataError(f"{shown} is a damaged .npy file: {missing:,} bytes of its numbers are missing.")
    return np.frombuffer(content, dtype, count, start).reshape(shape, order="F" if is_fortran else "C")


def _is_one_picture(shape: tuple[int, ...], size: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3) and shape[1:] != size)


def _require_pictures(dtype: np.dtype, shape: tuple[int, ...], shown: str, size: tuple[int, ...]) -> None:
    checked_levels(np.zeros(0, dtype), shown)
    if len(shape) not in (2, 3, 4) or (len(shape) == 4 and shape[-1] not in (1, 3)):
        raise DataError(
            f"{shown} has shape {list(shape)}; expected [height, width], [height, width, 3], [n, height, width] or "
            "[n, height, width, 3]."
        )
    if len(shape) == 3 and shape[-1] == 4 and shape[1:] != size:
        raise DataError(
            f"{shown} has shape {list(shape)}, as with transparency; make an image of it, which is put on "
            "white: PIL.Image.fromarray(array)."
        )
    if 0 in shape:
        raise DataError(f"{shown} is empty: its shape is {list(shape)}.")


def _require_pixels(lengths: Sequence[int], shown: str) -> None:
    """Raises DataError before any memory is taken for more than `MAX_PIXELS`."""
    if math.prod(map(int, lengths)) > MAX_PIXELS:  # Python's integers do not overflow
        size = " x ".join(f"{length:,}" for length in lengths)
        raise _too_large(shown, size if len(size) < 80 else "far too many")


def _too_large(shown: str, size: str) -> DataError:
    return DataError(f"{shown} is too large ({size} pixels; at most {MAX_PIXELS:,} are read). Save it smaller.")


def _picture(array: np.ndarray) -> Picture:
    levels = reduced(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array, KEPT_SIZE)
    return as_floats(levels, array.dtype)


def as_floats(levels: np.ndarray, dtype: np.dtype) -> Float32[np.ndarray, "..."]:
    """Levels, or means of levels, of an array of such a type, as float32 from 0 to 1."""
    levels = levels.astype(np.float32, copy=False)
    return levels / np.float32(np.iinfo(dtype).max) if dtype.kind == "u" else levels


def _decode(content: bytes, shown: str, note: Callable[[str], None] | None) -> Picture:
    from PIL import Image

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # AVIF is new in Pillow 11.3
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here, and of metadata, which do not matter
            with Image.open(io.BytesIO(content), formats=formats) as image:
                _require_pixels(image.size, shown)
                if image.format == "TIFF":
                    _require_pixels([image.tag_v2.get(tag, 0) for tag in TIFF_TILE], shown)  # type: ignore[attr-defined]
                # Not so a camera's JPEG of several images (MPO): the first is the photograph.
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    if note is None:
                        raise DataError(f"{shown} holds several pictures. Save the one that you mean, alone.")
                    note("the file holds several pictures, of which the first is read")
                return _as_levels(image, shown)
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{shown} {_why_unknown(content)}") from error
    except Image.DecompressionBombError as error:
        raise _too_large(shown, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,}") from error
    except Exception as error:  # decoders raise errors of many types
        raise DataError(f"{shown} is damaged: {str(error) or type(error).__name__}.") from error


def _why_unknown(content: bytes) -> str:
    """What a file is that Pillow does not know, by the brands in its first box if it has one."""
    if content.startswith(b"PK\3\4"):
        return (
            "is an archive, such as a data set in .npz. Save its images as one array in a .npy file: "
            "numpy.save('images.npy', numpy.load('data.npz')['x_test'])."
        )
    brands = set[str]()
    if content[4:8] == b"ftyp":
        box = content[8 : min(max(16, int.from_bytes(content[:4], "big")), 256)]
        brands = {box[at : at + 4].decode("latin-1") for at in range(0, len(box), 4)}
    if brands & set(AVIF_BRANDS):
        return "is an AVIF picture that cannot be read: it is damaged, or Pillow is older than 11.3. Convert it to PNG."
    if brands & set(HEIC_BRANDS):
        return (
            "is a HEIC picture, the format of iPhones, which is not read. Convert it to JPEG: export it with Photos or "
            "Preview, or run: heif-convert IN.heic OUT.jpg. (Settings > Camera > Formats > Most Compatible: the iPhone "
            "saves JPEG.)"
        )
    return f"is no picture that can be read: expected {', '.join(FORMATS)} or .npy."


def _as_levels(image: "Image.Image", shown: str) -> Picture:
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits of grey
        levels = np.asarray(_upright(image))
        if levels.min() < 0 or levels.max() > 65535:
            raise DataError(f"{shown} holds integers outside 0 to 65,535. Save it with 8 or 16 bits per pixel.")
        return one_picture(levels.astype(np.uint16), shown)
    if image.mode not in MODES:
        what = "floats" if image.mode == "F" else f"colours of the kind {image.mode}"
        raise DataError(f"{shown} holds {what}. Save it as grey or RGB, with 8 or 16 bits.")
    image.draft(None, (KEPT_SIZE, KEPT_SIZE))  # JPEG decodes to an eighth at once, for an eighth of the time
    transparent = "A" in image.mode or "a" in image.mode or "transparency" in image.info
    if transparent or image.mode not in ("L", "RGB"):
        image = image.convert("RGBA" if transparent else "RGB")
    image.thumbnail((KEPT_SIZE, KEPT_SIZE), reducing_gap=2.0)
    image = _on_background(_upright(image)) if transparent else _upright(image)
    levels = np.asarray(image, np.float32) / 255
    return levels[..., 0] if levels.ndim == 3 and (levels[..., :1] == levels).all() else levels


def _from_pillow(image: "Image.Image", shown: str) -> Picture:
    _require_pixels(image.size, shown)
    try:
        return _as_levels(_upright(image).copy(), shown)
    except (OSError, SyntaxError) as error:  # it is read from its file only now
        raise DataError(f"{shown} is damaged: {error}.") from error


def _upright(image: "Image.Image") -> "Image.Image":
    """A photograph rotated as its EXIF data require."""
    from PIL import ImageOps

    with contextlib.suppress(Exception):  # of damaged EXIF data; the image is there all the same
        return ImageOps.exif_transpose(image)
    return image


def _on_background(image: "Image.Image") -> "Image.Image":
    """A transparent image on white, or on black where its opaque pixels are light."""
    from PIL import Image

    pixels = np.asarray(image, np.float32) / 255
    opacity, brightness = pixels[..., 3], pixels[..., :3].mean(axis=-1)
    light = (brightness * opacity).sum() > 0.5 * opacity.sum()
    background = Image.new("RGBA", image.size, (0, 0, 0, 255) if light else (255, 255, 255, 255))
    return Image.alpha_composite(background, image).convert("RGB")
