"""Picture files in, arrays out: PNG, JPEG, BMP, GIF, WebP and .npy, whatever is in them.

Nothing in a file is trusted: sizes are checked before anything is decoded, pickles are refused, and what a decoder
stumbles over becomes a `DataError`. Knows no model, and not what a picture is to look like: see `normal_form`.
"""

import contextlib
import glob
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lstm_mnist_jax.data.picture_arrays import (
    KEPT_SIZE,
    NPY,
    Picture,
    from_npy,
    is_one_picture,
    pictures_of,
    require_pixels,
    too_large,
)
from lstm_mnist_jax.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".npy")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")

MAX_BYTES = 256 * 2**20
"""Of a file."""

STDIN = "-"


def find_pictures(words: Sequence[str]) -> list[str]:
    """The files that people mean: folders stand for the pictures in them, patterns for the files that they match.

    A word that names nothing stays as it is, for `read_pictures` to say so.
    """
    found: list[str] = []
    for word in words:
        path = word if word == STDIN else os.path.expanduser(word)
        if word != STDIN and os.path.isdir(path):
            inside = (file for file in Path(path).rglob("*") if file.suffix.lower() in SUFFIXES)
            found += sorted(str(file) for file in inside if not os.path.isdir(file)) or [path]
        elif word != STDIN and not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(match for match in glob.glob(path, recursive=True) if not os.path.isdir(match))
            found += matches or [path]
        else:
            found.append(path)
    return found


def read_pictures(name: str) -> Iterator[tuple[str, Picture]]:
    """The pictures of a file, with a name for each: one, or those of a .npy file with an axis more.

    Args:
      name: a file, or "-" for what comes on standard input.

    Raises:
      DataError: there is no such file, it is no picture, damaged, or too large.
    """
    try:
        content = _read_stdin() if name == STDIN else _read(name)
    except OSError as error:
        raise DataError(f"{printable(name)} cannot be read: {error.strerror or error}.") from error
    name = "standard input" if name == STDIN else name
    shown = printable(name)
    if not content:
        raise DataError(f"{shown} is empty.")
    if len(content) > MAX_BYTES:
        raise DataError(f"{shown} is larger than {MAX_BYTES // 2**20} MiB, too large for a picture.")
    if not content.startswith(NPY):
        yield name, _decode(content, shown)
        return
    array = from_npy(content, shown)
    for n, picture in enumerate(pictures_of(array, shown)):
        yield (name if is_one_picture(array) else f"{name}[{n}]"), picture


def printable(name: str) -> str:
    """A file's name with escapes in the place of what would confuse a terminal."""
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


def _decode(content: bytes, shown: str) -> Picture:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here, and of metadata, which do not matter
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                require_pixels(image.size, shown)
                # Not so a camera's JPEG of several pictures (MPO): the first is the photograph.
                if image.format in ("GIF", "PNG", "WEBP") and getattr(image, "is_animated", False):
                    raise DataError(f"{shown} is animated. Save the picture of it that you mean, alone.")
                return _as_levels(image, shown)
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{shown} is no picture that can be read: expected {', '.join(FORMATS)} or .npy.") from error
    except Image.DecompressionBombError as error:
        raise too_large(shown, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,}") from error
    except Exception as error:  # decoders raise whatever the bytes lead them into
        raise DataError(f"{shown} is damaged: {str(error) or type(error).__name__}.") from error


def _as_levels(image: "Image.Image", shown: str) -> Picture:
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits of grey
        (picture,) = pictures_of(np.asarray(_turned(image)).clip(0, 65535).astype(np.uint16), shown)
        return picture
    image.draft(None, (KEPT_SIZE, KEPT_SIZE))  # JPEG decodes to an eighth at once, for an eighth of the time
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = _on_paper(_turned(_small(image.convert("RGBA"))))
    else:
        image = _turned(_small(image if image.mode in ("L", "RGB") else image.convert("RGB")))
    levels = np.asarray(image, np.float32) / 255
    if levels.ndim == 3 and (levels[..., :1] == levels).all():
        levels = levels[..., 0]
    return levels


def _small(image: "Image.Image") -> "Image.Image":
    image.thumbnail((KEPT_SIZE, KEPT_SIZE), reducing_gap=2.0)
    return image


def _turned(image: "Image.Image") -> "Image.Image":
    """As the camera was held."""
    from PIL import ImageOps

    with contextlib.suppress(Exception):  # of damaged EXIF data; the picture is there all the same
        return ImageOps.exif_transpose(image)
    return image


def _on_paper(image: "Image.Image") -> "Image.Image":
    """A transparent picture on white, or where what is on it is light, on black."""
    from PIL import Image

    pixels = np.asarray(image, np.float32) / 255
    opacity = pixels[..., 3]
    brightness = pixels[..., :3].mean(axis=-1)
    light = (brightness * opacity).sum() > 0.5 * opacity.sum()
    paper = Image.new("RGBA", image.size, (0, 0, 0, 255) if light else (255, 255, 255, 255))
    return Image.alpha_composite(paper, image).convert("RGB")
