"""Distortions against what they are defined as."""

import jax
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from lstm_mnist_jax.config import AugmentationConfig
from lstm_mnist_jax.data import augment as product
from lstm_mnist_jax.data.augment import _bumps

KEYS = jax.random.split(jax.random.key(0), 200)

# Compiled as a whole, as in training.
augment = jax.jit(product.augment, static_argnums=2)
mix = jax.jit(product.mix, static_argnums=5)
_sample = jax.jit(product._sample)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (200, 12, 9), np.uint8)


def test_without_augmentation_images_are_only_scaled(images):
    np.testing.assert_allclose(augment(images, KEYS, AugmentationConfig()), images / 255, rtol=1e-6)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_sampling_is_scipys_bilinear_with_zeros_outside(rng, channels):
    images = rng.integers(0, 256, (4, 12, 9, *channels), np.uint8)
    sources = rng.uniform(-3, 14, (4, 2, 12 * 9)).astype(np.float32)
    found = np.asarray(_sample(images, sources)).reshape(4, 12 * 9, -1)
    layers = (images / 255).reshape(4, 12, 9, -1)
    for n, layer in np.ndindex(4, layers.shape[-1]):
        expected = map_coordinates(layers[n, ..., layer], sources[n], order=1, mode="grid-constant")
        np.testing.assert_allclose(found[n, ..., layer], expected, atol=2e-3)


def test_whole_pixels_are_moved_without_blur(images):
    sources = np.indices((12, 9), np.float32).reshape(1, 2, -1) + np.float32([[2], [-1]])
    found = np.asarray(_sample(images[:1], sources))[0]
    np.testing.assert_allclose(found[:-2, 1:], images[0, 2:, :-1] / 255, atol=1e-6)
    assert (found[-2:] == 0).all()
    assert (found[:, 0] == 0).all()


def test_large_images_move_like_small_ones():
    sources = np.indices((300, 300), np.float32).reshape(1, 2, -1) + 10
    found = np.asarray(_sample(np.full((1, 300, 300), 255, np.uint8), sources))[0]
    np.testing.assert_allclose(found[:290, :290], 1, rtol=1e-6)
    assert (found[290:] == 0).all()
    assert (found[:, 290:] == 0).all()


def moments(images):
    """Mass, centre and covariance of images [n, height, width]."""
    rows, columns = np.indices(images.shape[1:])
    mass = images.sum((1, 2))
    centre = np.stack([(images * axis).sum((1, 2)) / mass for axis in (rows, columns)], axis=-1)
    away = [axis - centre[:, n, None, None] for n, axis in enumerate((rows, columns))]
    covariance = np.array([[(images * a * b).sum((1, 2)) / mass for b in away] for a in away])
    return mass, centre, covariance


def angle_of(covariance):
    return np.degrees(np.arctan2(2 * covariance[0, 1], covariance[0, 0] - covariance[1, 1]) / 2)


@pytest.mark.parametrize(
    ("config", "measure", "low", "high"),
    [
        ({"shift_pixels": 3.0}, lambda mass, centre, cov: centre[:, 0] - 19.5, -3, 3),
        ({"shift_pixels": 3.0}, lambda mass, centre, cov: centre[:, 1] - 19.5, -3, 3),
        ({"scaling": 0.5}, lambda mass, centre, cov: np.sqrt(cov[0, 0]), 1 / 1.5, 1.5),
        ({"scaling": 0.5}, lambda mass, centre, cov: np.sqrt(cov[1, 1]), 1 / 1.5, 1.5),
        ({"rotation_degrees": 30.0}, lambda m, c, cov: angle_of(cov), -30, 30),
        ({"shear": 0.4}, lambda mass, centre, cov: cov[0, 1] / cov[0, 0], -0.4, 0.4),
    ],
)  # fmt: skip
def test_shifts_shears_and_rotations_reach_the_limits_of_the_config(config, measure, low, high):
    bar = np.zeros((200, 40, 40), np.uint8)
    bar[:, 12:28, 17:23] = 255
    found = measure(*moments(np.asarray(augment(bar, KEYS, AugmentationConfig(**config)), np.float64)))
    if "scaling" in config:
        found /= np.median(found)
        assert found.min() == pytest.approx(low, abs=0.05)
        assert found.max() == pytest.approx(high, abs=0.08)
        return
    assert found.min() == pytest.approx(low, abs=0.1 * high)
    assert found.max() == pytest.approx(high, abs=0.1 * high)
    assert abs(found.mean()) < 0.15 * high


def test_elastic_displacements_have_the_given_deviation_and_are_smooth():
    bumps = _bumps(28, 6.0)
    np.testing.assert_allclose((bumps**2).sum(axis=1), 1, rtol=1e-5)
    nearness = bumps @ bumps.T
    assert nearness[13, 14] > 0.97  # the next pixel goes along
    assert nearness[4, 24] < 0.01  # one far away goes its own way
    image = np.zeros((200, 28, 28), np.uint8)
    image[:, 10:18, 10:18] = 255
    _, centre, _ = moments(np.asarray(augment(image, KEYS, AugmentationConfig(elastic_pixels=1.0)), np.float64))
    assert 0.5 < centre.std(axis=0).min() < centre.std(axis=0).max() < 1.1


def test_flips_have_the_given_probability(images):
    found = np.asarray(augment(images, KEYS, AugmentationConfig(flip_probability=0.3)))
    kept = np.abs(found - images / 255).max((1, 2)) < 1e-4
    swapped = np.abs(found - images[:, :, ::-1] / 255).max((1, 2)) < 1e-4
    assert (kept ^ swapped).all()
    assert 40 < swapped.sum() < 80
    everything = np.asarray(augment(images, KEYS, AugmentationConfig(flip_probability=1.0)))
    np.testing.assert_allclose(everything, images[:, :, ::-1] / 255, atol=1e-4)


def test_random_erasing_blanks_one_rectangle_with_the_given_probability():
    white = np.full((200, 12, 9), 255, np.uint8)
    erased = np.asarray(augment(white, KEYS, AugmentationConfig(erasing_probability=0.5, erasing_size=0.5))) == 0
    assert 70 < erased.any((1, 2)).sum() < 120
    for mask in erased:
        rows, columns = mask.any(1), mask.any(0)
        np.testing.assert_array_equal(mask, rows[:, None] & columns[None, :])
        assert rows.sum() <= 7
        assert columns.sum() <= 5


def test_augmentation_depends_on_the_key_of_the_image_alone(images):
    config = AugmentationConfig(10.0, 0.1, 0.1, 2.0, 1.0, erasing_probability=0.5)
    together = np.asarray(augment(images, KEYS, config))
    turned_round = augment(images[::-1], KEYS[::-1], config)
    np.testing.assert_allclose(turned_round[::-1], together, atol=1e-6)
    others = augment(images, KEYS[::-1], config)
    assert np.abs(together - others).max(axis=(1, 2)).min() > 0.1


def test_mixup_keeps_the_larger_weight_and_mixes_labels_alike(images):
    floats, labels = images.astype(np.float32) / 255, np.eye(4, dtype=np.float32)[np.arange(200) % 4]
    mixed, targets = mix(floats, labels, floats[::-1], labels[::-1], KEYS, AugmentationConfig(mixup_alpha=0.4))
    mixed, targets = np.asarray(mixed), np.asarray(targets)
    own = targets[np.arange(200), np.arange(200) % 4]
    assert own.min() >= 0.5
    assert own.std() > 0.1
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
    share = 1 - own[:, None, None]
    np.testing.assert_allclose(mixed, floats + share * (floats[::-1] - floats), atol=1e-5)
