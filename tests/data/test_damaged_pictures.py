"""Files that are no pictures, damaged ones by the thousand, and the memory that pictures take."""

import io
import struct

import numpy as np
import programs
import pytest
from picture_files import animation, npy, png, saved
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from lstm_mnist_jax.data.normal_form import normalise
from lstm_mnist_jax.data.pictures import MAX_PIXELS, pictures_of, read_pictures
from lstm_mnist_jax.errors import DataError


def header_of(shape, kind="|u1"):
    return repr({"descr": kind, "fortran_order": False, "shape": shape})


def brands(*names):
    """The beginning of a file of HEIF's kind."""
    return struct.pack(">I", 16 + 4 * len(names)) + b"ftyp" + names[0] + bytes(4) + b"".join(names) + bytes(100)


def tiff(image):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, "TIFF")
    return file.getvalue()


def text_bomb():
    """A PNG with 100 MB of text in 100 kB."""
    text = PngInfo()
    text.add_text("Comment", "a" * 10**8, zip=True)
    file = io.BytesIO()
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(file, "PNG", pnginfo=text)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "no picture that can be read"),
        (png(20_000, 20_000), "too large"),
        (png(8_000, 8_000), "too large"),
        (png(100, 100), "is damaged"),
        (png(0, 0), "is damaged|no picture"),
        (png(28, 28, bytes(range(29)) * 28)[:60], "is damaged"),
        (animation("GIF"), "several pictures"),
        (animation("PNG"), "several pictures"),
        (animation("WEBP"), "several pictures"),
        (animation("TIFF"), "several pictures"),
        (brands(b"heic", b"mif1"), "a HEIC picture, .* Convert it to JPEG"),
        (brands(b"mif1", b"heic", b"hevc"), "a HEIC picture"),
        (brands(b"avif", b"mif1", b"miaf"), "an AVIF picture that cannot be read"),
        (brands(b"isom", b"mp42"), "no picture that can be read"),
        (tiff(np.zeros((5, 5), np.float32)), "holds floats"),
        (tiff(np.full((5, 5), 70_000, np.int32)), "integers outside 0 to 65,535"),
        (tiff(Image.new("LAB", (5, 5))), "colours of the kind LAB"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture that can be read"),  # would start a program
        (text_bomb(), "is damaged"),
        (saved(np.array([{}], object), allow_pickle=True), "Python objects"),
        (npy(header_of((10, 10))), "100 bytes of its numbers are missing"),
        (npy(header_of((100000, 100000))), "too large"),
        (npy(header_of((10**9, 10**9, 10**9))), "too large"),
        (npy(header_of((2**40, 1, 3))), "too large"),
        (npy(header_of((-3, 5))), "damaged .npy"),
        (npy(header_of((5, 5), "|V1000000000")), "of type"),
        (npy(header_of((5, 5), "<U1000000")), "of type"),
        (npy(header_of((5, 5), "|O")), "Python objects"),
        (npy("__import__('os').system('true')"), "damaged .npy"),
        (npy("{'descr': '|u1', 'fortran_order': False, 'shape': (10, 10), 'more': 1}"), "damaged .npy"),
        (npy("(" * 5000), "damaged .npy"),
        (b"\x93NUMPY\x07\x00", "damaged .npy"),
        (b"\x93NUMPY", "damaged .npy"),
        (saved(np.zeros((0, 5), np.uint8)), "is empty"),
        (saved(np.zeros(5, np.uint8)), "has shape"),
        (saved(np.zeros((1, 2, 3, 4, 5), np.uint8)), "has shape"),
        (saved(np.full((5, 5), np.nan)), r"at \[0, 0\] is nan. Replace NaN"),
        (saved(np.full((5, 5), np.inf, np.float16)), "outside 0 to 1"),
        (saved(np.diag([1.0, 255, 9])), r"outside 0 to 1: at \[1, 1\] is 255. Divide by the value of white"),
        (b"PK\3\4" + bytes(30), "is an archive, such as a data set in .npz. Save its images as one array in a .npy"),
        (saved(np.eye(5) - 0.3), r"at \[0, 1\] is -0.3. Undo a normalization"),
        (saved(np.diag([255, 256])), r"of type int64, which is read from 0 to 255: at \[1, 1\] is 256"),
        (saved(np.diag([255, -1])), r"at \[1, 1\] is -1"),
        (saved(np.eye(5, dtype=np.int64)), "nothing is above 1. If that is white, multiply by 255, or use bool"),
        (saved(np.eye(5, dtype=np.uint8)), "of type uint8, which is read from 0 to 255, but nothing is above 1"),
        (
            saved(np.full((5, 5), 255, np.uint16)),
            "nothing is above 255. If that is white, multiply by 257, or use uint8",
        ),
        (saved(np.eye(5) / 255), r"nothing is above 0.00392 \(1 of 255\). If that is white, multiply by 255"),
        (saved(np.full((5, 5), 4095, np.uint16)), "nothing is above 4095. If that is white, multiply by 16"),
        (saved(np.zeros((5, 5, 4), np.uint8)), r"as with transparency; make an image of it, which is put on white"),
        (saved(np.zeros((5, 5), complex)), "of type complex128"),
        (saved(np.zeros((5, 5), "U3")), "of type <U3"),
        (saved(np.zeros((5, 5), [("grey", "u1")])), "of type"),
        (saved(np.zeros((5, 5), "M8[s]")), "of type datetime64"),
    ],
)
def test_files_that_are_not_images_are_refused(content, message, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_pictures(str(tmp_path / "a")))


def test_the_name_of_a_file_is_no_picture():
    with pytest.raises(DataError, match=r"is the text 'digit.png', expected an array. For a file: from lstm_mnist_jax"):
        list(pictures_of(np.array("digit.png")))


