"""Dropout between layers, recurrent dropout and zoneout: against Flax's cell with the same noise, and how often."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import TraceContextError
from parameters import drawn_module

from lstm_mnist_jax.rnn import LSTM, RNN, RecurrentNoise

INPUTS = np.random.default_rng(0).normal(size=(4, 9, 5)).astype(np.float32)


def assert_close(ours, theirs, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), ours, theirs)


def test_dropout_is_between_layers_only_and_off_in_evaluation():
    stack = LSTM(5, (4, 4), dropout_rate=0.5, rngs=nnx.Rngs(0))
    plain = LSTM(5, (4, 4), rngs=nnx.Rngs(0))
    first, second = stack(INPUTS), stack(INPUTS)
    assert not np.allclose(first[0], second[0])
    assert_close(first[1][0], plain(INPUTS)[1][0])  # the first layer reads whole inputs
    with pytest.raises(
        TraceContextError,
        match=r"LSTM changes its state.*nnx\.jit\(lambda layer, inputs",
    ):
        jax.jit(stack)(INPUTS)
    stack.eval()
    assert_close(stack(INPUTS), plain(INPUTS))
    with pytest.warns(UserWarning, match=r"one layer, so dropout_rate=0\.5 drops nothing") as warned:
        single = LSTM(5, (4,), dropout_rate=0.5, rngs=nnx.Rngs(0))
    assert warned[0].filename == __file__
    assert_close(single(INPUTS), single(INPUTS), atol=0)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ValueError, match="from 0 to below 1"):
        LSTM(5, (4,), dropout_rate=rate, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="from 0 to below 1"):
        LSTM(5, (4,), recurrent_dropout_rate=rate, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="from 0 to below 1"):
        LSTM(5, (4,), zoneout_rates=(0.5, rate), rngs=nnx.Rngs(0))


def flax_with_noise(cell, mask, zoneout, inputs, carry):
    """A plain loop over Flax's cell with the same noise: what multiplies h, and how much of each part is kept."""

    def step(carry, xs):
        inputs, kept = xs
        after, _ = cell((carry[0], carry[-1] * mask), inputs)
        after = tuple(k * old + (1 - k) * new for k, old, new in zip(kept, carry, after, strict=True))
        return after, after[-1]

    carry, outputs = jax.lax.scan(step, carry, (jnp.swapaxes(inputs, 0, 1), zoneout))
    return carry, jnp.swapaxes(outputs, 0, 1)


def values_and_gradients(run, params, inputs, carry):
    values, pull_back = jax.vjp(run, params, inputs, carry)
    d_params, *others = pull_back(jax.tree.map(jnp.cos, values))
    return values, nnx.to_pure_dict(d_params), others


@partial(jax.jit, static_argnums=0)
def flax_with_noise_and_gradients(graph, params, mask, zoneout, inputs, carry):
    def run(params, inputs, carry):
        return flax_with_noise(nnx.merge(graph, params), mask, zoneout, inputs, carry)

    return values_and_gradients(run, params, inputs, carry)


@pytest.mark.parametrize("options", [{"dropout_rate": 0.4}, {"zoneout_rates": (0.5, 0.2)}, {"zoneout_rates": 0.3}])
@pytest.mark.parametrize("deterministic", [False, True])
def test_noise_agrees_with_a_loop_over_flaxs_cell(options, deterministic):
    cell = drawn_module(lambda: nnx.OptimizedLSTMCell(5, 4, rngs=nnx.Rngs(0)))
    noise = RecurrentNoise(**options, deterministic=deterministic, rngs=nnx.Rngs(7))
    mask, zoneout = RecurrentNoise(**options, deterministic=deterministic, rngs=nnx.Rngs(7))(9, 4, (4, 4))
    assert (mask is None) == (deterministic or "dropout_rate" not in options)
    assert (zoneout is None) == ("zoneout_rates" not in options)
    mask = np.ones((4, 4), np.float32) if mask is None else mask
    zoneout = tuple(np.broadcast_to(np.float32(part), (9, 4, 4)) for part in zoneout or (0, 0))
    carry = tuple(np.random.default_rng(n).normal(size=(4, 4)).astype(np.float32) for n in (1, 2))
    graph, params, rest = nnx.split(RNN(cell, return_carry=True, noise=noise), nnx.Param, ...)

    def ours(params, inputs, carry):
        return nnx.merge(graph, params, rest, copy=True)(inputs, initial_carry=carry)

    values, d_params, others = jax.jit(partial(values_and_gradients, ours))(params, INPUTS, carry)
    expected, d_expected, other_expected = flax_with_noise_and_gradients(*nnx.split(cell), mask, zoneout, INPUTS, carry)
    assert_close(values, expected)
    assert_close(d_params["cell"], d_expected, atol=2e-5)
    assert_close(others, other_expected, atol=2e-5)


