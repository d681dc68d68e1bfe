"""A batch over several devices: it stays sharded, and nothing is gathered."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from parameters import drawn_module

from lstm_mnist_jax.rnn import GRU, LSTM, gated, lstm, native

pytestmark = pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")

BATCH, TIME, FEATURES = 4, 6, 4
LENGTHS = np.array([6, 0, 3, 5])


def mesh_of(kind):
    return jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])


needs_kernel = pytest.mark.skipif(native.unavailable() is not None, reason="no compiled kernel")
INPUTS = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)
BOTH = {"bidirectional": True}
LAYERS = [
    pytest.param(LSTM, {"backend": "xla", **BOTH}, id="LSTM, XLA"),
    pytest.param(LSTM, {"backend": "native", "remat": 4, **BOTH}, id="LSTM, kernel", marks=needs_kernel),
    pytest.param(GRU, {"backend": "xla", **BOTH}, id="GRU, XLA"),
    pytest.param(GRU, {"backend": "native", **BOTH}, id="GRU, kernel", marks=needs_kernel),
    # (Of a TPU, only within a `shard_map`: test_native_transformations.py.)
    pytest.param(LSTM, {"backend": "pallas_interpret_gpu"}, id="LSTM, Pallas, GPU", marks=pytest.mark.slow),
    pytest.param(LSTM, {"backend": "flax"}, id="LSTM, Flax", marks=pytest.mark.slow),
]


def made(layer, widths=5, **options):
    return drawn_module(lambda: layer(FEATURES, widths, **options, rngs=nnx.Rngs(0)))


def differentiated(layer, **options):
    """A jitted function of the layer's parameters and inputs, and these parameters."""
    graph, params, states = nnx.split(made(layer, **options), nnx.Param, ...)

    def loss(params, inputs):
        outputs, carries = nnx.merge(graph, params, states)(inputs, seq_lengths=LENGTHS)
        return jnp.sum(outputs**2) + sum(jnp.sin(part).sum() for part in jax.tree.leaves(carries)), (outputs, carries)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)), params


@cache
def on_one_device(layer, bidirectional):
    differentiate, params = differentiated(layer, backend="xla", bidirectional=bidirectional)
    return jax.tree.leaves(jax.device_get(differentiate(params, INPUTS)))


@pytest.mark.parametrize(("layer", "options"), LAYERS)
def test_sharded_inputs(layer, options):
    differentiate, params = differentiated(layer, **options)

    def assert_wanted(found, case):
        for a, b in zip(jax.tree.leaves(found), on_one_device(layer, "bidirectional" in options), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=case)

    for kind, spec in itertools.product([AxisType.Auto, AxisType.Explicit], [P("data"), P(None, None, "data")]):
        case, mesh = f"{kind}, {spec}", mesh_of(kind)
        sharded = jax.device_put(INPUTS, NamedSharding(mesh, spec))
        compiled = differentiate.lower(params, sharded).compile()
        found = compiled(params, sharded)
        assert_wanted(found, case)
        assert "all-gather" not in compiled.as_text(), case
        assert "all-to-all" not in compiled.as_text(), case
        (_, (outputs, carries)), _ = found
        for array in [outputs, *jax.tree.leaves(carries)]:
            assert array.sharding.spec[:1] in ((spec[0],), () if spec[0] is None else None), case
        if layer is GRU and spec == P("data"):
            with jax.set_mesh(mesh):
                again = differentiate(params, sharded)
            assert_wanted(again, f"{case}, within jax.set_mesh")


def test_inputs_without_a_sharding_under_a_mesh():
    stack = made(LSTM)
    with jax.set_mesh(mesh_of(AxisType.Auto)):
        outputs, _ = jax.jit(stack)(INPUTS)
    wanted, _ = stack(INPUTS)
    np.testing.assert_allclose(outputs, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [LSTM, GRU])
def test_gradients_outside_jit_of_inputs_without_a_sharding_under_a_mesh(layer):
    def gradients():
        return nnx.grad(lambda stack: stack(INPUTS, seq_lengths=LENGTHS)[0].sum())(made(layer))

    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        found = jax.device_get(gradients())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, gradients())


def test_a_vmap_over_a_sharded_axis():
    graph, params = nnx.split(made(LSTM))
    inputs = np.stack([INPUTS, -INPUTS])

    @jax.value_and_grad
    def loss(params, inputs):
        outputs = jax.vmap(lambda inputs: nnx.merge(graph, params)(inputs)[0])(inputs)
        return jnp.sum(outputs**2)

    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        found = jax.device_get(jax.jit(loss)(params, jax.device_put(inputs, NamedSharding(mesh, P("data")))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, loss(params, inputs))


@pytest.mark.parametrize("layer", [LSTM, GRU])
def test_calls_outside_jit_keep_the_sharding_of_explicit_axes(layer):
    mesh = mesh_of(AxisType.Explicit)
    inputs = jax.device_put(INPUTS, NamedSharding(mesh, P("data")))
    outputs, carries = made(layer)(inputs, seq_lengths=LENGTHS)
    for array in [outputs, *jax.tree.leaves(carries)]:
        assert jax.typeof(array).sharding.spec[0] == "data"


def test_noise_in_a_mesh():
    mesh = mesh_of(AxisType.Explicit)
    sharded = jax.device_put(INPUTS, NamedSharding(mesh, P("data")))
    options = {"dropout_rate": 0.5, "recurrent_dropout_rate": 0.2, "zoneout_rates": 0.1}
    run = nnx.jit(lambda stack, inputs: stack(inputs)[0])
    in_mesh, alone = (LSTM(FEATURES, (4, 4), **options, rngs=nnx.Rngs(0)) for _ in range(2))
    with jax.set_mesh(mesh):
        outputs = run(in_mesh, sharded)
    wanted = run(alone, INPUTS)
    np.testing.assert_allclose(outputs, wanted, rtol=1e-5, atol=1e-6)


def test_functions_of_arrays_keep_the_sharding_of_explicit_axes(rng):
    mesh = mesh_of(AxisType.Explicit)
    inputs = np.float32(rng.normal(size=(TIME, BATCH, FEATURES)))
    sharded = jax.device_put(inputs, NamedSharding(mesh, P(None, "data")))
    weights = [np.float32(rng.normal(size=shape)) for shape in [(FEATURES, 20), (5, 20), (20,)]]
    zeros = np.zeros((BATCH, 5), np.float32)
    states = lstm(sharded, *weights, (zeros, zeros))
    assert jax.typeof(states.h).sharding.spec[1] == "data"
    wanted = lstm(inputs, *weights, (zeros, zeros))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), states, wanted)

    def update(params, carry, projected, recurrent):
        return (jnp.tanh(projected[0] + recurrent[0]),)

    projected = jax.device_put(np.ones((TIME, BATCH, 5), np.float32), NamedSharding(mesh, P(None, "data")))
    (outputs,), _ = gated(update, {}, (projected,), np.ones((5, 5), np.float32), (zeros,))
    assert jax.typeof(outputs).sharding.spec[1] == "data"


def test_time_over_explicit_axes_is_refused():
    mesh = mesh_of(AxisType.Explicit)
    inputs = jax.device_put(INPUTS, NamedSharding(mesh, P(None, "data")))
    with pytest.raises(ValueError, match=r"The time axis of the inputs is sharded over 'data'.*jax\.sharding\.reshard"):
        made(LSTM)(inputs)
