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
    return jax.tree.map(lambda leaf: np.cos(np.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), at)


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
    return sum(jax.tree.leaves(jax.tree.map(np.vdot, one, other)))


@cache
def derivatives_of_flax(name):
    """The same, all from gradients and from products of the Hessian with vectors, of the layer as Flax runs it."""
    total, params = total_of(drawn_module(lambda: LAYERS[name](backend="flax", rngs=nnx.Rngs(0))))
    gradient_and_product = jax.jit(lambda at, vector: jax.jvp(jax.grad(total, (0, 1)), at, vector))

    def along(vector, inputs=INPUTS):
        return jax.tree.map(np.asarray, gradient_and_product((params, inputs), vector))

    direction = direction_of((params, INPUTS))
    scaled = [along(direction, scale * INPUTS)[0] for scale in SCALES]
    gradient, of_direction = along(direction)
    _, of_gradient = along((jax.tree.map(np.zeros_like, direction[0]), gradient[1]))
    return {
        "reverse": gradient,
        "forward": dot(gradient, direction),
        "linearize": dot(gradient, direction),
        "vmap of forward": np.array([dot(one, direction) for one in scaled]),
        "reverse of vmap": jax.tree.map(lambda *leaves: sum(leaves), *[of_params for of_params, _ in scaled]),
        "forward over reverse": of_direction[1],
        "jacfwd": gradient[1],
        "forward over forward": dot(of_direction, direction),
        "reverse over forward": of_direction,
        "reverse over jacfwd": 2 * of_gradient[1],
    }


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

    @jax.jit
    def compute(x):
        return {
            "value": run(1)(x),
            "gradient": jax.vmap(jax.grad(run(10)))(x),
            "tangent": jax.jvp(run(10), (x,), (jnp.ones(2),))[1],
            "none": jax.grad(lambda factor: cube(1, {"x": x}, factor)["cube"].sum())(2.0),
            "of the sign": jax.grad(lambda x: cube(1, {"x": x}, 2.0)["sign"].sum())(x),
        }

    assert jax.tree.map(np.ndarray.tolist, jax.device_get(compute(np.float32([1, 2])))) == {
        "value": [2, 16],
        "gradient": [60, 240],  # ten times that of the function
        "tangent": [6, 24],
        "none": 0,
        "of the sign": [0, 0],
    }


def test_arguments_without_a_vmap_get_the_sum_of_the_gradients():
    x, factors = np.float32([1, 2]), np.arange(3, dtype=np.float32)

    def total(x):
        return jax.vmap(lambda factor: cube(1, {"x": x}, factor)["cube"], out_axes=1)(factors).sum()

    @jax.jit
    def compute(x):
        # The tangents alone are mapped over, and the result is transposed.
        jacobian = jax.jacfwd(lambda x: cube(1, {"x": x}, 1.0)["cube"])
        return jax.grad(total)(x), jax.jvp(total, (x,), (jnp.ones(2),))[1], jax.grad(lambda x: jacobian(x).sum())(x)

    for found, expected in zip(compute(x), (9 * x**2, (9 * x**2).sum(), 6 * x), strict=True):
        np.testing.assert_allclose(found, expected)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_forward_mode_within_shard_map():
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    graph, params, rest = nnx.split(drawn_module(lambda: LSTM(3, 4, rngs=nnx.Rngs(0))), nnx.Param, ...)

    def tangent(params, inputs):
        return jax.jvp(lambda x: nnx.merge(graph, params, rest, copy=True)(x)[0], (inputs,), (inputs,))[1]

    specs = {"mesh": mesh, "in_specs": (P(), P("batch")), "out_specs": P("batch")}
    found = jax.jit(jax.shard_map(tangent, **specs))(params, INPUTS)
    np.testing.assert_allclose(found, jax.jit(tangent)(params, INPUTS), atol=1e-6)


def test_an_update_may_close_over_traced_values_and_the_axis_of_a_vmap():
    x = np.ones((2, 3, 4), np.float32)

    def total(w, x, axis=None):
        def update(params, carry, projected, recurrent):
            y = jnp.tanh(w * projected[0] + recurrent[0])
            return (y if axis is None else y - jax.lax.pmean(y, axis),)

        return gated(update, {}, (x,), np.eye(4, dtype=np.float32), (np.zeros((3, 4), np.float32),))[0][0].sum()

    weights = np.float32([0.699, 0.7, 0.701])

    @jax.jit
    def compute(w, weights):
        every = jax.vmap(lambda w: total(w, x))(weights)
        pairs = jax.vmap(lambda x: total(0.7, x, "pairs"), axis_name="pairs")(jnp.stack([x, 2 * x]))
        return jax.grad(total)(w, x), total(w, x), every, [total(one, x) for one in weights], pairs

    gradient, value, every, one_by_one, pairs = jax.tree.map(np.asarray, compute(0.7, weights))
    np.testing.assert_allclose(gradient, (one_by_one[2] - one_by_one[0]) / 0.002, rtol=1e-3)
    np.testing.assert_allclose(value, total(0.7, x), rtol=1e-6)
    np.testing.assert_allclose(every, one_by_one, rtol=1e-6)
    np.testing.assert_allclose(pairs.sum(), 0, atol=1e-5)
    assert pairs[1] > 0.1
