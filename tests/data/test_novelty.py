"""What looks unlike the training images: against explicit loops, and on letters, blots, pairs and turned digits."""

import math
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from lstm_mnist_jax import load
from lstm_mnist_jax.data import novelty
from lstm_mnist_jax.data.dataset import Examples
from lstm_mnist_jax.data.normal_form import digit
from lstm_mnist_jax.errors import DataError


@pytest.fixture(scope="module")
def mnist():
    return load()


@pytest.fixture(scope="module")
def fitted(mnist):
    return novelty.fit(mnist.train, mnist.validation)


def letters():
    """Drawn letters that do not look like digits, in MNIST's form."""
    for letter in "ACEFGHJKLMNPQRTUVWXYcdehkmnpruvwxy":
        canvas = Image.new("L", (200, 200), 255)
        ImageDraw.Draw(canvas).text((60, 30), letter, fill=0, font=ImageFont.load_default(100))
        yield digit(np.asarray(canvas, np.float32) / 255)


def blots(rng):
    rows, columns = np.mgrid[0:120, 0:120]
    for _ in range(40):
        rough = 12 * gaussian_filter(rng.normal(size=(120, 120)), 6)
        blot = rough + 3 * np.exp(-((rows - 60) ** 2 + (columns - 60) ** 2) / 2 / 20**2) > 1.6
        yield digit(1 - 0.9 * gaussian_filter(blot.astype(np.float32), 1))


def pairs(images, rng):
    """Two digits that touch, in MNIST's form."""
    for _ in range(60):
        ink = [images[number] / np.float32(255) for number in rng.integers(0, len(images), 2)]
        left, right = (each[:, each.max(axis=0) > 0.3] for each in ink)
        yield digit(np.pad(np.concatenate([left[:, :-1], np.maximum(left[:, -1:], right[:, :1]), right[:, 1:]], 1), 20))


def test_digits_pass_and_others_are_found(fitted, mnist, rng):
    """Of digits at most 1 % are unlike the training images; of letters and blots, most."""
    assert fitted.unlike_and_pairs(mnist.test.images)[0].mean() <= 0.01
    assert 0.03 < (novelty.widths_of(mnist.test.images) > fitted.wide).mean() < 0.07
    for made, least in ((letters(), 0.7), (blots(rng), 0.85), (pairs(mnist.test.images, rng), 0.4)):
        images = np.stack([*made])
        assert fitted.unlike_and_pairs(images)[0].mean() >= least
    assert (novelty.widths_of(images) > fitted.wide).mean() > 0.4  # the pairs
    noise = rng.integers(0, 256, (20, 28, 28), np.uint8)
    assert fitted.unlike_and_pairs(noise)[0].all()
    of_one_colour = np.full((3, 28, 28), np.array([0, 0.1, 0.7], np.float32)[:, None, None])
    assert fitted.unlike_and_pairs(of_one_colour)[0].all()
    assert not novelty.features_of(of_one_colour).any()  # no gradient, nor one of rounding errors
    wide = np.zeros((1, 28, 28), np.uint8)
    wide[:, 9:19, 4:24] = 255
    assert (novelty.widths_of(wide) > fitted.wide).all()
    assert not (novelty.widths_of(np.swapaxes(wide, 1, 2)) > fitted.wide).any()


def test_turned_digits(fitted, mnist, rng):
    """Upright ones gain nothing by a turn; those on turned pages gain by the turn that brings them back."""
    images = mnist.test.images[:1000]
    assert (fitted.turn_gains(images).max(axis=1) > fitted.turn_threshold).mean() <= 0.005
    for turns, least in ((1, 0.85), (2, 0.45), (3, 0.85)):
        gains = fitted.turn_gains(np.rot90(images, -turns, (1, 2)))
        found = gains.max(axis=1) > fitted.turn_threshold
        assert (found & (gains.argmax(axis=1) == turns - 1)).mean() > least
        threes = gains[:999].reshape(333, 3, 3).sum(axis=1)
        assert ((threes.max(axis=1) > fitted.turn_threshold) & (threes.argmax(axis=1) == turns - 1)).mean() > 0.97


