"""Which ink belongs to a digit, where it is broken, shaded or cut off, and what may be two digits."""

import numpy as np
from photographs import sevens

from lstm_mnist_jax import load
from lstm_mnist_jax.data import novelty
from lstm_mnist_jax.data.normal_form import digit, find_digits


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
