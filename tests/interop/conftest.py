"""A model of each shape, and images for it."""

import importlib.util

import numpy as np
import pytest
from parameters import drawn
from stacks import STACKS

from lstm_mnist_jax.config import ModelConfig


@pytest.fixture(params=[*(pytest.param(stack, marks=pytest.mark.slow) for stack in STACKS[:-1]), STACKS[-1]], ids=str)
def config(request):
    return ModelConfig(hidden_features=request.param)


@pytest.fixture
def params(config):
    return drawn(config)


@pytest.fixture
def images(rng):
    return rng.random((4, 6, 5), np.float32)


@pytest.fixture
def keras_draws_by_numpy(monkeypatch):
    """Keras's initial weights: to draw them with JAX compiles many small programs, anew for each shape."""
    if importlib.util.find_spec("keras") is None:
        return
    import keras

    generator = np.random.default_rng(1)

    def draw(self, shape, dtype=None):
        return generator.normal(0, 0.5, shape).astype(dtype or "float32")

    for initializer in (keras.initializers.GlorotUniform, keras.initializers.Orthogonal):
        monkeypatch.setattr(initializer, "__call__", draw)
