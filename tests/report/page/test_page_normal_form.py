"""The normal form in JavaScript against Python's, on digits of all sizes and on empty pictures."""

import base64

import numpy as np
import pytest
from photographs import SIGNS, dark_shadows, papers, row, sevens, shaded, thin_digits
from PIL import Image

from lstm_mnist_jax import load
from lstm_mnist_jax.config import Config
from lstm_mnist_jax.data.normal_form import digit, find_digits, normalise
from lstm_mnist_jax.errors import DataError
from lstm_mnist_jax.report.page import make_page


@pytest.fixture(scope="module")
def page(open_page, untrained):
    return open_page(make_page(untrained(Config())))


def in_javascript(page, picture, form="digit", height=28, width=28):
    levels = base64.b64encode(picture.astype("<f8").tobytes()).decode()
    found = page.evaluate(
        """([form, picture, height, width]) => {
          const bytes = Uint8Array.from(atob(picture.levels), (character) => character.charCodeAt(0));
          const made = lstm[form]({ ...picture, levels: new Float64Array(bytes.buffer) }, height, width);
          return made && Array.from(made);
        }""",
        [form, {"height": len(picture), "width": len(picture[0]), "levels": levels}, height, width],
    )
    return None if found is None else np.array(found).reshape(height, width)


def drawn(image, size, place=(0, 0), canvas=None):
    """A digit as large as `size` (width, height) somewhere on a larger canvas."""
    large = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    sheet = np.zeros(canvas or large.shape, np.float32)
    sheet[place[0] : place[0] + size[1], place[1] : place[1] + size[0]] = large
    return sheet


SHEETS = [
    {"size": (28, 28)},
    {"size": (252, 252)},
    {"size": (112, 112), "place": (90, 20), "canvas": (252, 252)},
    {"size": (40, 90), "place": (3, 9), "canvas": (100, 61)},
    {"size": (17, 19)},
]


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: "x".join(map(str, sheet["size"])))
def test_normal_form_of_digits_matches_python(sheet, page):
    for image in load().test.images[:4]:
        picture = drawn(image, **sheet)
        np.testing.assert_allclose(in_javascript(page, picture), digit(picture), atol=1e-5)


def found_in_javascript(page, picture):
    levels = base64.b64encode(picture.astype("<f8").tobytes()).decode()
    return page.evaluate(
        """(picture) => {
          const bytes = Uint8Array.from(atob(picture.levels), (character) => character.charCodeAt(0));
          const found = lstm.findDigits({ ...picture, levels: new Float64Array(bytes.buffer) }, 28, 28);
          return found.map(({ pixels, ...rest }) => ({ pixels: Array.from(pixels), ...rest }));
        }""",
        {"height": len(picture), "width": len(picture[0]), "levels": levels},
    )


def photograph(rng, number):
    """A photograph: ruled paper in uneven light on a table, two digits, noise."""
    height, width = 300, 400
    picture = np.full((height, width), 0.85)
    picture[20::40] = 0.35
    for place in (60, 220):
        size = int(rng.integers(80, 140))
        strokes = Image.fromarray(load().test.images[rng.integers(1000)]).resize((size, size), Image.Resampling.BICUBIC)
        picture[80 : 80 + size, place : place + size] *= 1 - 0.8 * np.asarray(strokes, float) / 255
    if number == 4:  # strokes with gaps
        picture[:, place % 24 :: 24] = picture[:, place % 24 + 1 :: 24] = 0.85
    picture *= np.linspace(1, 0.7, width)
    picture[:, :30] = 0.15
    picture = picture + rng.normal(0, (0, 0.01, 0.05)[number % 3], picture.shape)
    return np.clip(1 - picture if number % 2 else picture, 0, 1).astype(np.float32)


def test_digits_on_photographs_match_python(page, rng):
    for number in range(7):
        picture = photograph(rng, number)
        picture = np.kron(picture, np.ones((3, 3), np.float32))[:-1] if number == 6 else picture  # 899 x 1,200
        expected, found = find_digits(picture), found_in_javascript(page, picture)
        assert len(found) == len(expected) == 2, number
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one["box"], other.box, atol=1e-9)
            np.testing.assert_allclose(np.array(one["pixels"]).reshape(28, 28), other.image, atol=1e-5)


