"""The GRU's loops in the compiled kernel, against NumPy and the gated path."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_gru
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from lstm_cases import assert_close, assert_equal
from parameters import drawn_module

from lstm_mnist_jax.rnn import GRU, RNN, native
from lstm_mnist_jax.rnn.gru import gru, runs_gru_native

REASON = native.unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernel: {REASON}")

# time, batch, features, hidden: rows below, at and above those of tiles (1, 2, 4, 8), units as in `test_native`. The
# 80 features of one sequence are projected before the loop.
SIZES = [
    (4, 1, 80, 70), (3, 2, 2, 130), (5, 3, 0, 16), (4, 7, 3, 33), (6, 13, 5, 64), (3, 25, 2, 48), (0, 2, 2, 5),
]  # fmt: skip


def arguments(rng, time, batch, features, hidden):
    """inputs, kernel, recurrent kernel, both biases, h; and resets."""
    shapes = [(time, batch, features), (features, 3 * hidden), (hidden, 3 * hidden), (3 * hidden,), (3 * hidden,)]
    scales = [1, 0.5, 1 / math.sqrt(hidden), 1, 1, 1]
    pairs = zip([*shapes, (batch, hidden)], scales, strict=True)
    return [np.float32(scale * rng.normal(size=shape)) for shape, scale in pairs], rng.random((time, batch)) < 0.4


CASES = [(reverse, *case) for reverse in (False, True) for case in [(False, "hs"), (False, "last"), (True, "all")]]
"""Whether the loop runs backwards, whether sequences begin anew, and the results that a loss reads."""


@jax.jit
def states_and_gradients(args, resets):
    """The states, by direction and resets; and the gradients in each case."""

    def run(reverse, is_reset, args):
        return gru(*args, reverse=reverse, resets=resets if is_reset else None)

    def loss(case, args):
        reverse, is_reset, used = case
        hs, last = run(reverse, is_reset, args)
        return (jnp.sin(3 * hs).sum() if used != "last" else 0) + (jnp.sum(last**2) if used != "hs" else 0)

    states = {case: run(*case, args) for case in itertools.product([False, True], repeat=2)}
    return states, [jax.grad(partial(loss, case))(args) for case in CASES]


def check_states_and_gradients(rng, sizes):
    args, resets = arguments(rng, *sizes)
    *weights, h = args
    states, every = jax.tree.map(np.asarray, states_and_gradients(args, resets))
    for (reverse, is_reset, used), gradients in zip(CASES, every, strict=True):
        hs, last = states[reverse, is_reset]
        options = {"h": h, "resets": resets if is_reset else None, "reverse": reverse}
        _, wanted = numpy_gru.gru(*weights, **options)
        assert_close(hs, wanted, 2e-6)
        assert_equal(last, hs[0 if reverse else -1] if sizes[0] else h)
        d_hs = 3 * np.cos(3 * wanted) if used != "last" else 0
        d_last = 2 * np.float64(last) if used != "hs" else 0
        assert_close(gradients, numpy_gru.gradients(*weights, **options, d_hs=d_hs, d_last=d_last), 2e-5)


@pytest.mark.parametrize("sizes", SIZES)
def test_states_and_gradients_are_those_of_numpy(rng, sizes):
    check_states_and_gradients(rng, sizes)


LAYERS = {
    "GRU": lambda backend: drawn_module(lambda: GRU(3, 8, bidirectional=True, backend=backend, rngs=nnx.Rngs(0))),
    "GRU without biases, remat": lambda backend: drawn_module(
        lambda: GRU(3, 8, use_bias=False, remat=3, backend=backend, rngs=nnx.Rngs(0))
    ),
    "nnx.GRUCell": lambda backend: RNN(
        drawn_module(lambda: nnx.GRUCell(3, 8, rngs=nnx.Rngs(0))),
        return_carry=True,
        reverse=True,
        keep_order=True,
        backend=backend,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_what_they_do_on_the_gated_path(rng, name):
    inputs = np.float32(rng.normal(size=(4, 7, 3)))
    options = {"seq_lengths": np.array([7, 0, 3, 5]), "resets": rng.random((4, 7)) < 0.3}

    def run(backend):
        graph, state, rest = nnx.split(LAYERS[name](backend), nnx.Param, ...)

        def loss(state, inputs):
            results = nnx.merge(graph, state, rest, copy=True)(inputs, **options)
            return sum(jnp.sin(2 * part).sum() for part in jax.tree.leaves(results)), results

        differentiate = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        lowered = differentiate.lower(state, inputs)
        assert ("lstm_mnist_jax_gru" in lowered.as_text()) == (backend != "xla")
        return lowered.compile()(state, inputs)

    (_, results), gradients = run("auto")
    (_, wanted), wanted_gradients = run("xla")
    assert_close(results, wanted, 1e-6)
    assert_close(gradients, wanted_gradients, 1e-5)


def loops(rng, time, batch, hidden, features=5):
    """What the forward and the backward loop take."""
    states = [np.float32(rng.normal(size=(batch, hidden))) for _ in range(2)]
    inputs = np.float32(rng.normal(size=(time, batch, features)))
    kernels = [np.float32(rng.normal(size=(size, 3 * hidden)) / math.sqrt(size)) for size in (features, hidden)]
    return inputs, np.float32(rng.normal(size=4 * hidden)), kernels, states


@partial(jax.jit, static_argnums=4)
def run_loops(inputs, bias, kernels, states, threads):
    """In both directions, all results of both loops, and those of a forward loop of which nothing is kept."""

    def run(reverse):
        options = {"reverse": reverse, "threads": threads}
        forward = partial(native.gru_forward, inputs, kernels[0], bias, kernels[1], states[0], **options)
        hs, *kept, last_h = forward(activations=True)
        backward = native.gru_backward(*kept, hs, states[0], kernels[1], None, states[1], **options)
        return hs, last_h, *kept, backward, forward(activations=False)

    return run(False), run(True)


@pytest.mark.parametrize(
    ("time", "batch", "features", "hidden"),
    # Threads divide the rows among them; or, of few rows, the units, step by step. 60 features are projected before.
    [(9, 64, 5, 64), (5, 37, 5, 130), (19, 1, 60, 260), (4, 2, 5, 260), (40, 23, 5, 129)],
)
def test_results_depend_neither_on_threads_nor_on_the_rest_of_the_batch(rng, time, batch, features, hidden):
    inputs, bias, kernels, states = loops(rng, time, batch, hidden, features)
    of_threads = jax.jit(lambda *arrays: [run_loops(*arrays, threads) for threads in (1, 0, 2, 3)])
    one, *others = of_threads(inputs, bias, kernels, states)
    for hs, last_h, *_, lean in one:
        assert_equal((lean[0], *lean[3:]), (hs, last_h))
        assert lean[1:3] == (None, None)
    for other in others:
        assert_equal(other, one)
    row = np.s_[..., batch // 2 : batch // 2 + 1, :]
    alone = run_loops(inputs[row], bias, kernels, [state[row] for state in states], 1)
    assert_equal(alone, jax.tree.map(lambda array: array[row], jax.tree.map(np.asarray, one)))


def test_networks_at_once_are_those_one_by_one(rng):
    """Under vmap, sequences of the same weights are one batch; those of other weights are networks of their own."""
    one = loops(rng, 9, 12, 40)
    every = jax.tree.map(lambda array: np.stack([array / np.float32(n + 1) for n in range(3)]), one)
    shared = [every[0], one[1], one[2], every[3]]

    def run(threads):
        own = jax.vmap(lambda *args: run_loops(*args, threads))(*every)
        same = jax.vmap(lambda *args: run_loops(*args, threads), in_axes=(0, None, None, 0))(*shared)
        return own, same

    def alone(arrays, n):
        own, same = (jax.tree.map(lambda array: array[n], part) for part in arrays)
        return run_loops(*own, 1), run_loops(same[0], *one[1:3], same[1], 1)

    for together in jax.tree.map(np.asarray, jax.jit(lambda: [run(1), run(3)])()):
        for n in range(3):
            found = jax.tree.map(lambda array, n=n: array[n], together)
            assert_equal(found, alone((tuple(every), (shared[0], shared[3])), n))


def test_second_derivatives(rng):
    """Of the loops in JAX, which also run on other platforms: forward over reverse, and reverse over reverse."""
    args, resets = arguments(rng, 3, 2, 2, 4)
    inputs = args[0]
    cell = drawn_module(lambda: nnx.GRUCell(2, 4, rngs=nnx.Rngs(0)))

    @jax.jit
    def derivatives(inputs):
        def of(backend):
            rnn = RNN(cell, time_major=True, reverse=True, backend=backend)

            def squared(x):
                return jnp.sum(rnn(x, resets=resets) ** 2)

            return jax.hessian(squared)(inputs), jax.grad(lambda x: jnp.sum(jax.grad(squared)(x) ** 2))(inputs)

        return of("native"), of("xla")

    found, wanted = derivatives(inputs)
    assert np.abs(found[0]).max() > 0.1
    assert_close(found, wanted, 1e-5)


def test_what_gives_its_memory_away_may_still_be_wanted(rng):
    (*weights, h), _ = arguments(rng, 5, 3, 4, 20)

    @jax.jit
    def twice(*args):
        hs, pull_back = jax.vjp(lambda *args: gru(*args)[0], *args)
        return pull_back(jnp.sin(hs)), pull_back(jnp.cos(hs))

    _, hs = numpy_gru.gru(*weights, h=h)
    wanted = [numpy_gru.gradients(*weights, h=h, d_hs=part(hs)) for part in (np.sin, np.cos)]
    assert_close(twice(*weights, h), wanted, 3e-5)


def test_infinity_saturates_and_nan_stays_in_its_sequence(rng):
    (inputs, *weights, h), _ = arguments(rng, 5, 8, 4, 20)
    inputs[2, 3] = np.nan
    hs, _ = gru(inputs, *weights, h)
    is_nan = np.zeros(hs.shape, bool)
    is_nan[2:, 3] = True
    np.testing.assert_array_equal(np.isnan(hs), is_nan)
    infinity, signs = np.full((1, 3, 1), np.float32(np.inf)), np.float32(np.where(rng.random((1, 60)) < 0.5, 1, -1))
    kernels, states = [signs, np.zeros((20, 60), np.float32)], [np.zeros((3, 20), np.float32)] * 2
    (_, _, activations, *_), _ = run_loops(infinity, np.zeros(80, np.float32), kernels, states, 1)
    np.testing.assert_array_equal(activations, np.broadcast_to(signs, (1, 3, 60)))


@pytest.mark.parametrize("check_vma", [False, True])
def test_shard_map(rng, check_vma):
    if jax.device_count() < 2 or jax.default_backend() != "cpu":
        pytest.skip("needs two CPU devices")
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    (*weights, h), _ = arguments(rng, 5, 4, 4, 6)

    def local(inputs, h, *weights):
        value, grads = jax.value_and_grad(lambda *weights: gru(inputs, *weights, h)[1].sum(), argnums=(0, 1, 2, 3))(
            *weights
        )
        return jax.lax.psum((value, grads), "data") if not check_vma else (jax.lax.psum(value, "data"), grads)

    specs = P(None, "data"), P("data"), P(), P(), P(), P()
    mapped = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma))
    _, hs = numpy_gru.gru(*weights, h=h)
    wanted = hs[-1].sum(), numpy_gru.gradients(*weights, h=h, d_last=1)[1:5]
    assert_close(mapped(weights[0], h, *weights[1:]), wanted)


def test_another_platform_takes_xla_and_an_export_must_ask_for_it():
    inputs = np.ones((2, 3, 4), np.float32)

    def call(backend):
        return jax.jit(lambda x: GRU(4, 5, backend=backend, rngs=nnx.Rngs(0))(x)[0])

    with pytest.raises(ValueError, match=r"lstm_mnist_jax_gru_forward_.* can be exported"):
        jax.export.export(call("auto"))(inputs)
    exported = jax.export.export(call("native"), platforms=["cuda"])(inputs)
    assert "lstm_mnist_jax_gru" not in exported.mlir_module()
    assert_close(jax.export.export(call("xla"))(inputs).call(inputs), call("native")(inputs), 1e-6)


def test_what_the_kernel_does_not_have_is_refused_or_runs_on_the_gated_path(rng):
    inputs = np.float32(rng.normal(size=(2, 3, 4)))
    for options in ({"reset_after": False}, {"dtype": jnp.bfloat16}):
        with pytest.raises(ValueError, match="float32"):
            GRU(4, 5, backend="native", **options, rngs=nnx.Rngs(0))(inputs)
    for options in ({"recurrent_dropout_rate": 0.5}, {"zoneout_rates": 0.5}, {"dtype": jnp.bfloat16}):
        layer = GRU(4, 5, **options, rngs=nnx.Rngs(0))
        text = nnx.jit(lambda layer, x: layer(x)[0]).lower(layer, inputs).as_text()
        assert "lstm_mnist_jax_gru" not in text
    with pytest.raises(ValueError, match="expected 15 columns"):
        gru(np.ones((3, 2, 4)), np.ones((4, 20)), np.ones((5, 20)), np.ones(20), None, np.ones((2, 5)))


@pytest.mark.parametrize(("time", "batch", "runs"), [(28, 1, False), (64, 1, True), (28, 2, True)])
def test_few_steps_of_one_wide_sequence_are_left_to_xla(time, batch, runs):
    assert runs_gru_native("auto", (time, batch, 512), jnp.float32) is runs
    assert runs_gru_native("native", (time, batch, 512), jnp.float32)
    assert not runs_gru_native("xla", (time, batch, 512), jnp.float32)
