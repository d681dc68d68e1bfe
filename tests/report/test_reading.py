"""Predictions after each step against shorter images, states against NumPy, saliency against finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import pytest
from parameters import drawn

from lstm_mnist_jax import inference, model
from lstm_mnist_jax.config import ModelConfig

NETWORKS = [
    ModelConfig(hidden_features=(7, 9)),
    ModelConfig(hidden_features=(7, 9), bidirectional=True),
    ModelConfig(hidden_features=(7,), pooling="mean"),
    ModelConfig(hidden_features=(7,), pooling="max", cell="gru"),
    ModelConfig(hidden_features=(7,), pooling="attention", cell="ur_lstm"),
    ModelConfig(hidden_features=(7, 5), pooling="mean", bidirectional=True, cell="layer_norm_lstm"),
    ModelConfig(hidden_features=(7,), pooling="attention", bidirectional=True),
    ModelConfig(hidden_features=(7,), pooling="last_step", bidirectional=True, cell="gru", recurrent_bias=True),
]


ROWS, FEATURES = 3, 5


@partial(jax.jit, static_argnames="config")
def expected_and_found(params, images, config):
    """The logits of images that end after each of their rows, and the outputs and carries of the recurrent layers; and
    what is tested. It is compiled as one program."""
    beginnings = [model.apply(params, images[:, : rows + 1], config) for rows in range(ROWS)]
    layers = model.bind(params, config, (ROWS, FEATURES)).rnn
    expected = jnp.stack(beginnings, axis=1), *layers(jnp.moveaxis(images, 1, 0) / 255)
    return expected, (inference.logits_along(params, images, config), inference.layer_states(params, images, config))


@pytest.fixture(
    params=[*NETWORKS[:5], *(pytest.param(config, marks=pytest.mark.slow) for config in NETWORKS[5:])],
    ids=lambda c: f"{c.cell}-{c.pooling}-{'both' if c.bidirectional else 'one'}",
    scope="module",
)
def network(request):
    """A network, and what is computed of images."""
    config = request.param
    images = np.random.default_rng(0).integers(0, 256, (4, ROWS, FEATURES), np.uint8)
    return config, *jax.tree.map(np.asarray, expected_and_found(drawn(config, (ROWS, FEATURES)), images, config))


def test_logits_along_match_shorter_images(network):
    _, (expected, _, _), (along, _) = network
    assert along.shape == (4, ROWS, 3)
    np.testing.assert_allclose(along, expected, atol=2e-6)


def test_states_match_the_layers(network):
    config, (_, outputs, carries), (_, found) = network
    assert [layer.hidden.shape[-1] for layer in found] == [
        width * (1 + config.bidirectional) for width in config.hidden_features
    ]
    atol = 2e-5 if config.cell == "layer_norm_lstm" else 2e-6  # which divides by deviations that may be small
    np.testing.assert_allclose(found[-1].hidden, np.moveaxis(outputs, 0, 1), atol=atol)
    assert (found[0].cell is None) == (config.cell == "gru")
    if config.cell != "gru" and not config.bidirectional:
        for layer, carry in zip(found, carries, strict=True):
            np.testing.assert_allclose(layer.cell[:, -1], carry[0], atol=2e-6)


def test_states_match_numpy(rng):
    config = ModelConfig(hidden_features=(7, 4))
    params = drawn(config)
    images = rng.integers(0, 256, (4, 6, 5), np.uint8)
    inputs = images.transpose(1, 0, 2) / 255
    for layer, found in enumerate(inference.layer_states(params, images, config)):
        cell, zeros = params["rnn"]["layers"][layer]["cell"], np.zeros((4, config.hidden_features[layer]))
        weights = cell["dense_i"]["kernel"], cell["dense_h"]["kernel"], cell["dense_h"]["bias"]
        inputs, cells = numpy_lstm.lstm(inputs, *weights, zeros, zeros)
        np.testing.assert_allclose(found.hidden, inputs.transpose(1, 0, 2), atol=2e-6)
        np.testing.assert_allclose(found.cell, cells.transpose(1, 0, 2), atol=2e-6)


def test_saliency_matches_finite_differences(rng):
    config = NETWORKS[0]
    params = drawn(config)
    images, labels = rng.uniform(0.2, 0.8, (2, 6, 5)).astype(np.float32), np.array([1, 2], np.int32)
    slopes = inference.saliency(params, images, labels, config)

    def log_probability(pixels):
        logits = numpy_lstm.classify(params, 255 * pixels)
        return (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(2), labels]

    direction = rng.normal(size=images.shape)
    step = 1e-4 * direction
    numeric = (log_probability(images + step) - log_probability(images - step)) / 2e-4
    np.testing.assert_allclose((slopes * direction).sum((1, 2)), numeric, rtol=1e-4, atol=1e-5)
