"""The form of MNIST: against MNIST itself, Pillow, and digits as scanners give them."""

import numpy as np
import pytest
from PIL import Image
from scans import scan

from lstm_mnist_jax import load, load_run
from lstm_mnist_jax.data.digits import reading_order
from lstm_mnist_jax.data.normal_form import default_form, digit, find_digits, normalise, resampling
from lstm_mnist_jax.errors import DataError


def test_resampling_is_that_of_pillow(rng):
    picture = rng.uniform(size=(50, 37)).astype(np.float32)
    for tall, wide in ((20, 15), (90, 71), (50, 37), (1, 1)):
        expected = Image.fromarray(picture).resize((wide, tall), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(resampling(50, tall) @ picture @ resampling(37, wide).T, expected, atol=1e-5)


def test_mnist_is_in_its_own_form(digits):
    found = np.stack([digit(image / np.float32(255)) for image in digits])
    np.testing.assert_allclose(found, digits / 255, atol=0.004)  # the darkest may be 254
    paper_is_white = np.stack([digit(1 - image / np.float32(255)) for image in digits])
    np.testing.assert_allclose(paper_is_white, digits / 255, atol=0.004)


def test_only_images_of_digits_about_as_in_the_form_of_mnist_are_found_on_pictures_by_default(digits, rng):
    names, noise = tuple("0123456789"), rng.integers(0, 256, digits.shape, np.uint8)
    assert default_form(digits, tuple("01")) == "digit"
    small = np.stack([np.asarray(Image.fromarray(image).resize((16, 16))) for image in digits])
    rotated = np.stack([np.asarray(Image.fromarray(image).rotate(10, Image.Resampling.BILINEAR)) for image in digits])
    cases = (255 - digits, digits // 2, digits[:, 2:-2, 2:-2], np.pad(digits, ((0, 0), (2, 2), (2, 2))), small, rotated)
    noisy = np.maximum(digits, noise % 4)
    for images in (digits, *cases, noisy, 255 - noisy):
        assert default_form(images, names) == "digit"
    sizes = rng.integers(6, 28, 40)
    lines, squares = (
        [np.pad(np.full((n, m), 255, np.uint8), ((0, 28 - n), (0, 28 - m))) for n, m in pairs]
        for pairs in ([(n, 2) for n in sizes], [(20, 20)])
    )
    cases = (
        (np.stack(lines), names),
        (np.roll(squares, 4, axis=(1, 2)), names),
        (digits[:0], names),
        (np.zeros_like(digits), names),
        (digits, tuple("abcd")),
        (np.stack([digits] * 3, axis=-1), names),
        (digits[:, 4:-4, 4:-4], names),
        (noise, names),
    )
    for images, class_names in cases:
        assert default_form(images, class_names) == "whole"


@pytest.fixture(scope="module")
def run(digits_run):
    return load_run(digits_run)


@pytest.fixture(scope="module")
def scanned(run):
    """Digits of the test split, their scans of 28 to 300 pixels, and these in normal form."""
    rng, examples = np.random.default_rng(0), load().test[:400]
    scans = [scan(image, int(rng.integers(28, 300)), rng) for image in examples.images]
    return examples, scans, run.normalise(scans)


@pytest.mark.slow
def test_scanned_digits_are_the_digits(scanned, digits, rng):
    examples, _, found = scanned
    images = examples.images / np.float32(255)
    assert np.abs(found - images).mean() < 0.04  # the mean of the digits themselves is 0.13
    assert np.abs(found[1:] - images[:-1]).mean() > 0.15  # of another digit
    for size, most in ((28, 0.015), (300, 0.04)):
        found = np.stack([digit(scan(image, size, rng) / np.float32(255)) for image in digits[:30]])
        assert np.abs(found - images[:30]).mean() < most


@pytest.mark.slow
def test_accuracy_on_scanned_digits(scanned, run):
    examples, scans, found = scanned

    def accuracy(images):
        return (run.predict(images)[0] == examples.labels).mean()

    assert accuracy(examples.images) > 0.85
    assert accuracy(found) > accuracy(examples.images) - 0.015
    squeezed = np.stack([np.asarray(Image.fromarray(one).resize((28, 28))) for one in scans])
    assert accuracy(squeezed) < 0.6  # without the normal form


@pytest.mark.parametrize("paper", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_noise_is_not_ink(paper, noise, rng):
    """Of paper that is black or white one half of the noise is cut off, and yet it is known for what it is."""
    picture = np.full((200, 200), paper)
    picture[60:140, 80:120] = picture[121:140, 80:130] = 0.9 if paper < 0.5 else 0.1
    noisy = np.clip(picture + rng.normal(0, noise, picture.shape), 0, 1)
    clean, found = (digit(levels.astype(np.float32)) for levels in (picture, noisy))
    assert np.abs(found - clean).mean() < 0.06  # a wrong rectangle would be 0.2
    assert found[0].max() == 0
    with pytest.raises(DataError, match="No part of it differs from its surroundings"):
        digit(np.clip(paper + rng.normal(0, noise, (200, 200)), 0, 1).astype(np.float32))


@pytest.mark.parametrize(("down", "right"), [(0.4, 0), (0, -0.4), (-0.25, 0.25)])
def test_uneven_light_is_not_ink(down, right, digits, rng):
    """As a lamp beside the paper gives it."""
    rows, columns = np.meshgrid(np.linspace(-0.5, 0.5, 168), np.linspace(-0.5, 0.5, 168), indexing="ij")
    differences = []
    for image in digits[:60]:
        ink = np.asarray(Image.fromarray(image).resize((112, 112), Image.Resampling.BICUBIC), np.float32) / 255
        paper = 0.75 + down * rows + right * columns
        photo = paper * (1 - 0.9 * np.pad(ink, 28)) + rng.normal(0, 0.01, paper.shape)
        differences.append(np.abs(digit(np.clip(photo, 0, 1).astype(np.float32)) - image / 255).mean())
    assert np.mean(differences) < 0.06  # of evenly lit ones it is 0.03, with the light for ink 0.12 and more


def test_a_digit_that_touches_the_border():
    """Its strokes end there. A band along a whole side would be a table."""
    picture = np.zeros((60, 40), np.float32)
    picture[26:34, 12:28] = picture[:, 16:24] = 1
    np.testing.assert_allclose(digit(picture), digit(np.pad(picture, 20)), atol=1e-6)


@pytest.mark.parametrize("light", [False, True])
def test_a_digit_that_fills_its_picture(light, digits, rng):
    """As if it had been cut out: of ink that touches all four sides, none is a table."""
    differences = []
    for image in digits[[0, 1, 3, 4, 6, 7, 10]]:
        ink = np.asarray(Image.fromarray(image).resize((300, 300), Image.Resampling.BICUBIC), np.float32).clip(0, 255)
        rows, columns = (np.flatnonzero((ink > 80).any(axis=axis)) for axis in (1, 0))
        cropped = 0.9 - 0.8 / 255 * ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        cropped = cropped * np.linspace(1, 0.85, cropped.shape[1]) + rng.normal(0, 0.01, cropped.shape)
        found = digit(np.clip(1 - cropped if light else cropped, 0, 1).astype(np.float32))
        differences.append(np.abs(found - image / 255).mean())
        whole = np.pad(0.9 - 0.8 / 255 * ink, 31, constant_values=0.1)  # a sheet in a rim fills its picture too
        differences.append(np.abs(digit(1 - whole if light else whole) - image / 255).mean())
    assert max(differences) < 0.09  # of what is left of a digit whose bars are a table, 0.15


def test_a_digit_on_squared_paper_as_dark_as_the_pencil(digits, rng):
    """Its strokes are not taken off with the lines that they cross."""
    differences = []
    for image in digits[:6]:
        ink = np.asarray(Image.fromarray(image).resize((150, 150), Image.Resampling.BICUBIC), np.float32).clip(0, 255)
        paper = np.full((300, 400), 0.88, np.float32)
        paper[7::23] = paper[:, 11::23] = 0.6
        paper[60:210, 120:270] = np.minimum(paper[60:210, 120:270], 0.88 - 0.4 / 255 * ink)
        paper += rng.normal(0, 0.005, paper.shape).astype(np.float32)
        [found] = find_digits(np.clip(paper, 0, 1))
        differences.append(np.abs(found.image - image / 255).mean())
    assert np.mean(differences) < 0.07


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 2), (40, 40, 3)])
def test_pictures_of_one_colour(shape):
    for level in (0, 0.7, 1):
        with pytest.raises(DataError, match=r"Nothing can be seen .* one colour"):
            digit(np.full(shape, level, np.float32))