def test_broken_shaded_and_cut_digits_match_python(page, rng):
    for kind, picture, _ in sevens(rng):
        (expected,), (found,) = find_digits(picture), found_in_javascript(page, picture)
        np.testing.assert_allclose(found["box"], expected.box, atol=1e-9, err_msg=kind)
        np.testing.assert_allclose(np.array(found["pixels"]).reshape(28, 28), expected.image, atol=1e-5, err_msg=kind)


def test_papers_signs_and_marks_match_python(page, rng):
    """No digits on ruled paper, but those of thin lines; the boxes of what is not read, and the warnings."""
    signs = [row(sign=sign, underlined=sign is None)[0] for sign in (None, *SIGNS)]
    signs += [row(sign=sign, close=True)[0] for sign in ("minus", "comma", "plus")]
    signs.append(np.vstack([row()[0], row(size=25)[0]]))  # smaller digits
    thin = [picture for _, picture, _ in thin_digits()][4:6]  # a 7 and an 8
    digits = load().test.images[:3]
    shades = [shaded(digits, rng), *(picture for _, picture in dark_shadows(digits, rng))]
    for number, picture in enumerate([*(picture for _, picture in papers(rng)), *signs, *thin, *shades]):
        try:
            expected = find_digits(picture)
        except DataError:
            expected = []
        found = found_in_javascript(page, picture)
        assert [each["warning"] for each in found] == [each.warning for each in expected], number
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one["box"], other.box, atol=1e-9)
            np.testing.assert_allclose(one["marks"], other.marks, atol=1e-9)
            np.testing.assert_allclose(np.array(one["pixels"]).reshape(28, 28), other.image, atol=1e-5)


def test_a_digit_that_fills_its_picture_and_squared_paper_match_python(page, rng):
    for number, image in enumerate(load().test.images[:6]):
        ink = np.asarray(Image.fromarray(image).resize((200, 200), Image.Resampling.BICUBIC), np.float32).clip(0, 255)
        rows, columns = (np.flatnonzero((ink > 80).any(axis=axis)) for axis in (1, 0))
        cropped = 0.9 - 0.8 / 255 * ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        squared = np.full((260, 300), 0.85)
        squared[number::22] = squared[:, number::22] = 0.5
        squared[30:230, 50:250] *= 1 - 0.6 * ink / 255
        squared = squared * np.linspace(1, 0.8, 300)
        for picture in (cropped, squared):
            picture = np.clip(picture + rng.normal(0, 0.005, picture.shape), 0, 1).astype(np.float32)
            picture = 1 - picture if number % 2 else picture
            expected, found = find_digits(picture), found_in_javascript(page, picture)
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one["box"], other.box, atol=1e-9)
                np.testing.assert_allclose(np.array(one["pixels"]).reshape(28, 28), other.image, atol=1e-5)


@pytest.mark.parametrize("slope", [-0.2, 0.2])
def test_lines_that_slope_are_read_as_in_python(slope, page):
    """Two lines of six digits, one of which is lower. Both languages find the order in which they were placed."""
    picture, places = np.zeros((380, 480), np.float32), []
    for number, image in enumerate(load().test.images[:12]):
        row, column = divmod(number, 6)
        top, left = int(100 - 200 * slope + 110 * row + 78 * slope * column + 6 * (column == 2)), 8 + 78 * column
        ink = np.asarray(Image.fromarray(image).resize((70, 70), Image.Resampling.BICUBIC), np.float32).clip(0, 255)
        picture[top : top + 70, left : left + 70] += 0.9 / 255 * ink
        places.append([(top + 35) / 380, (left + 35) / 480])
    in_python = [each.box for each in find_digits(picture)]
    for found in (in_python, [each["box"] for each in found_in_javascript(page, picture)]):
        boxes = np.array(found)
        np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:] / 2, places, atol=0.06)


def test_digits_for_images_of_another_size(page):
    picture = drawn(load().test.images[3], (100, 90))
    np.testing.assert_allclose(in_javascript(page, picture, "digit", 20, 31), digit(picture, 20, 31), atol=1e-5)


def test_whole_pictures(page):
    for image in load().test.images[:3]:
        picture = drawn(image, (252, 252))
        expected = normalise(picture, (28, 28), "whole")
        np.testing.assert_allclose(in_javascript(page, picture, "whole"), expected, atol=1e-5)


def test_normal_form_of_an_empty_picture(page):
    picture = np.full((30, 20), 0.05, np.float32)
    with pytest.raises(DataError, match="of one colour"):
        digit(picture)
    assert in_javascript(page, picture) is None
    assert in_javascript(page, picture, "whole") is None
