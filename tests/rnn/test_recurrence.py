"""The gradients of the recurrence in float64 against NumPy, its second derivatives, and what it refuses.

Its states, in float32: test_native.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from lstm_mnist_jax.rnn import lstm

TIME, BATCH, FEATURES, HIDDEN = 5, 3, 4, 6


def arguments(rng, dtype=np.float32, time=TIME, batch=BATCH, features=FEATURES, hidden=HIDDEN):
    shapes = [(time, batch, features), (features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)]
    arrays = [rng.normal(size=shape).astype(dtype) for shape in (*shapes, (batch, hidden), (batch, hidden))]
    return *arrays[:4], (arrays[4], arrays[5])


def test_gradients_in_numpy_are_those_of_finite_differences(rng):
    """Those with which all others here are compared."""
    *weights, carry = arguments(rng, np.float64)
    args = *weights, *carry
    d_hs, d_cs = rng.normal(size=(2, TIME, BATCH, HIDDEN))
    d_last = rng.normal(size=(2, BATCH, HIDDEN))
    for reverse in (False, True):

        def total(args, reverse=reverse):
            hs, cs = numpy_lstm.lstm(*args, reverse=reverse)
            last = np.array(numpy_lstm.last(hs, cs, *args[4:], reverse=reverse))
            return (hs * d_hs).sum() + (cs * d_cs).sum() + (last * d_last).sum()

        for n, gradient in enumerate(numpy_lstm.gradients(*args, d_hs, d_cs, d_last, reverse=reverse)):
            for index in [(0,) * gradient.ndim, (-1,) * gradient.ndim, (1,) * gradient.ndim]:
                up, down = ([array.copy() for array in args] for _ in range(2))
                up[n][index] += 1e-6
                down[n][index] -= 1e-6
                np.testing.assert_allclose(gradient[index], (total(up) - total(down)) / 2e-6, rtol=1e-7, atol=1e-7)


MIX = np.random.default_rng(1).normal(size=(2, TIME, BATCH, HIDDEN))
LAST_MIX = np.random.default_rng(2).normal(size=(2, BATCH, HIDDEN))


@partial(jax.jit, static_argnames=("used", "reverse", "unroll"))
def gradients_of_losses(*args, used, reverse, unroll):
    """Of a loss of the outputs, one of the cell states, one of the last carry, and of their sum: those in `used`."""

    def loss(used, *args):
        states = lstm(*args, reverse=reverse, unroll=unroll)
        parts = {"h": (states.h * MIX[0]).sum(), "c": (states.c**2 * MIX[1]).sum()}
        parts["last"] = jnp.sum(jnp.stack(states.last) * LAST_MIX)
        return sum(parts.values()) if used == "all" else parts[used]

    return [jax.grad(partial(loss, one), argnums=(0, 1, 2, 3, 4))(*args) for one in used]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("unroll", [1, 2, 7])
def test_gradients_in_float64_are_those_of_numpy(rng, reverse, unroll):
    *weights, carry = arguments(rng, np.float64)
    used = ("h", "c", "last", "all") if unroll == 1 else ("all",)
    with jax.enable_x64(True):
        found = gradients_of_losses(*weights, carry, used=used, reverse=reverse, unroll=unroll)
    _, cs = numpy_lstm.lstm(*weights, *carry, reverse=reverse)
    parts = {"h": {"d_hs": MIX[0]}, "c": {"d_cs": 2 * cs * MIX[1]}, "last": {"d_last": LAST_MIX}}
    parts["all"] = parts["h"] | parts["c"] | parts["last"]
    for one, ours in zip(used, found, strict=True):
        expected = numpy_lstm.gradients(*weights, *carry, **parts[one], reverse=reverse)
        for a, b in zip(jax.tree.leaves(ours), expected, strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_second_derivatives(rng):
    with jax.enable_x64(True):
        args = arguments(rng, np.float64, 3, 2, 2, 2)
        check_grads(jax.jit(lambda *args: lstm(*args).h.sum()), args, order=2, modes=["rev"], atol=1e-5, rtol=1e-5)


def test_saturated_gates_stay_finite(rng):
    inputs, *weights, carry = arguments(rng)
    gradient = jax.grad(lambda x: lstm(x, *weights, carry).h.sum())(inputs * 1e4)
    assert np.isfinite(gradient).all()


def test_vmap_over_the_weights_of_many_networks(rng):
    many = [arguments(rng) for _ in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *many)

    def loss(*args):
        return lstm(*args).last.h.sum()

    gradients = jax.tree.map(np.asarray, jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 2))))(*stacked))
    for n, (*weights, carry) in enumerate(many):
        expected = numpy_lstm.gradients(*weights, *carry, d_last=(0, 1))
        for ours, theirs in zip(gradients, (expected[0], expected[2]), strict=True):
            np.testing.assert_allclose(ours[n], theirs, atol=1e-5)


def test_weights_of_other_than_four_gates_are_refused(rng):
    inputs, kernel, recurrent_kernel, bias, carry = arguments(rng)
    with pytest.raises(ValueError, match="recurrent_kernel is 6 x 18; with 6 hidden features, expected 24 columns"):
        lstm(inputs, kernel[:, :18], recurrent_kernel[:, :18], bias[:18], carry)
    with pytest.raises(ValueError, match=r"recurrent_kernel has shape \[24\]; expected \[hidden, 4 hidden\]"):
        lstm(inputs, kernel, recurrent_kernel[0], bias, carry)


@pytest.mark.parametrize("backend", ["auto", "xla", "pallas_interpret_tpu"])
def test_shapes_that_do_not_agree_are_refused(rng, backend):
    *weights, carry = arguments(rng)
    inputs, kernel, recurrent_kernel, bias = weights
    resets = np.ones((TIME, BATCH), bool)
    for args, options, message in (
        ((inputs[0], *weights[1:], carry), {}, r"inputs has shape \[3, 4\]; expected \[time, batch, features\]"),
        ((inputs, kernel[1:], recurrent_kernel, bias, carry), {}, r"kernel has .*features, 4 hidden.*\[4, 24\] here"),
        ((inputs, kernel, recurrent_kernel, bias[:1], carry), {}, r"bias has shape \[1\]; .* \[24\] here"),
        ((*weights, (carry[0][:1], carry[1])), {}, r"c of initial_carry has shape \[1, 6\]; .* \[3, 6\] here"),
        ((*weights, carry), {"resets": resets.T}, r"resets has shape \[3, 5\]; .* \[5, 3\] here"),
        ((*weights, carry), {"resets": resets, "reset_carry": (carry[0], carry[1][:1])}, "h of reset_carry has"),
    ):
        with pytest.raises(ValueError, match=message):
            lstm(*args, backend=backend, **options)


@pytest.mark.parametrize("features", [FEATURES, 0])
def test_gradients_where_no_devices_can_share_the_batch(rng, features):
    """As on a machine with one device, which these tests do not have: `products.outer` flattens time and batch."""
    *weights, carry = arguments(rng, features=features)
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    gradients = jax.grad(lambda *args: lstm(*args, carry, backend="xla").h.sum(), argnums=(0, 1, 2, 3))
    found = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=P(), out_specs=P(), axis_names={"data"}))(*weights)
    for ours, theirs in zip(found, numpy_lstm.gradients(*weights, *carry, d_hs=1), strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
