"""Which ink belongs to a digit, where it is broken, shaded or cut off, and what may be two digits."""

import numpy as np
import pytest
from photographs import SIGNS, dark_shadows, lit, papers, row, rules, sevens, shaded, thin_digits
from PIL import Image, ImageDraw

from lstm_mnist_jax import load
from lstm_mnist_jax.data import novelty
from lstm_mnist_jax.data.normal_form import SIGN, UNREAD, digit, find_digits
from lstm_mnist_jax.errors import DataError


def test_the_box_holds_broken_shaded_and_cut_off_digits_whole(rng):
    for kind, picture, box in sevens(rng):
        for turned in (picture, 1 - picture):
            found = find_digits(turned)
            assert len(found) == 1, kind
            top, left, height, width = np.array(found[0].box) * [300, 400, 300, 400]
            np.testing.assert_allclose([top, top + height, left, left + width], box, atol=5, err_msg=kind)


def test_digits_apart_stay_apart():
    """Two rows of digits, with as little paper between them as people leave."""
    images = load().test.images
    for number in range(0, 24, 4):
        inks = [image[:, image.max(axis=0) > 80][image.max(axis=1) > 80] for image in images[number : number + 4]]
        picture = np.zeros((260, 260), np.float32)
        for place, ink in enumerate(inks):
            row, column = divmod(place, 2)
            large = np.kron(ink / np.float32(255), np.ones((4, 4), np.float32))
            picture[20 + 115 * row :, 30 + 115 * column :][: len(large), : large.shape[1]] = large
        assert len(find_digits(picture)) == 4, number


def test_paper_without_digits_holds_none(rng):
    """Ruled lines in uneven light, margins, squares and tables are no digits, nor is what a shadow leaves of them."""
    for kind, picture in papers(rng):
        with pytest.raises(DataError, match="No digit can be seen"):
            pytest.fail(f"{kind}: {[each.box for each in find_digits(picture)]}")


def test_digits_of_thin_lines_are_found():
    for kind, picture, size in thin_digits():
        boxes = [np.array(each.box) * (size + 40) for each in find_digits(picture)]
        assert len(boxes) == 1, kind
        np.testing.assert_allclose(boxes[0], [20, 20, size, 0.7 * size], atol=4, err_msg=str(kind))


def test_a_one_on_ruled_paper_is_found(rng):
    """A straight stroke as well, of any slope and pen."""
    for kind, light, lean, pen in (
        ("lined", "side", 0, 3),
        ("margin", "shadow", 20, 5),
        ("lined with margin", "even", -8, 4),
        ("squared", "side", 30, 10),
        ("lined with margin", "shadow", 3, 9),
    ):
        canvas = Image.new("L", (400, 300), 0)
        ImageDraw.Draw(canvas).line([(180 + lean, 100), (180 - lean, 170)], fill=255, width=pen)
        ink = np.maximum(0.85 / 255 * np.asarray(canvas), 0.3 * rules(kind))
        [found] = find_digits(lit(ink, light, rng))
        top, left, height, width = np.array(found.box) * [300, 400, 300, 400]
        np.testing.assert_allclose([top, top + height], [100, 170], atol=12, err_msg=kind)
        assert abs(left + width / 2 - 180) < 8, kind
        assert (found.warning, found.marks) == (None, ()), kind


def test_digits_in_shadows_are_found(rng):
    images = load().test.images
    for number in range(0, 12, 3):
        found = find_digits(shaded(images[number : number + 3], rng))
        assert [digit.warning for digit in found] == [None] * 3, number
        for kind, picture in dark_shadows(images[number : number + 3], rng):
            boxes = np.array([digit.box for digit in find_digits(picture)])
            assert len(boxes) == 3, (number, kind)
            np.testing.assert_allclose(boxes[:, 1] + boxes[:, 3] / 2, [0.2125, 0.4625, 0.7125], atol=0.04)


