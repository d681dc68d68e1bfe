"""Adam against the formula of the paper's "epsilon hat" form, in float64."""

import jax
import numpy as np
import optax
import pytest

from lstm_mnist_jax.config import Config, OptimizerConfig
from lstm_mnist_jax.training.optimizer import make_optimizer, schedule, shape_of, steps_an_update


def updated(update, gradient, state, params):
    """Parameters and state after a step of an optimizer."""
    updates, state = update(gradient, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
def test_fifty_steps_follow_the_formula(rng, epsilon):
    config = OptimizerConfig(learning_rate=0.01, b1=0.8, b2=0.99, epsilon=epsilon)
    gradients = rng.normal(size=(50, 6)) * np.logspace(-6, 1, 6)
    with jax.enable_x64(True):
        optimizer = make_optimizer(config)
        params = {"w": np.linspace(-1, 1, 6)}
        state, step = optimizer.init(params), jax.jit(updated, static_argnums=0)
        theta, m, v = params["w"], np.zeros(6), np.zeros(6)
        for t, g in enumerate(gradients, start=1):
            params, state = step(optimizer.update, {"w": g}, state, params)
            m = 0.8 * m + 0.2 * g
            v = 0.99 * v + 0.01 * g**2
            theta = theta - 0.01 * np.sqrt(1 - 0.99**t) / (1 - 0.8**t) * m / (np.sqrt(v) + epsilon)
            np.testing.assert_allclose(params["w"], theta, rtol=1e-6, atol=1e-12)


def test_it_is_not_optax_adam_where_epsilon_matters(rng):
    gradient = {"w": np.full(3, 1e-3, np.float32)}
    ours = make_optimizer(OptimizerConfig(learning_rate=1.0, epsilon=1e-3))
    theirs = optax.adam(1.0, eps=1e-3)
    steps = [
        jax.jit(lambda gradient, optimizer=optimizer: optimizer.update(gradient, optimizer.init(gradient))[0])(gradient)
        for optimizer in (ours, theirs)
    ]
    steps = [np.asarray(step["w"]) for step in steps]
    assert np.abs(steps[0] - steps[1]).min() > 0.1


def step_of(config, gradient, params, rate=1.0):
    optimizer = make_optimizer(config, rate=rate)
    step = jax.jit(lambda gradient, params: updated(optimizer.update, gradient, optimizer.init(params), params)[0])
    return jax.device_get(step(gradient, params))


def test_weight_decay_shrinks_the_matrices_beside_the_gradient_and_leaves_biases(rng):
    params = {"kernel": rng.normal(size=(3, 4)).astype(np.float32), "bias": rng.normal(size=4).astype(np.float32)}
    gradient = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    plain = step_of(OptimizerConfig(learning_rate=0.1), gradient, params)
    decayed = step_of(OptimizerConfig(learning_rate=0.1, weight_decay=0.3), gradient, params)
    np.testing.assert_allclose(decayed["kernel"], plain["kernel"] - 0.1 * 0.3 * params["kernel"], rtol=1e-5)
    np.testing.assert_array_equal(decayed["bias"], plain["bias"])


def test_a_rate_scales_the_step_and_the_decay_of_weights(rng):
    params, gradient = {"w": np.ones((2, 2), np.float32)}, {"w": rng.normal(size=(2, 2)).astype(np.float32)}
    config = OptimizerConfig(weight_decay=0.3)
    whole, half = (step_of(config, gradient, params, rate)["w"] - params["w"] for rate in (1.0, 0.5))
    np.testing.assert_allclose(half, whole / 2, rtol=1e-4)


def test_gradients_are_clipped_over_all_parameters():
    params = {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)}
    optimizer = make_optimizer(OptimizerConfig(b1=0.0, clip_norm=1.0))
    gradient = {"a": np.float32([3.0]), "b": np.float32([4.0])}
    update = jax.jit(lambda gradient: optimizer.update(gradient, optimizer.init(params), params)[1])
    state = update(gradient)
    np.testing.assert_allclose([optax.tree.get(state, "mu")[name][0] for name in "ab"], [0.6, 0.8], rtol=1e-6)
    small = {"a": np.float32([0.3]), "b": np.float32([0.4])}
    state = update(small)
    np.testing.assert_allclose([optax.tree.get(state, "mu")[name][0] for name in "ab"], [0.3, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "shares"),
    [
        ({}, {0: 1, 5: 1, 99: 1}),
        ({"warmup_epochs": 1.0}, {0: 0.1, 4: 0.5, 9: 1, 10: 1, 99: 1}),
        ({"schedule": "linear"}, {0: 1, 50: 0.5, 99: 0.01}),
        ({"schedule": "linear", "final_fraction": 0.2}, {0: 1, 50: 0.6, 99: 0.208}),
        ({"schedule": "cosine"}, {0: 1, 25: (1 + np.cos(np.pi / 4)) / 2, 50: 0.5, 99: (1 - np.cos(np.pi / 100)) / 2}),
        ({"schedule": "cosine", "warmup_epochs": 2.0}, {0: 0.05, 19: 1, 20: 1, 60: 0.5}),
        ({"schedule": "linear", "warmup_epochs": 0.1}, {0: 1, 1: 1}),
    ],
)
def test_schedules_follow_their_formulas(config, shares):
    rate = schedule(OptimizerConfig(**config), steps_per_epoch=10, epochs=10)
    assert {step: float(rate(step)) for step in shares} == pytest.approx(shares, abs=2e-6)


def test_batch_doubling_doubles_the_steps_of_an_update():
    every = steps_an_update(Config(batch_doubling_epochs=(2, 6)), steps_per_epoch=10)
    # Epochs 0 and 1: 20 updates; 2 to 5: 40 steps are 20 updates of two; then of four.
    assert [int(every(made)) for made in (0, 19, 20, 39, 40, 100)] == [1, 1, 2, 2, 4, 4]
    assert steps_an_update(Config(), 10) is None


def test_steps_that_make_one_update_average_their_gradients(rng):
    config, params = OptimizerConfig(weight_decay=0.1), {"w": np.ones((2, 3), np.float32)}
    gradients = [{"w": rng.normal(size=(2, 3)).astype(np.float32)} for _ in range(2)]
    mean = {"w": (gradients[0]["w"] + gradients[1]["w"]) / 2}
    optimizer = make_optimizer(config, every=lambda made: 2)
    state, now, step = optimizer.init(params), params, jax.jit(updated, static_argnums=0)
    for gradient in gradients:
        now, state = step(optimizer.update, gradient, state, now)
    np.testing.assert_allclose(now["w"], step_of(config, mean, params)["w"], rtol=1e-5)


def test_runs_share_a_program_if_their_optimizers_have_the_same_transformations():
    base = OptimizerConfig(weight_decay=0.1)
    assert shape_of(base) == shape_of(OptimizerConfig(learning_rate=1.0, b2=0.9, epsilon=1e-3, weight_decay=0.5))
    kept = {"weight_decay": 0.1}
    assert shape_of(base) != shape_of(OptimizerConfig())
    for other in ({"clip_norm": 1.0}, {"ema_decay": 0.9}, {"schedule": "cosine"}, {"warmup_epochs": 1.0}):
        assert shape_of(base) != shape_of(OptimizerConfig(**kept, **other))