def mutations(originals, rng, count):
    """Damaged files: some bytes changed, cut, repeated, or filled up with those of another."""
    for n in range(count):
        content = bytearray(originals[n % len(originals)])
        for _ in range(rng.integers(1, 5)):
            content[rng.integers(0, min(len(content), 80 if n % 2 else 10**9))] = rng.choice(
                [0, 1, 127, 128, 255, n % 256]
            )
        match n % 7:
            case 0:
                content = content[: rng.integers(0, len(content))]
            case 1:
                at, other = rng.integers(0, len(content)), originals[rng.integers(0, len(originals))]
                content = content[:at] + other[rng.integers(0, len(other)) :]
            case 2:
                at, length = rng.integers(0, len(content), 2)
                content = content[:at] + content[at : at + length] * 2 + content[at:]
        yield bytes(content)


def originals_of(digits):
    found = [saved(digits[:2]), saved(digits[0] / 255)]
    grey = Image.fromarray(digits[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    for image, kind, options in (
        (grey, "PNG", {}),
        (grey.convert("P"), "PNG", {"transparency": 0}),
        (grey.convert("RGBA"), "PNG", {"exif": exif}),
        (Image.fromarray(digits[0].astype(np.uint16) * 257), "PNG", {}),
        (grey, "JPEG", {"exif": exif}),
        (grey.convert("CMYK"), "JPEG", {"progressive": True}),
        (grey, "BMP", {}),
        (grey.convert("P"), "GIF", {"transparency": 0}),
        (grey, "WEBP", {"lossless": True}),
        (grey.convert("RGBA"), "WEBP", {"quality": 50}),
        (grey, "TIFF", {"compression": "tiff_lzw"}),
        (Image.fromarray(digits[0].astype(np.uint16) * 257), "TIFF", {}),
        (grey.convert("CMYK"), "TIFF", {"compression": "tiff_deflate"}),
        *([(grey, "JPEG2000", {})] * features.check("jpg_2000")),
        *([(grey.convert("RGBA"), "AVIF", {})] * features.check("avif")),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        found.append(file.getvalue())
    return [*found, *(animation(kind) for kind in ("GIF", "PNG", "WEBP", "TIFF"))]


@pytest.mark.slow
def test_damaged_files_are_refused_or_read(digits, rng, tmp_path):
    """Nothing but a DataError may come of a file, whatever is in it."""
    file, refused, read_all = tmp_path / "a", 0, 0
    for n, content in enumerate(mutations(originals_of(digits), rng, 3500)):
        file.write_bytes(content)
        try:
            for _, picture in read_pictures(str(file)):
                assert picture.dtype == np.float32
                assert 0 <= picture.min() <= picture.max() <= 1
                image = normalise(picture, (28, 28), "digit" if n % 3 else "whole")
                assert 0 <= image.min() <= image.max() <= 1
            read_all += 1
        except DataError:
            refused += 1
    assert refused > 1000
    assert read_all > 200


LARGEST = """
import sys
from pathlib import Path
from lstm_mnist_jax.data.normal_form import normalise
from lstm_mnist_jax.data.pictures import read_pictures
from lstm_mnist_jax.errors import DataError
from PIL import Image
Image.init()
def peak():  # not getrusage's, which begins with that of the process before; this begins at a fork with what is in use
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
before = peak()
try:
    for _, picture in read_pictures(sys.argv[1]):
        normalise(picture, (28, 28), "digit")
    print("read")
except DataError as error:
    print(error)
print((peak() - before) // 1024)
"""


def peak_of(path):
    """The outcome of a file in a new process, and the MiB of memory that it took."""
    done = programs.run([path], code=LARGEST)
    assert done.returncode == 0, done.stderr
    outcome, peak = done.stdout.splitlines()
    return outcome, int(peak)


@pytest.mark.slow
def test_memory_is_bounded(tmp_path):
    """Of the largest pictures that are read, in MiB, and of larger ones; all but the array are small files."""
    side = int(MAX_PIXELS**0.5)
    for name, size, mode in (("a.png", side, "P"), ("b.jpg", side, "L"), ("c.png", 20_000, "1")):
        image = Image.new(mode, (size, size), 1 if mode == "1" else 255 if mode == "L" else 0)
        if mode == "P":
            image.putpalette([255, 255, 255, 0, 0, 0])
        image.paste(1 if mode == "P" else 0, (size // 3, size // 3, size // 2, size // 2))
        image.save(tmp_path / name, **({"transparency": 0} if mode == "P" else {}))
        assert (tmp_path / name).stat().st_size < 8_000_000
    np.save(tmp_path / "e.npy", np.pad(np.full((2000, 2000), 255, np.uint8), 2500))
    photograph = bytearray((tmp_path / "b.jpg").read_bytes())
    at = photograph.index(b"\xff\xc0") + 5  # height and width
    photograph[at : at + 4] = struct.pack(">HH", 20_000, 20_000)
    (tmp_path / "d.jpg").write_bytes(photograph)
    (tmp_path / "f.png").write_bytes(png(20_000, 20_000, bytes(1000)))
    (tmp_path / "g.png").write_bytes(png(8_000, 9_000, bytes(8_001) * 9_000))
    for name in ("a.png", "b.jpg", "e.npy"):
        outcome, peak = peak_of(tmp_path / name)
        assert outcome == "read"
        assert peak < 1000
    for name, size in (
        ("c.png", "more than 1"),
        ("d.jpg", "more than 1"),
        ("f.png", "more than 1"),
        ("g.png", "8,000 x 9,000 p"),
    ):
        outcome, peak = peak_of(tmp_path / name)
        assert f"too large ({size}" in outcome
        assert peak < 50
