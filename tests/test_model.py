"""The classifier against a NumPy LSTM, its initial weights, and both forms of its loss."""

import jax
import numpy as np
import numpy_lstm
import pytest

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.data.tasks import rows

CONFIG = ModelConfig(hidden_features=(7, 9))


def test_logits_are_those_of_the_numpy_lstm(rng):
    params = model.init(ModelConfig(), jax.random.key(1))
    images = rng.integers(0, 256, (11, 28, 28), np.uint8)
    np.testing.assert_allclose(model.apply(params, images), numpy_lstm.classify(params, images), atol=3e-5)


def test_integers_are_scaled_and_floats_are_not(rng):
    params = model.init(CONFIG, jax.random.key(0), (6, 5), 3)
    images = rng.integers(0, 256, (4, 6, 5), np.uint8)
    scaled = images.astype(np.float32) / 255
    np.testing.assert_allclose(model.apply(params, images, CONFIG), model.apply(params, scaled, CONFIG), atol=1e-6)


def test_channels_are_features_of_a_row(rng):
    images = rng.integers(0, 256, (4, 6, 5, 3), np.uint8)
    sequences = np.asarray(rows(images))
    assert sequences.shape == (6, 4, 15)
    np.testing.assert_array_equal(sequences[2, 1], images[1, 2].reshape(-1))
    params = model.init(CONFIG, jax.random.key(0), (6, 5, 3), 3)
    assert model.apply(params, images, CONFIG).shape == (4, 3)


def test_initial_weights_are_the_tutorials():
    params = model.init(ModelConfig(), jax.random.key(0))
    sizes = jax.tree.map(np.shape, params)
    first, second = (sizes["lstm"]["layers"][n]["cell"] for n in (0, 1))
    assert first == {"dense_h": {"bias": (128,), "kernel": (32, 128)}, "dense_i": {"kernel": (28, 128)}}
    assert second == {"dense_h": {"bias": (256,), "kernel": (64, 256)}, "dense_i": {"kernel": (32, 256)}}
    assert sizes["dense"] == {"bias": (10,), "kernel": (64, 10)}
    many = [model.init(ModelConfig(), jax.random.key(seed)) for seed in range(20)]
    for name in ("kernel", "bias"):
        values = np.stack([params["dense"][name] for params in many])
        assert abs(values.std() - 1) < 0.1
        assert abs(values.mean()) < 0.15


def test_init_is_a_function_of_the_key():
    one, same, other = (model.init(CONFIG, jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert np.abs(one["dense"]["kernel"] - other["dense"]["kernel"]).max() > 0.1


def test_both_forms_of_labels_give_the_same_loss(rng):
    logits = rng.normal(size=(20, 10)).astype(np.float32) * 10
    labels = rng.integers(0, 10, 20)
    sparse = model.softmax_cross_entropy(logits, labels)
    dense = model.softmax_cross_entropy(logits, np.eye(10, dtype=np.float32)[labels])
    np.testing.assert_allclose(sparse, dense, rtol=1e-6)
    np.testing.assert_array_equal(model.softmax_cross_entropy(logits, np.eye(10, dtype=np.int32)[labels]), dense)
    np.testing.assert_allclose(sparse.mean(), numpy_lstm.cross_entropy(logits, labels), rtol=1e-5)


def test_loss_is_finite_for_hopeless_logits():
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    np.testing.assert_allclose(model.softmax_cross_entropy(logits, np.array([1, 1])), [2e4, 0])


def test_parameters_of_another_config_are_refused():
    params = model.init(CONFIG, jax.random.key(0))
    with pytest.raises(ValueError, match=r"LSTM layers \(7, 9\), the config says \(32, 64\)"):
        model.apply(params, np.zeros((1, 28, 28), np.uint8), model.ModelConfig())
    with pytest.raises(ValueError, match="28"):
        model.apply(params, np.zeros((1, 28, 27), np.uint8), CONFIG)
