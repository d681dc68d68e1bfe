"""What the tests of several formats share."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from parameters import drawn

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.interop import torch

STACKS = [(4,), (3, 3), (4, 7, 3)]
LABELS = np.array([0, 2, 1, 1])
FIXTURES = Path(__file__).parents[1] / "fixtures"

apply = jax.jit(model.apply, static_argnames="config")
"""`model.apply`, compiled as a whole."""


def keras_outputs(network, images):
    """What a model of Keras computes, compiled as a whole: eagerly, it compiles each of its operations."""
    return np.asarray(jax.jit(network)(images))


@partial(jax.jit, static_argnames="config")
def logits_and_gradient(params, images, labels, config):
    def loss(params):
        logits = model.apply(params, images, config)
        return model.softmax_cross_entropy(logits, labels).mean(), logits

    gradient, logits = jax.grad(loss, has_aux=True)(params)
    return logits, gradient


def assert_close(found, expected, atol=1e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), found, expected)


def state_dict(**changes):
    arrays = torch.to_state_dict(drawn(ModelConfig(hidden_features=(4, 7)))) | changes
    return {name: array for name, array in arrays.items() if array is not None}
