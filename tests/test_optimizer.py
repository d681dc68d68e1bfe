"""Adam against the formula of the paper's "epsilon hat" form, in float64."""

import jax
import numpy as np
import optax
import pytest

from lstm_mnist_jax.config import OptimizerConfig
from lstm_mnist_jax.training.optimizer import make_optimizer


@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
def test_fifty_steps_follow_the_formula(rng, epsilon):
    config = OptimizerConfig(learning_rate=0.01, b1=0.8, b2=0.99, epsilon=epsilon)
    gradients = rng.normal(size=(50, 6)) * np.logspace(-6, 1, 6)
    with jax.enable_x64(True):
        optimizer = make_optimizer(config)
        params = {"w": np.linspace(-1, 1, 6)}
        state = optimizer.init(params)
        theta, m, v = params["w"], np.zeros(6), np.zeros(6)
        for t, g in enumerate(gradients, start=1):
            updates, state = optimizer.update({"w": g}, state, params)
            params = optax.apply_updates(params, updates)
            m = 0.8 * m + 0.2 * g
            v = 0.99 * v + 0.01 * g**2
            theta = theta - 0.01 * np.sqrt(1 - 0.99**t) / (1 - 0.8**t) * m / (np.sqrt(v) + epsilon)
            np.testing.assert_allclose(params["w"], theta, rtol=1e-6, atol=1e-12)


def test_it_is_not_optax_adam_where_epsilon_matters(rng):
    gradient = {"w": np.full(3, 1e-3, np.float32)}
    ours = make_optimizer(OptimizerConfig(learning_rate=1.0, epsilon=1e-3))
    theirs = optax.adam(1.0, eps=1e-3)
    steps = [optimizer.update(gradient, optimizer.init(gradient))[0]["w"] for optimizer in (ours, theirs)]
    assert np.abs(steps[0] - steps[1]).min() > 0.1
