"""Picture files as arrays: against Pillow, and thousands of damaged files."""

import io
import struct
import warnings
import zlib

import numpy as np
import programs
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from lstm_mnist_jax import load
from lstm_mnist_jax.data.normal_form import normalise
from lstm_mnist_jax.data.pictures import (
    KEPT_SIZE,
    MAX_PIXELS,
    find_pictures,
    pictures_of,
    printable,
    read_pictures,
    reduced,
)
from lstm_mnist_jax.errors import DataError


@pytest.fixture(scope="module")
def digits():
    return load().test.images[:200]


def written(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return str(path)


def read(path):
    [(name, picture)] = read_pictures(str(path))
    assert name == str(path)
    return picture


def greyed(picture):
    return picture if picture.ndim == 2 else picture.mean(-1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif"])
def test_lossless_formats_round_trip(suffix, tmp_path, digits):
    np.testing.assert_allclose(read(written(tmp_path / f"a.{suffix}", digits[0])), digits[0] / np.float32(255))


@pytest.mark.parametrize("suffix", ["jpg", "webp", "jp2", "avif"])
def test_lossy_formats_round_trip_approximately(suffix, tmp_path, digits):
    if not features.check({"jp2": "jpg_2000"}.get(suffix, suffix)):
        pytest.skip(f"this Pillow writes no {suffix}")
    picture = read(written(tmp_path / f"a.{suffix}", digits[0], quality=95))
    assert np.abs(greyed(picture) - digits[0] / 255).mean() < 0.02


def test_modes_of_colour(tmp_path, rng):
    grey = rng.integers(0, 256, (9, 7), np.uint8)
    expected = grey / np.float32(255)
    rgb = Image.fromarray(grey).convert("RGB")
    for mode in ("RGB", "L"):
        rgb.convert(mode).save(tmp_path / f"{mode}.png")
        np.testing.assert_allclose(read(tmp_path / f"{mode}.png"), expected, atol=1e-6)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.tif", compression="tiff_lzw")
    for name in ("16.png", "16.tif"):
        np.testing.assert_allclose(read(tmp_path / name), expected, atol=1e-6)
    (tmp_path / "rgb16.png").write_bytes(png_of(np.repeat(grey[..., None], 3, -1).astype(">u2") * 257, 2))
    np.testing.assert_allclose(read(tmp_path / "rgb16.png"), expected, atol=0.004)  # Pillow keeps 8 bits of colours
    opaque = np.stack([grey.astype(">u2") * 257, np.full(grey.shape, 65535)], -1).astype(">u2")
    (tmp_path / "la16.png").write_bytes(png_of(opaque, 4))
    np.testing.assert_allclose(read(tmp_path / "la16.png"), expected, atol=0.004)
    (tmp_path / "rgba16.png").write_bytes(png_of(opaque[..., [0, 0, 0, 1]], 6))
    np.testing.assert_allclose(read(tmp_path / "rgba16.png"), expected, atol=0.004)
    for name, options in (("cmyk.jpg", {"quality": 100}), ("cmyk.tif", {})):
        rgb.convert("CMYK").save(tmp_path / name, **options)
        assert np.abs(greyed(read(tmp_path / name)) - expected).mean() < 0.1
    bilevel = Image.fromarray(grey > 100)
    bilevel.save(tmp_path / "1.png")
    np.testing.assert_array_equal(read(tmp_path / "1.png"), grey > 100)
    red = np.zeros((9, 7, 3), np.uint8)
    red[..., 0] = 255
    np.testing.assert_array_equal(read(written(tmp_path / "red.png", red)), red / 255)


@pytest.mark.parametrize(("stroke", "paper"), [(0, 1), (255, 0)])
def test_transparent_pixels_are_background(stroke, paper, tmp_path):
    pixels = np.full((9, 7, 4), stroke, np.uint8)
    pixels[..., 3] = 0
    pixels[2:5, 3, 3] = 255
    expected = np.full((9, 7), paper, np.float32)
    expected[2:5, 3] = stroke / 255
    np.testing.assert_allclose(read(written(tmp_path / "a.png", pixels)), expected)
    palette = Image.fromarray(pixels[..., 3] // 255).convert("P")
    palette.putpalette([9, 9, 9, stroke, stroke, stroke])
    palette.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_allclose(read(tmp_path / "p.png"), expected)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(np.arange(63, dtype=np.uint8).reshape(9, 7))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(np.asarray(image, np.float32) / 255, -1)
    np.testing.assert_allclose(read(tmp_path / "a.png"), turned)
    image.resize((70, 90)).save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg").shape == (70, 90)
    image.save(tmp_path / "b.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")  # of a broken camera
    assert read(tmp_path / "b.png").shape == (9, 7)
    Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(tmp_path / "c.png", exif=exif)
    np.testing.assert_allclose(read(tmp_path / "c.png"), turned)


def test_the_first_of_several_photographs_in_a_file_is_read(tmp_path, digits):
    first, second = (Image.fromarray(digits[n]).resize((60, 60)) for n in (0, 1))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert np.abs(greyed(read(tmp_path / "a.jpg")) - np.asarray(first) / 255).mean() < 0.02


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_picture_of_an_animation_is_read_with_a_note(kind, tmp_path):
    (tmp_path / "a").write_bytes(animation(kind))
    notes = []
    [(_, picture)] = read_pictures(str(tmp_path / "a"), notes.append)
    assert picture.max() < 0.05
    assert notes == ["the file holds several pictures, of which the first is read"]
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "one", kind)
    list(read_pictures(str(tmp_path / "one"), notes.append))
    assert len(notes) == 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_large_pictures_are_reduced(kind, tmp_path):
    large = np.repeat(np.repeat(np.arange(50, dtype=kind).reshape(5, 10), 300, 0), 300, 1)
    picture = read(written(tmp_path / "a.png", large))
    assert max(picture.shape) <= KEPT_SIZE
    assert picture.shape[1] == pytest.approx(2 * picture.shape[0], rel=0.01)
    expected = np.arange(50).reshape(5, 10) / np.iinfo(kind).max
    height, width = picture.shape
    at = np.ix_((np.arange(5) * height + height // 2) // 5, (np.arange(10) * width + width // 2) // 10)
    np.testing.assert_allclose(picture[at], expected, atol=1e-6)


def test_thin_lines_survive_the_reduction_of_large_arrays():
    picture = np.zeros((2050, 1500), np.uint8)
    picture[:, 701] = 255
    found = reduced(picture, 1024)
    assert found.shape == (684, 500)
    np.testing.assert_allclose(found.sum(axis=1), 85)
    np.testing.assert_allclose(reduced(np.full((1025, 3, 3), 0.5, np.float32), 1024), 0.5)  # the last square is cut


def png(width, height, rows=b""):
    """A PNG whose header may lie."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def npy(header, content=b""):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def png_of(pixels, kind):
    """A PNG of 16 bits of a colour type (2 RGB, 4 grey with alpha, 6 RGBA), which Pillow does not write."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    content = bytearray(png(width, height, rows))
    content[24:26] = bytes((16, kind))
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def header_of(shape, kind="|u1"):
    return repr({"descr": kind, "fortran_order": False, "shape": shape})


def saved(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def animation(kind):
    """Three pictures in a file: an animation, or the pages of a TIFF. The first is black."""
    file = io.BytesIO()
    frames = [Image.fromarray(np.full((5, 5), shade, np.uint8)) for shade in (0, 100, 200)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


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
        (saved(np.full((5, 5), np.nan)), "NaN"),
        (saved(np.full((5, 5), np.inf, np.float16)), "outside 0 to 1"),
        (saved(np.full((5, 5), 255.0)), "outside 0 to 1"),
        (saved(np.zeros((5, 5), np.int64)), "of type int64"),
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


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", "<f4", ">f8", "<f2", "?"])
def test_arrays_of_any_version_order_and_type(version, order, kind, tmp_path, digits):
    levels = digits[0] / 255
    array = levels > 0.5 if kind == "?" else levels if "f" in kind else levels * np.iinfo(kind).max
    with (tmp_path / "a.npy").open("wb") as file, warnings.catch_warnings(action="ignore"):
        np.lib.format.write_array(file, np.asarray(array.round() if "u" in kind else array, kind, order=order), version)
    found = read(tmp_path / "a.npy")
    np.testing.assert_allclose(found, levels > 0.5 if kind == "?" else levels, atol=1e-3 if kind == "<f2" else 1e-6)


def test_missing_files_are_refused(tmp_path):
    for name, message in (("a.png", "There is no file"), ("*.png", "no file that matches"), ("", "holds no pictures")):
        with pytest.raises(DataError, match=message):
            list(read_pictures(str(tmp_path / name)))
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        list(read_pictures(str(tmp_path / ("a" * 300))))
    with pytest.raises(DataError, match=r"no file .*a\\x1b\[31m\\udcff"):
        list(read_pictures(str(tmp_path / "a\x1b[31m\udcff")))


def test_folders_and_patterns(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "inside/c.npy", "folder.png/d.gif", "[1].png", "inside/e.HEIC"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def there(*names):
        return [str(tmp_path / name) for name in names]

    found = there("[1].png", "a.JPG", "b.png", "folder.png/d.gif", "inside/c.npy", "inside/e.HEIC")
    assert find_pictures(there("")) == found
    assert find_pictures([*there("?.png"), "-", "none*.png"]) == [*there("b.png"), "-", "none*.png"]
    assert find_pictures(there("[1].png")) == there("[1].png")  # a file of this name goes before the pattern
    assert find_pictures(there("**/*.*")) == there(
        "[1].png", "a.JPG", "b.png", "folder.png/d.gif", "inside/c.npy", "inside/e.HEIC", "notes.txt"
    )
    assert find_pictures(["~nobody-of-this-name/a.png"]) == ["~nobody-of-this-name/a.png"]


def test_control_characters_in_names_are_escaped():
    assert printable("ä 数.png") == "ä 数.png"
    assert printable("a\n\x1b[2J\udc80") == "a\\n\\x1b[2J\\udc80"


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
                if form := ("digit", "whole", None)[n % 3]:
                    image = normalise(picture, (28, 28), form)
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
    for name, size, mode in (
        ("a.png", side, "P"),
        ("b.jpg", side, "L"),
        ("c.png", 20_000, "1"),
    ):
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


def test_arrays_of_pictures():
    assert len([*pictures_of(np.zeros((3, 6, 5), np.uint8))]) == 3
    assert [p.shape for p in pictures_of(np.zeros((2, 6, 5, 3), np.uint8))] == [(6, 5, 3)] * 2
    assert [p.shape for p in pictures_of(np.zeros((6, 5, 1), bool))] == [(6, 5)]
    assert next(pictures_of(np.full((6, 5), 65535, np.uint16))).max() == 1
