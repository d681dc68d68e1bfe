"""A model of each shape, and images for it."""

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
