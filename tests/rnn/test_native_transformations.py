"""The compiled kernel under JAX's transformations: derivatives of derivatives, vmap, shard_map, loops, export."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from lstm_cases import arguments, assert_close, numpy_gradients, numpy_states

from lstm_mnist_jax.rnn import lstm, native

REASON = native.unavailable()
needs_kernel = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernel: {REASON}")


@needs_kernel
def test_second_derivatives(rng):
    inputs, *weights = arguments(rng, 3, 2, 2, 5)

    @jax.jit
    def penalties(inputs):
        def penalty(backend):
            def squared(x):
                return jnp.sum(jax.grad(lambda x: jnp.sum(lstm(x, *weights, backend=backend).h ** 2))(x) ** 2)

            return jax.grad(squared)(inputs), jax.jvp(squared, (inputs,), (inputs,))

        return penalty("native"), penalty("xla")

    assert_close(*penalties(inputs), 1e-4)


@needs_kernel
def test_jacobians_of_gradients_of_several_results(rng):
    """vmap of derivatives of the loop itself: their axes of results must not be taken for those of time."""
    inputs, *weights = arguments(rng, 3, 2, 2, 5)

    @jax.jit
    def jacobians(inputs):
        def few(backend, x):
            return jnp.sin(lstm(x, *weights, backend=backend).h.reshape(-1))[:3]

        return [jax.jacfwd(jax.jacrev(partial(few, backend)))(inputs) for backend in ("native", "xla")]

    assert_close(*jacobians(inputs), 1e-5)


@needs_kernel
@pytest.mark.parametrize("weights", ["shared", "own"])
def test_no_instances_at_all(rng, weights):
    inputs, kernel, recurrent_kernel, *rest = arguments(rng, 4, 3, 2, 6)
    axes = (0, None) if weights == "shared" else (0, 0)
    none = np.zeros((0, *inputs.shape)), recurrent_kernel if weights == "shared" else np.zeros((0, 6, 24))

    def loss(x, u):
        return jnp.sum(lstm(x, kernel, u, *rest, backend="native").h)

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1)), in_axes=axes))(*none)
    assert values.shape == (0,)
    assert [gradient.shape for gradient in gradients] == [(0, 4, 3, 2), (0, 6, 24)]


@needs_kernel
def test_vmap_over_inputs_and_weights(rng):
    """Of either or both, at any axis, one within another, and of the bias alone."""
    inputs, kernel, recurrent_kernel, bias, carry = arguments(rng, 4, 3, 2, 6)
    others = arguments(np.random.default_rng(1), 4, 3, 2, 6)[0]
    factors = np.float32([1, -1, 2])

    def value_and_grad(x, u):
        def loss(x, u):
            return jnp.sum(lstm(x, kernel, u, bias, carry, backend="native").h ** 2)

        return jax.value_and_grad(loss, argnums=(0, 1))(x, u)

    def stacked(array, axis):
        return array if axis is None else np.stack([factor * array for factor in factors], axis)

    every_axes = [(0, None), (None, 0), (0, 0), (1, 2)]

    @jax.jit
    def run():
        single = [
            jax.vmap(value_and_grad, in_axes=axes)(stacked(inputs, axes[0]), stacked(recurrent_kernel, axes[1]))
            for axes in every_axes
        ]
        nested = jax.vmap(jax.vmap(value_and_grad, in_axes=(None, 0)), in_axes=(0, None))
        nested = nested(np.stack([others, inputs]), stacked(recurrent_kernel, 0))
        biased = jax.vmap(lambda b: lstm(inputs, kernel, recurrent_kernel, b, carry, backend="native"))
        return single, nested, biased(np.stack([bias, 2 * bias]))

    def expected(x, u):
        args = x, kernel, u, bias, carry
        hs = numpy_states(args).h
        gradients = numpy_gradients(args, d_hs=2 * hs)
        return np.sum(hs**2), (gradients[0], gradients[2])

    single, nested, biased = jax.tree.map(np.asarray, run())
    for axes, found in zip(every_axes, single, strict=True):
        for n, factor in enumerate(factors):
            of_x, of_u = (1 if axis is None else factor for axis in axes)
            got = jax.tree.map(lambda array, n=n: array[n], found)
            assert_close(got, expected(of_x * inputs, of_u * recurrent_kernel), 3e-5)
    for n, x in enumerate((others, inputs)):
        for k, factor in enumerate(factors):
            got = jax.tree.map(lambda array, n=n, k=k: array[n, k], nested)
            assert_close(got, expected(x, factor * recurrent_kernel), 3e-5)
    for n, b in enumerate((bias, 2 * bias)):
        got = jax.tree.map(lambda array, n=n: array[n], biased)
        assert_close(got, numpy_states((inputs, kernel, recurrent_kernel, b, carry)), 3e-5)


@pytest.mark.parametrize(
    ("backend", "check_vma"),
    [
        *(pytest.param("native", check, marks=needs_kernel) for check in (False, True)),
        *(("xla", check) for check in (False, True)),
        # (With check_vma, JAX's interpret mode fails.)
        *(pytest.param(f"pallas_interpret_{kind}", False, marks=pytest.mark.slow) for kind in ("tpu", "gpu")),
    ],
)
def test_shard_map(rng, backend, check_vma):
    if jax.device_count() < 2 or jax.default_backend() != "cpu":
        pytest.skip("needs two CPU devices")
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    args = arguments(rng, 5, 4, 4, 6)
    *arrays, (c, h) = args

    def local(inputs, kernel, recurrent_kernel, bias, c, h):
        def loss(*weights):
            return lstm(inputs, *weights, (c, h), backend=backend).last.h.sum()

        value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2))(kernel, recurrent_kernel, bias)
        return jax.lax.psum((value, grads), "data") if not check_vma else (jax.lax.psum(value, "data"), grads)

    specs = P(None, "data"), P(), P(), P(), P("data"), P("data")
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
    last = numpy_states(args).last
    wanted = last.h.sum(), numpy_gradients(args, d_last=(0, 1))[1:4]
    assert_close(jax.jit(mapped)(*arrays, c, h), wanted)


@needs_kernel
def test_loops_and_checkpoint(rng):
    inputs, *weights = arguments(rng, 4, 3, 6, 6)

    @partial(jax.jit, static_argnums=0)
    def run(backend, inputs):
        def layer(x):
            return lstm(x, *weights, backend=backend).h

        def loss(x):
            x, _ = jax.lax.scan(lambda x, _: (jax.checkpoint(layer)(x), None), x, None, length=3)
            return x.sum()

        return jax.grad(loss)(inputs), jax.lax.fori_loop(0, 3, lambda _, x: layer(x), inputs)

    assert_close(run("native", inputs), run("xla", inputs))


@needs_kernel
def test_another_platform_takes_xla_and_an_export_must_ask_for_it(rng):
    args = arguments(rng, 4, 3, 6, 6)
    with pytest.raises(ValueError, match="custom calls"):
        jax.export.export(jax.jit(lambda *args: lstm(*args, backend="native")))(*args)
    exported = jax.export.export(jax.jit(lambda *args: lstm(*args, backend="native")), platforms=["cuda"])(*args)
    assert "lstm_mnist_jax_lstm_forward" not in exported.mlir_module()
    exported = jax.export.export(jax.jit(lambda *args: lstm(*args, backend="xla")))(*args)
    assert_close(exported.call(*args), lstm(*args))
