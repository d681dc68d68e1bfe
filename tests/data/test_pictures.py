"""Picture files as arrays: against Pillow."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from picture_files import animation, png
from PIL import Image, features

from lstm_mnist_jax.data.pictures import KEPT_SIZE, find_pictures, pictures_of, printable, read_pictures, reduced
from lstm_mnist_jax.errors import DataError


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
    step = np.iinfo(kind).max // 50
    large = np.repeat(np.repeat(np.arange(0, 50 * step, step, dtype=kind).reshape(5, 10), 300, 0), 300, 1)
    picture = read(written(tmp_path / "a.png", large))
    assert max(picture.shape) <= KEPT_SIZE
    assert picture.shape[1] == pytest.approx(2 * picture.shape[0], rel=0.01)
    expected = step * np.arange(50).reshape(5, 10) / np.iinfo(kind).max
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


def png_of(pixels, kind):
    """A PNG of 16 bits of a colour type (2 RGB, 4 grey with alpha, 6 RGBA), which Pillow does not write."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    content = bytearray(png(width, height, rows))
    content[24:26] = bytes((16, kind))
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


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


def test_arrays_of_pictures():
    assert len([*pictures_of(np.zeros((3, 6, 5), np.uint8))]) == 3
    assert [p.shape for p in pictures_of(np.zeros((2, 6, 5, 3), np.uint8))] == [(6, 5, 3)] * 2
    assert [p.shape for p in pictures_of(np.zeros((6, 5, 1), bool))] == [(6, 5)]
    for width in (1, 3, 4):  # of grey images that are as wide as there are colours
        assert [p.shape for p in pictures_of(np.zeros((2, 6, width), bool), size=(6, width))] == [(6, width)] * 2
    assert next(pictures_of(np.full((6, 5), 65535, np.uint16))).max() == 1
    for kind in (np.int64, np.uint32, np.int16):  # as what is not uint16, in which 65,535 is white
        np.testing.assert_array_equal(
            next(pictures_of(np.diag([0, 51, 255]).astype(kind))), np.diag([0, np.float32(0.2), 1])
        )


def test_images_of_pillow_are_read_as_their_files_are(tmp_path):
    """Palettes, an orientation, ink in the transparency alone; and the image stays as it is."""
    ink = np.zeros((30, 20), np.uint8)
    ink[5:9, 3:15] = 255
    palette = Image.fromarray(ink // 255).convert("P")
    palette.putpalette([255, 255, 255, *bytes(762), 9, 9, 9])
    transparent = Image.merge("LA", [Image.new("L", (20, 30)), Image.fromarray(ink)])
    turned = Image.fromarray(ink)
    turned.getexif()[274] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    large = Image.fromarray(np.kron(ink, np.ones((50, 50), np.uint8)))
    images = [palette, transparent, transparent.convert("RGBA"), Image.open(tmp_path / "turned.png"), large]
    for n, image in enumerate([*images, large.convert("CMYK"), Image.fromarray(ink.astype(np.uint16) * 257)]):
        if n != 3:
            image.save(tmp_path / f"{n}.tiff")
        ((_, expected),) = read_pictures(str(tmp_path / ("turned.png" if n == 3 else f"{n}.tiff")))
        size = image.size
        np.testing.assert_array_equal(next(pictures_of([image])), expected)
        assert image.size == size
    large.save(tmp_path / "half.png")
    os.truncate(tmp_path / "half.png", (tmp_path / "half.png").stat().st_size // 2)
    with Image.open(tmp_path / "half.png") as half, pytest.raises(DataError, match="is damaged"):
        next(pictures_of(half))
    with pytest.raises(DataError, match=r"(?s)^.{0,600}$"):
        next(pictures_of(bytes(range(1, 256)) * 40))


def test_rows_of_pixels_in_an_array_are_images_of_the_given_size(tmp_path, digits):
    file, notes = str(tmp_path / "a.npy"), list[str]()
    np.save(file, digits[:4].reshape(4, -1))
    found = dict(read_pictures(file, notes.append, (28, 28)))
    assert list(found) == [f"{file}[{n}]" for n in range(4)]
    np.testing.assert_array_equal(np.stack([*found.values()]), digits[:4] / np.float32(255))
    assert notes == ["an array of 4 x 784 is read as 4 images of 28 x 28, one a row"]
    np.save(file, np.zeros((300, 784), np.uint8))  # which may be a picture
    ((_, picture),) = read_pictures(file, notes.append, (28, 28))
    assert picture.shape == (300, 784)
    assert "read as one picture of 300 x 784; if each row is an image of 28 x 28, save it as [300, 28, 28]" in notes
    assert len([*read_pictures(file, notes.append, (28, 20)), *notes]) == 3  # no further note