@pytest.mark.parametrize("shape", [(1, 50), (50, 1), (2, 2), (3, 3), (1000, 2), (256, 257)])
def test_the_smallest_and_the_longest(shape):
    """Something in a corner is a rim or a speck: it is refused, or it is a digit of the right form."""
    picture = np.zeros(shape, np.float32)
    picture[-1, -1] = 1
    for marked in (picture, 1 - picture):
        try:
            image = digit(marked)
        except DataError as error:
            assert "No digit can be seen" in str(error)
        else:
            assert image.max() == 1
            assert np.isfinite(image).all()


def test_thin_strokes_are_thickened():
    picture = np.ones((100, 100), np.float32)
    picture[10:90, 50] = 0
    image = digit(picture)
    assert image.max() == 1
    assert (image.sum(1) > 0.5).sum() == 20
    assert 1.5 < image.sum() / 20 < 4  # the pixels of a stroke's width
    dot = np.zeros((20, 20), np.float32)
    dot[10, 10] = 1
    assert digit(dot).max() == 1


@pytest.mark.parametrize("number", range(3))
def test_lines_boxes_and_tables_are_left_out(number, digits):
    """The digit is found once, as on white paper."""
    paper = np.ones((140, 560), np.float32)
    strokes = np.asarray(Image.fromarray(digits[number]).resize((84, 84), Image.Resampling.BICUBIC), np.float32)
    paper[28:112, 168:252] = 1 - strokes.clip(0, 255) / 255
    ruled, boxes, apart, table = (paper.copy() for _ in range(4))
    ruled[::20] = np.minimum(ruled[::20], 0.6)
    ruled[8:10] = ruled[130:132] = 0.2
    boxes[[10, 11, 128, 129], 10:550] = 0
    boxes[10:130, [10, 11, 145, 146, 280, 281, 415, 416, 548, 549]] = 0
    for left in (10, 148, 286, 424):
        apart[[10, 11, 128, 129], left : left + 126] = 0
        apart[10:130, [left, left + 1, left + 124, left + 125]] = 0
    table[:, :60] = table[120:] = 0.1
    [alone] = find_digits(paper)
    for name, picture in (("ruled", ruled), ("boxes", boxes), ("apart", apart), ("table", table)):
        for drawn in (picture, 1 - picture):
            found = find_digits(drawn)
            assert len(found) == 1, name
            # Ends of lines remain within two pixels of the strokes. Of another digit it would be 0.15.
            assert np.abs(found[0].image - alone.image).mean() < 0.05, name
            np.testing.assert_allclose(found[0].box, alone.box, atol=0.02, err_msg=name)
    assert len(find_digits(np.pad(apart, 60, constant_values=1))) == 1  # the boxes without a digit are not rims