def loops(image):
    """The features of a grey image of 28 x 28, pixel by pixel."""
    padded = np.pad(image.astype(float), 1, "edge")
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    soft = np.array([[(padded[y : y + 3, x : x + 3] * kernel).sum() for x in range(28)] for y in range(28)])
    padded, cells = np.pad(soft, 1, "edge"), np.zeros((8, 5, 5))
    centres, weights = (np.arange(5) + 0.5) * 5.6 - 0.5, np.zeros((5, 28))
    for cell in range(5):
        weights[cell] = np.maximum(0, 1 - abs(np.arange(28) - centres[cell]) / 5.6)
        weights[cell] /= weights[cell].sum()
    for y in range(28):
        for x in range(28):
            down, right = padded[y + 2, x + 1] - padded[y, x + 1], padded[y + 1, x + 2] - padded[y + 1, x]
            eighths = math.atan2(down, right) / (2 * math.pi) * 8 % 8
            for direction, share in ((int(eighths), 1 - eighths % 1), (int(eighths) + 1, eighths % 1)):
                cells[direction % 8] += math.hypot(down, right) * share * np.outer(weights[:, y], weights[:, x])
    found = np.sqrt(cells).ravel()
    return found / np.linalg.norm(found)


def test_features_match_explicit_loops(mnist, rng):
    images = np.stack([*mnist.test.images[:3], rng.integers(0, 256, (28, 28), np.uint8)])
    expected = [loops(image) for image in images]
    np.testing.assert_allclose(novelty.features_of(images), expected, atol=1e-3)
    np.testing.assert_allclose(novelty.features_of(images / np.float32(510)), expected, atol=1e-3)  # of less contrast
    colours = np.repeat(images[..., None], 3, axis=-1)
    np.testing.assert_allclose(novelty.features_of(colours), expected, atol=1e-3)
    large = np.repeat(np.repeat(images, 2, 1), 2, 2)
    np.testing.assert_allclose(novelty.features_of(large)[:3], expected[:3], atol=0.05)


def test_scores_are_mahalanobis_distances(mnist):
    """From the nearest class, by statistics of the features themselves."""
    train, held_out = mnist.train[:3000], mnist.validation[:500]
    fitted = novelty.fit(train, held_out)
    components = fitted.components * fitted.component_steps[:, None]
    np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=0.02)
    features, images = novelty.features_of(train.images), mnist.test.images[:50]
    places, asked = features @ components.T, novelty.features_of(images) @ components.T
    left = np.square(novelty.features_of(images) - features.mean(0)).sum(1)
    left -= np.square(asked - features.mean(0) @ components.T).sum(1)
    means = np.stack([places[train.labels == label].mean(axis=0) for label in range(10)])
    shared = 20 * np.cov((places - means[train.labels]).T, bias=True)
    distances = []
    for label in range(10):
        own = places[train.labels == label]
        covariance = (len(own) * np.cov(own.T, bias=True) + shared) / (len(own) + 20)
        covariance += 0.02 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        apart = asked - means[label]
        distance = (apart * np.linalg.solve(covariance, apart.T).T).sum(axis=1)
        distances.append(distance + fitted.left_weights[label] * left)
    np.testing.assert_allclose(fitted.scores(images), np.min(distances, axis=0), rtol=0.05)  # int8
    assert np.sum(fitted.scores(held_out.images) > fitted.threshold) == 2  # of 500: at most 0.7 %


@pytest.mark.parametrize("shape", [(6, 5), (28, 28), (32, 32, 3), (1, 1)])
@pytest.mark.parametrize("classes", [1, 2, 150])
def test_any_data_set(shape, classes, rng):
    """Of one example a class, of one colour, of many classes, transposed in memory as EMNIST's: no larger than the
    limit, and finite."""

    def examples(count, most=256):
        labels = (np.arange(count) % classes).astype(np.int32)
        columns_first = rng.integers(0, most, (count, shape[1], shape[0], *shape[2:]), np.uint8)
        return Examples(columns_first.swapaxes(1, 2), labels, classes)

    for train in (examples(150), examples(150, 1)):
        fitted = novelty.fit(train, examples(142))
        assert np.isfinite(fitted.scores(examples(9).images)).all()
        assert fitted.components.nbytes + fitted.whitening.nbytes <= max(novelty.MOST_BYTES, 200 + classes)
    assert novelty.fit(examples(150), examples(141)) is None
    assert novelty.fit(examples(150), examples(0)) is None


def test_the_file(fitted, mnist, tmp_path):
    path = tmp_path / novelty.FILE
    assert novelty.read(path) is None
    novelty.save(path, fitted)
    assert path.stat().st_size < 40_000
    images = mnist.test.images[:20]
    np.testing.assert_array_equal(novelty.read(path).scores(images), fitted.scores(images))
    whole = path.read_bytes()
    for damaged in (b"", b"none", whole[:5000], whole[:-200], whole.replace(b"mean", b"main")):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"novelty.npz is damaged .* Remove it"):
            novelty.read(path)
    former = {field.name: getattr(fitted, field.name) for field in fields(fitted) if field.name != "pair_threshold"}
    np.savez(path, **former)
    assert np.isinf(novelty.read(path).pair_threshold)
