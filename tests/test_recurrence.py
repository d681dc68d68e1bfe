"""The recurrence against the equations in NumPy, forward, and finite differences in float64, backward."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import pytest
from jax.test_util import check_grads

from lstm_mnist_jax.rnn import lstm

TIME, BATCH, FEATURES, HIDDEN = 5, 3, 4, 6


def arguments(rng, dtype=np.float32, time=TIME, batch=BATCH, features=FEATURES, hidden=HIDDEN):
    shapes = [(time, batch, features), (features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)]
    arrays = [rng.normal(size=shape).astype(dtype) for shape in (*shapes, (batch, hidden), (batch, hidden))]
    return *arrays[:4], (arrays[4], arrays[5])


@pytest.mark.parametrize(("time", "batch", "features", "hidden"), [(5, 3, 4, 6), (1, 1, 1, 1), (40, 2, 3, 5)])
def test_forward_is_the_equations(rng, time, batch, features, hidden):
    *weights, (c, h) = arguments(rng, np.float32, time, batch, features, hidden)
    states = lstm(*weights, (c, h))
    hs, cs = numpy_lstm.lstm(*weights, c, h)
    np.testing.assert_allclose(states.h, hs, atol=2e-6)
    np.testing.assert_allclose(states.c, cs, atol=5e-6)
    np.testing.assert_array_equal(states.last.h, states.h[-1])
    np.testing.assert_array_equal(states.last.c, states.c[-1])


def test_reverse_reads_from_the_end(rng):
    inputs, *weights, (c, h) = arguments(rng)
    states = lstm(inputs, *weights, (c, h), reverse=True)
    hs, cs = numpy_lstm.lstm(inputs[::-1], *weights, c, h)
    np.testing.assert_allclose(states.h, hs[::-1], atol=2e-6)
    np.testing.assert_allclose(states.last.c, cs[-1], atol=5e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("unroll", [1, 2, 7])
@pytest.mark.parametrize("used", ["h", "c", "last", "all"])
def test_gradient_is_that_of_finite_differences(rng, reverse, unroll, used):
    with jax.enable_x64(True):
        args = arguments(rng, np.float64)
        mix = {name: rng.normal(size=(TIME, BATCH, HIDDEN)) for name in ("h", "c")}
        last_mix = rng.normal(size=(2, BATCH, HIDDEN))

        def loss(*args):
            states = lstm(*args, reverse=reverse, unroll=unroll)
            parts = {"h": (states.h * mix["h"]).sum(), "c": (states.c**2 * mix["c"]).sum()}
            parts["last"] = jnp.sum(jnp.stack([states.last.c, states.last.h]) * last_mix)
            return sum(parts.values()) if used == "all" else parts[used]

        check_grads(loss, args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_second_derivatives(rng):
    with jax.enable_x64(True):
        args = arguments(rng, np.float64, 3, 2, 2, 2)
        check_grads(lambda *args: lstm(*args).h.sum(), args, order=2, modes=["rev"], atol=1e-5, rtol=1e-5)


def test_saturated_gates_stay_finite(rng):
    inputs, *weights, carry = arguments(rng)
    gradient = jax.grad(lambda x: lstm(x, *weights, carry).h.sum())(inputs * 1e4)
    assert np.isfinite(gradient).all()


def test_vmap_over_the_weights_of_many_networks(rng):
    many = [arguments(rng) for _ in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *many)

    def loss(*args):
        return lstm(*args).last.h.sum()

    gradients = jax.vmap(jax.grad(loss, argnums=(0, 2)))(*stacked)
    for n, args in enumerate(many):
        expected = jax.grad(loss, argnums=(0, 2))(*args)
        for ours, theirs in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(ours[n], theirs, atol=1e-5)


def test_weights_of_other_than_four_gates_are_refused(rng):
    inputs, kernel, recurrent_kernel, bias, carry = arguments(rng)
    with pytest.raises(ValueError, match="recurrent_kernel is 6 x 18; with 6 hidden features, expected 24 columns"):
        lstm(inputs, kernel[:, :18], recurrent_kernel[:, :18], bias[:18], carry)
