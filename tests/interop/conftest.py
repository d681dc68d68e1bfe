"""A model of each shape, and images for it."""

import jax
import numpy as np
import pytest
from stacks import STACKS

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig


@pytest.fixture(params=STACKS, ids=str)
def config(request):
    return ModelConfig(hidden_features=request.param)


@pytest.fixture
def params(config):
    """Drawn, with biases that differ from gate to gate."""
    drawn = model.init(config, jax.random.key(3), (6, 5), 3)
    keys = iter(jax.random.split(jax.random.key(4), 100))
    return jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(keys), leaf.shape), drawn)


@pytest.fixture
def images(rng):
    return rng.random((4, 6, 5), np.float32)