def line(top, slope, count=10, height=40):
    """Boxes (top, bottom, left), 50 pixels apart."""
    return [(top + 50 * slope * n, top + 50 * slope * n + height, 50 * n) for n in range(count)]


ORDERS = {  # boxes in the order of reading
    "up": line(300, -0.4),
    "down": line(100, 0.4),
    "one lower": [(100, 140, 0), (122, 162, 50), (100, 140, 100), (102, 142, 150)],
    "the first lower": [(120, 160, 0), (100, 140, 50), (98, 138, 100)],
    "two lines": [*line(100, 0, 4), *line(160, 0, 6)],
    "two lines that slope down": [*line(100, 0.4), *line(160, 0.4)],
    "two lines that slope up": [*line(300, -0.4, 7), *line(360, -0.4, 7)],
    "the second line begins further left": [*((top, bottom, left + 30) for top, bottom, left in line(100, 0.1, 4)),
                                            *line(160, 0.1, 4)],
    "a short one": [(100, 140, 0), (120, 138, 50), (100, 140, 100)],
    "a short one that is beside one of the last two only": [(100, 140, 0), (128, 140, 50), (90, 130, 100)],
    "one line of digits higher and lower": [(100, 140, 0), (142, 182, 50), (120, 160, 100), (140, 180, 150)],
    "a column": [(100, 140, 3), (150, 190, 0), (200, 240, 5)],
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_digits_are_in_the_order_of_reading(name, rng):
    boxes = ORDERS[name]
    for _ in range(5):
        mixed = rng.permutation(len(boxes))
        found = reading_order([boxes[number] for number in mixed])
        assert mixed[found].tolist() == [*range(len(boxes))]
    assert reading_order([]) == []


@pytest.mark.parametrize("size", [28, 40, 60])
def test_the_hole_of_a_thick_digit_is_no_digit(size):
    """What is lighter inside something thick and dark may be a digit on a small sheet of paper."""
    image = load().test.images[353]  # a thick 6
    large = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC), np.float32)
    picture = np.pad(0.95 / 255 * large.clip(0, 255), ((10, 14), (3, 12)))
    for drawn in (picture, 1 - picture):
        assert np.abs(digit(drawn) - image / 255).mean() < 0.1  # of the hole it would be 0.22


def test_colours_are_ink():
    picture = np.ones((60, 60, 3), np.float32)
    picture[20:40, 25:30] = [0.1, 0.2, 0.9]
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    np.testing.assert_allclose(digit(picture), digit(grey), atol=1e-6)


def test_forms():
    colour = np.zeros((40, 20, 3), np.float32)
    colour[..., 0] = 1
    assert normalise(colour, (32, 32, 3), "whole").shape == (32, 32, 3)
    np.testing.assert_array_equal(normalise(colour, (32, 32, 3), "whole")[..., 0], 1)
    np.testing.assert_allclose(normalise(colour, (28, 28), "whole"), 0.299, atol=1e-5)
    np.testing.assert_allclose(normalise(1 - colour, (28, 28), "whole"), 0.299, atol=1e-5)  # light, so inverted
    grey = np.linspace(0, 1, 30, dtype=np.float32).reshape(6, 5)
    np.testing.assert_array_equal(normalise(grey, (6, 5), "plain"), grey)
    for picture, shape, form, message in (
        (grey, (28, 28), "plain", "has to be 28 x 28"),
        (grey, (28, 28), "round", "Unknown form"),
        (grey, (28, 28, 3), "digit", "use whole"),
        (grey, (28, 28, 7), "whole", "7 channels"),
    ):
        with pytest.raises(DataError, match=message):
            normalise(picture, shape, form)