@pytest.mark.parametrize("first", [True, False])
def test_signs_beside_digits_are_named(first):
    """Those that are left out by their boxes; those that are found as digits by a warning. A speck far away is dirt."""
    for speck in (False, True):
        alone = row(first=first, speck=speck)[0]
        for light in (1, np.where(np.arange(500) < 270, 1, 0.47)):  # a shadow over the last digit
            assert [digit.warning for digit in find_digits(np.float32(alone * light))] == [None] * (1 + first)
    for sign in SIGNS:
        picture, box = row(sign=sign, first=first)
        for drawn in (picture, 1 - picture):
            found = find_digits(drawn)
            marks = [mark for digit in found for mark in digit.marks]
            warnings = {digit.warning for digit in found} - {None}
            if len(found) > 1 + first:  # the sign as well
                assert warnings == {SIGN}, sign
                continue
            assert warnings == {UNREAD}, sign
            ends = [(top, top + height, left, left + width) for top, left, height, width in marks]
            ends = np.array(ends) * [220, 220, 500, 500]
            around = [ends[:, 0].min(), ends[:, 1].max(), ends[:, 2].min(), ends[:, 3].max()]
            np.testing.assert_allclose(around, box, atol=4, err_msg=sign)


def test_a_sign_close_to_a_digit_is_no_part_of_it():
    alone = find_digits(row()[0])
    for sign in ("minus", "point", "comma", "colon", "equals", "plus"):
        found = find_digits(row(sign=sign, close=True)[0])
        boxes = [digit.box for digit in found if SIGN not in (digit.warning or "")]
        np.testing.assert_allclose(boxes, [digit.box for digit in alone], atol=0.01, err_msg=sign)
        assert any(digit.warning for digit in found), sign


def test_a_plus_of_any_pen_is_a_sign(rng):
    """A handwritten 4 is none, nor is another digit."""
    for size in (20, 90):
        for pen in (0.08, 0.16, 0.25):
            y, x = np.abs(np.mgrid[-150:150, -150:150]) / size
            picture = 0.9 - 0.8 * ((np.minimum(y, x) < pen / 2) & (np.maximum(y, x) < 0.5))
            picture = np.clip(picture + rng.normal(0, 0.02, picture.shape), 0, 1).astype(np.float32)
            assert [digit.warning for digit in find_digits(picture)] == [SIGN], (size, pen)
    test = load().test
    digits = [
        find_digits(np.pad(np.kron(image / np.float32(255), np.ones((4, 4), np.float32)), 20))
        for image in test.images[test.labels == 4][:200]
    ]
    assert sum(SIGN in (each.warning or "") for found in digits for each in found) <= 1


def test_an_underline_is_a_mark():
    picture, _ = row(underlined=True)
    found = find_digits(picture)
    assert len(found) == 2
    assert {digit.warning for digit in found} == {None, UNREAD}


def test_much_smaller_digits_on_the_next_line_are_marks():
    found = find_digits(np.vstack([row()[0], row(size=25)[0]]))
    assert [(digit.warning, len(digit.marks)) for digit in found] == [(UNREAD, 1)] * 2


def test_a_broken_digit_is_no_frame():
    """A piece of it is within its bounding box, but the others are not all around."""
    picture, _ = row(first=False)
    canvas = Image.fromarray(np.uint8(255 * picture))
    drawing = ImageDraw.Draw(canvas)
    drawing.rectangle([0, 0, 260, 220], fill=230)
    drawing.line([(150, 60), (90, 60), (90, 160), (150, 160)], fill=20, width=7)
    drawing.line([(112, 85), (125, 130)], fill=20, width=7)
    broken, _ = find_digits(np.asarray(canvas, np.float32) / 255)
    top, left, height, width = np.array(broken.box) * [220, 500, 220, 500]
    np.testing.assert_allclose([top, top + height, left, left + width], [56, 164, 86, 152], atol=4)


def test_most_digits_that_touch_get_a_warning(rng):
    """Of single digits, about 1 % do."""
    mnist = load()
    fitted, pairs = novelty.fit(mnist.train, mnist.validation), []
    while len(pairs) < 80:
        left, right = (image / np.float32(255) for image in mnist.test.images[rng.integers(0, 10_000, 2)])
        left, right = (ink[:, ink.max(axis=0) > 0.3] for ink in (left, right))
        both = np.concatenate([left[:, :-2], np.maximum(left[:, -2:], right[:, :2]), right[:, 2:]], axis=1)
        if len(find_digits(enlarged := np.kron(np.pad(both, 20), np.ones((3, 3), np.float32)))) == 1:
            pairs.append(digit(enlarged))
    for images, least, most in ((np.stack(pairs), 0.6, 1.0), (mnist.test.images, 0.005, 0.012)):
        is_warned = np.logical_or(*fitted.unlike_and_pairs(images))
        assert least <= is_warned.mean() <= most
    assert fitted.unlike_and_pairs(np.swapaxes(np.stack(pairs), 1, 2))[1].mean() <= 0.3  # narrow ones