def test_recurrent_dropout_is_the_same_at_every_step_and_scaled():
    mask, zoneout = RecurrentNoise(dropout_rate=0.25, rngs=nnx.Rngs(0))(9, 100, (50, 50))
    assert zoneout is None
    assert mask.shape == (100, 50)
    assert set(np.unique(mask).round(5)) == {0, np.float32(4 / 3).round(5)}
    assert abs(float(mask.mean()) - 1) < 0.03


def test_zoneout_keeps_as_often_as_it_should():
    _, (of_c, of_h) = RecurrentNoise(zoneout_rates=(0.5, 0.05), rngs=nnx.Rngs(0))(20, 50, (30, 30))
    assert abs(float(of_c.mean()) - 0.5) < 0.01
    assert abs(float(of_h.mean()) - 0.05) < 0.01
    with pytest.raises(ValueError, match="zoneout_rates has 3 values, but the cell's carry has 2 parts"):
        RecurrentNoise(zoneout_rates=(0.1, 0.1, 0.1), rngs=nnx.Rngs(0))(20, 50, (30, 30))


def test_noise_over_a_cell_that_flax_runs_is_refused():
    with pytest.raises(ValueError, match="cannot have noise or remat over LSTMCell"):
        RNN(nnx.LSTMCell(5, 4, rngs=nnx.Rngs(0)), remat=3)(INPUTS)
    with pytest.raises(ValueError, match="no noise and no remat"):
        RNN(nnx.LSTMCell(5, 4, rngs=nnx.Rngs(0)), remat=3, backend="flax")


NO_ZONEOUT = {"zoneout_rates": (0.0, 0.0)}


def test_zoneout_of_none_is_no_noise():
    without, none = (LSTM(5, (4,), backend="flax", rngs=nnx.Rngs(0), **options) for options in ({}, NO_ZONEOUT))
    assert none.layers[0].noise is None
    np.testing.assert_array_equal(none(INPUTS)[0], without(INPUTS)[0])


def test_noise_and_the_kernel_exclude_each_other():
    with pytest.raises(ValueError, match='no noise with backend="native"'):
        LSTM(5, (4,), recurrent_dropout_rate=0.1, backend="native", rngs=nnx.Rngs(0))


def test_masks_multiply_what_goes_from_layer_to_layer():
    lstm = drawn_module(lambda: LSTM(5, (4, 6, 3), rngs=nnx.Rngs(0)))
    inputs = np.random.default_rng(0).normal(size=(2, 7, 5)).astype(np.float32)
    masks = [np.random.default_rng(n).integers(0, 3, (2, width)).astype(np.float32) for n, width in enumerate((4, 6))]

    graph, params = nnx.split(lstm.layers)

    @jax.jit
    def by_flax(params, outputs):
        for n, layer in enumerate(nnx.merge(graph, params)):
            outputs = nnx.RNN(layer.cell)(outputs * (masks[n - 1][:, None] if n else 1))
        return outputs

    found = jax.jit(lambda inputs: lstm(inputs, masks=masks)[0])(inputs)
    np.testing.assert_allclose(found, by_flax(params, inputs), atol=1e-6)
    with pytest.raises(ValueError, match="expected 2 masks, one between each two layers, got 1"):
        lstm(inputs, masks=masks[:1])
    for wrong in (masks[0][0], masks[0][:, None], masks[0][:1]):
        with pytest.raises(ValueError, match=r"LSTM expected masks\[0\] of shape \(2, 4\), got"):
            lstm(inputs, masks=[wrong, masks[1]])
