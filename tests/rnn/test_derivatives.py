"""Forward mode, reverse mode and their combinations, of layers and of any function with a gradient of its own."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from parameters import drawn_module

from lstm_mnist_jax.rnn import GRU, LSTM, LayerNormLSTMCell, StackedRNN, gated
from lstm_mnist_jax.rnn.derivatives import Function

INPUTS = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
LENGTHS = np.array([6, 3, 0, 4])
SCALES = np.float32([0.5, 1, 2])
RESETS = np.random.default_rng(1).random((4, 6)) < 0.3

LAYERS = {
    "lstm": partial(LSTM, 3, 4),
    "gru": partial(GRU, 3, 4),
    "layer_norm": partial(StackedRNN, LayerNormLSTMCell, 3, 4),
}


def total_of(layer):
    """A function of parameters and inputs: a number that depends on all results. And the parameters."""
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def total(params, inputs):
        outputs, carries = nnx.merge(graph, params, rest, copy=True)(inputs, seq_lengths=LENGTHS, resets=RESETS)
        return jnp.sin(outputs).sum() + sum(jnp.cos(leaf).sum() for leaf in jax.tree.leaves(carries))

    return total, params


def direction_of(at):
    return jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), at)


def derivatives(layer, first_alone):
    """The derivatives, in many ways; or mostly the first ones."""
    total, params = total_of(layer)

    @jax.jit
    def compute(params, inputs):
        at = (params, inputs)
        direction = direction_of(at)

        def along(*at):
            return jax.jvp(total, at, direction)[1]

        first = {
            "reverse": jax.grad(total, (0, 1))(*at),
            "forward": along(*at),
            "linearize": jax.linearize(total, *at)[1](*direction),
            "vmap of forward": jax.vmap(lambda scale: along(params, inputs * scale))(SCALES),
            "reverse of vmap": jax.grad(lambda p: jax.vmap(lambda s: total(p, inputs * s))(SCALES).sum())(params),
            "forward over reverse": jax.jvp(lambda *at: jax.grad(total, 1)(*at), at, direction)[1],
        }
        if first_alone:
            return first
        return first | {
            "jacfwd": jax.jacfwd(total, 1)(*at),
            "forward over forward": jax.jvp(along, at, direction)[1],
            "reverse over forward": jax.grad(along, (0, 1))(*at),
            "reverse over jacfwd": jax.grad(lambda x: jnp.sum(jax.jacfwd(total, 1)(params, x) ** 2))(inputs),
        }

    return compute(params, INPUTS)


def dot(one, other):
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, one, other)))


@cache
def derivatives_of_flax(name):
    """The same, all from gradients and from products of the Hessian with vectors, of the layer as Flax runs it."""
    total, params = total_of(drawn_module(lambda: LAYERS[name](backend="flax", rngs=nnx.Rngs(0))))
    gradient_of = jax.grad(total, (0, 1))

    @jax.jit
    def compute(params, inputs):
        at = (params, inputs)
        direction = direction_of(at)
        scaled = jax.vmap(lambda scale: gradient_of(params, inputs * scale))(SCALES)
        gradient = jax.tree.map(lambda leaf: leaf[SCALES.tolist().index(1)], scaled)
        vectors = direction, (jax.tree.map(jnp.zeros_like, params), gradient[1])
        vectors = jax.tree.map(lambda *leaves: jnp.stack(leaves), *vectors)
        products = jax.vmap(lambda vector: jax.jvp(gradient_of, at, vector)[1])(vectors)
        of_direction, of_gradient = (jax.tree.map(lambda leaf, n=n: leaf[n], products) for n in (0, 1))
        return {
            "reverse": gradient,
            "forward": dot(gradient, direction),
            "linearize": dot(gradient, direction),
            "vmap of forward": jax.vmap(lambda one: dot(one, direction))(scaled),
            "reverse of vmap": jax.tree.map(lambda leaf: leaf.sum(0), scaled[0]),
            "forward over reverse": of_direction[1],
            "jacfwd": gradient[1],
            "forward over forward": dot(of_direction, direction),
            "reverse over forward": of_direction,
            "reverse over jacfwd": 2 * of_gradient[1],
        }

    return compute(params, INPUTS)


@pytest.mark.parametrize(
    ("name", "backend"),
    [("lstm", "auto"), pytest.param("lstm", "xla", marks=pytest.mark.slow), ("gru", "auto"), ("layer_norm", "auto")],
)
def test_every_derivative_of_a_layer_is_that_of_flax(name, backend):
    options = {"remat": 2} if name == "layer_norm" else {}
    layer = drawn_module(lambda: LAYERS[name](backend=backend, **options, rngs=nnx.Rngs(0)))
    found, expected = derivatives(layer, first_alone=name == "layer_norm"), derivatives_of_flax(name)
    for how in found:
        for a, b in zip(jax.tree.leaves(found[how]), jax.tree.leaves(expected[how]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * (1 + np.abs(b).max()), err_msg=how)


def _cube(_, x, factor):
    return {"cube": factor * x["x"] ** 3, "sign": jnp.sign(x["x"])}


def _cube_forward(_, x, factor):
    return _cube(_, x, factor), x["x"] ** 2


def _cube_backward(scale, arguments, squared, gradients):
    _, factor = arguments
    if gradients["cube"] is None:
        return {"x": None}, None
    return {"x": scale * 3 * factor * squared * gradients["cube"]}, None


cube = Function(_cube, _cube_forward, _cube_backward)


def test_the_gradient_is_the_one_given_and_forward_mode_is_that_of_the_function():
    def run(scale):
        return lambda x: cube(scale, {"x": x}, jnp.float32(2))["cube"]

    x = jnp.array([1.0, 2.0])
    assert run(1)(x).tolist() == [2, 16]
    assert jax.vmap(jax.grad(run(10)))(x).tolist() == [60, 240]  # ten times that of the function
    assert jax.jvp(run(10), (x,), (jnp.ones(2),))[1].tolist() == [6, 24]
    assert jax.grad(lambda factor: cube(1, {"x": x}, factor)["cube"].sum())(2.0) == 0  # None
    assert jax.grad(lambda x: cube(1, {"x": x}, 2.0)["sign"].sum())(x).tolist() == [0, 0]


def test_arguments_without_a_vmap_get_the_sum_of_the_gradients():
    x, factors = jnp.array([1.0, 2.0]), jnp.arange(3.0)

    def total(x):
        return jax.vmap(lambda factor: cube(1, {"x": x}, factor)["cube"], out_axes=1)(factors).sum()

    np.testing.assert_allclose(jax.grad(total)(x), 9 * x**2)
    np.testing.assert_allclose(jax.jvp(total, (x,), (jnp.ones(2),))[1], (9 * x**2).sum())
    # The tangents alone are mapped over, and the result is transposed.
    np.testing.assert_allclose(
        jax.grad(lambda x: jnp.sum(jax.jacfwd(lambda x: cube(1, {"x": x}, 1.0)["cube"])(x)))(x), 6 * x
    )


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_forward_mode_within_shard_map():
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    graph, params, rest = nnx.split(LSTM(3, 4, rngs=nnx.Rngs(0)), nnx.Param, ...)

    def tangent(params, inputs):
        return jax.jvp(lambda x: nnx.merge(graph, params, rest, copy=True)(x)[0], (inputs,), (inputs,))[1]

    specs = {"mesh": mesh, "in_specs": (P(), P("batch")), "out_specs": P("batch")}
    found = jax.jit(jax.shard_map(tangent, **specs))(params, INPUTS)
    np.testing.assert_allclose(found, jax.jit(tangent)(params, INPUTS), atol=1e-6)


def test_an_update_may_close_over_traced_values_and_the_axis_of_a_vmap():
    x = jnp.ones((2, 3, 4))

    def total(w, x, axis=None):
        def update(params, carry, projected, recurrent):
            y = jnp.tanh(w * projected[0] + recurrent[0])
            return (y if axis is None else y - jax.lax.pmean(y, axis),)

        return gated(update, {}, (x,), jnp.eye(4), (jnp.zeros((3, 4)),))[0][0].sum()

    by_difference = (total(0.701, x) - total(0.699, x)) / 0.002
    np.testing.assert_allclose(jax.jit(jax.grad(total))(0.7, x), by_difference, rtol=1e-3)
    np.testing.assert_allclose(jax.jit(total)(0.7, x), total(0.7, x), rtol=1e-6)
    weights = jnp.array([0.5, 0.7])
    found = jax.jit(jax.vmap(lambda w: total(w, x)))(weights)
    np.testing.assert_allclose(found, [total(w, x) for w in weights], rtol=1e-6)
    found = jax.vmap(lambda x: total(0.7, x, "pairs"), axis_name="pairs")(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(found.sum(), 0, atol=1e-5)
    assert found[1] > 0.1
