"""The compiled kernel against NumPy and the loops of XLA."""

import math
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from lstm_cases import arguments, assert_close, assert_equal, numpy_gradients, numpy_states

from lstm_mnist_jax.rnn import lstm, native

REASON = native.unavailable()
needs_kernel = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernel: {REASON}")


def test_the_kernel_passes_its_self_test():
    """A wrong one is not used: all tests that need it would be skipped."""
    assert "is not for this processor" not in (REASON or "")


# time, batch, features, hidden: below, at and above the widths of vectors (4, 8, 16) and tiles (3, 6), of which a
# machine has one each: test_loops.py has the others. The 60 features of one sequence are projected before the loop.
SIZES = [
    (1, 1, 1, 1), (4, 2, 0, 3), (3, 5, 2, 7), (5, 3, 4, 16), (4, 7, 3, 33), (6, 13, 5, 64), (2, 1, 60, 70),
    (3, 25, 2, 48), (2, 6, 2, 130), (0, 2, 2, 5), (28, 32, 28, 32),
]  # fmt: skip


USED = ("h", "c", "last", "all")
"""Which of its results a loss reads: the kernel skips those that have no gradient."""


def loss_of(used, states):
    parts = {"h": jnp.sin(3 * states.h).sum(), "c": jnp.cos(states.c).sum()}
    parts["last"] = jnp.sum(states.last.c**2) + jnp.sum(states.last.h)
    return sum(parts.values()) if used == "all" else parts[used]


def cotangents_of(used, states):
    parts = {"h": {"d_hs": 3 * np.cos(3 * states.h)}, "c": {"d_cs": -np.sin(states.c)}}
    parts["last"] = {"d_last": (2 * states.last.c, 1)}
    return parts["h"] | parts["c"] | parts["last"] if used == "all" else parts[used]


@partial(jax.jit, static_argnums=(0, 1))
def states_and_gradients(backend, used, *args):
    """In both directions, the states, and the gradients of the losses that read what `used` says."""

    def loss(used, reverse, *args):
        return loss_of(used, lstm(*args, reverse=reverse, backend=backend))

    return {
        reverse: (
            lstm(*args, reverse=reverse, backend=backend),
            [jax.grad(partial(loss, one, reverse), argnums=(0, 1, 2, 3, 4))(*args) for one in used],
        )
        for reverse in (False, True)
    }


def check_states_and_gradients(rng, sizes, backend="native", used=USED):
    args = arguments(rng, *sizes)
    found = jax.tree.map(np.asarray, states_and_gradients(backend, used, *args))
    for reverse, (states, gradients) in found.items():
        wanted = numpy_states(args, reverse)
        assert_close(states, wanted)
        if sizes[0]:
            assert_equal(states.last.h, states.h[0 if reverse else -1])
            assert_equal(states.last.c, states.c[0 if reverse else -1])
        for one, gradient in zip(used, gradients, strict=True):
            assert_close(gradient, numpy_gradients(args, reverse, **cotangents_of(one, wanted)), 3e-5)


@needs_kernel
@pytest.mark.parametrize("sizes", SIZES)
def test_states_and_gradients_are_those_of_numpy(rng, sizes):
    check_states_and_gradients(rng, sizes)


@pytest.mark.parametrize("sizes", [(5, 3, 4, 16), (0, 2, 2, 5)])
def test_states_and_gradients_of_the_loops_of_xla_are_those_of_numpy(rng, sizes):
    check_states_and_gradients(rng, sizes, backend="xla")


def loops(rng, time, batch, hidden, features=5):
    """What the forward and the backward loop take."""
    states = [np.float32(rng.normal(size=(batch, hidden))) for _ in range(4)]
    inputs = np.float32(rng.normal(size=(time, batch, features)))
    kernels = [np.float32(rng.normal(size=(size, 4 * hidden)) / math.sqrt(size)) for size in (features, hidden)]
    return inputs, kernels, states


@partial(jax.jit, static_argnames=("reverse", "keep", "threads"))
def forward(inputs, kernels, h, c, *, reverse=False, keep=True, threads=None):
    wanted = {"cells": keep, "activations": keep, "reverse": reverse}
    weights = kernels[0], jnp.zeros(kernels[0].shape[-1]), kernels[1]
    return native.lstm_forward(inputs, *weights, h, c, **wanted, threads=threads)


def run_both(inputs, kernels, states, threads, reverse=False):
    outputs = forward(inputs, kernels, *states[:2], reverse=reverse, threads=threads)
    arrays = outputs[2], outputs[1], states[1], kernels[1], None, None, states[2], states[3]
    return outputs, native.lstm_backward(*arrays, reverse=reverse, threads=threads)


@partial(jax.jit, static_argnums=3)
def run_in_both_directions(inputs, kernels, states, threads):
    """All results of the forward and the backward loop, and those of a forward loop of which nothing is kept."""

    def run(reverse):
        lean = forward(inputs, kernels, *states[:2], reverse=reverse, keep=False, threads=threads)
        return run_both(inputs, kernels, states, threads, reverse), lean

    return run(False), run(True)


@needs_kernel
@pytest.mark.parametrize(
    ("time", "batch", "features", "hidden"),
    # Threads divide the rows among them; or, of few rows, the units, step by step. 60 features are projected before.
    [
        (9, 64, 5, 64),
        (5, 37, 5, 130),
        (3, 200, 5, 65),
        (2, 1, 5, 64),
        (19, 1, 60, 200),
        (1, 8, 5, 140),
        (40, 23, 5, 129),
    ],
)
def test_results_depend_neither_on_threads_nor_on_the_rest_of_the_batch(rng, time, batch, features, hidden):
    inputs, kernels, states = loops(rng, time, batch, hidden, features)
    of_threads = jax.jit(lambda *arrays: [run_in_both_directions(*arrays, threads) for threads in (1, 0, 2, 3)])
    one, *others = of_threads(inputs, kernels, states)
    for (outputs, _), lean in one:
        assert_equal((lean[0], *lean[3:]), (outputs[0], *outputs[3:]))
    for other in others:
        assert_equal(other, one)
    row = np.s_[..., batch // 2 : batch // 2 + 1, :]
    alone = run_in_both_directions(inputs[row], kernels, [state[row] for state in states], 1)
    assert_equal(alone, jax.tree.map(lambda array: array[row], jax.tree.map(np.asarray, one)))


@jax.jit
def run_networks(*every):
    """On several numbers of threads."""
    return [jax.vmap(partial(run_both, threads=threads))(*every) for threads in (1, 2, 3, 5)]


@needs_kernel
@pytest.mark.parametrize(
    ("networks", "time", "batch", "hidden"), [(2, 9, 64, 64), (3, 9, 64, 64), (3, 4, 40, 130), (2, 2, 1, 20)]
)
def test_networks_at_once_are_those_one_by_one_on_any_number_of_threads(rng, networks, time, batch, hidden):
    one = loops(rng, time, batch, hidden)
    every = jax.tree.map(lambda array: np.stack([array / np.float32(n + 1) for n in range(networks)]), one)
    each = [run_alone(*jax.tree.map(lambda array, n=n: array[n], every)) for n in range(networks)]
    for together in jax.tree.map(np.asarray, run_networks(*every)):
        for n in range(networks):
            assert_equal(jax.tree.map(lambda array, n=n: array[n], together), each[n])


@jax.jit
def run_alone(inputs, kernels, states):
    return run_both(inputs, kernels, states, threads=1)


@jax.jit
def weight_gradients(states, gradients, initial):
    """Of two networks, on several numbers of threads; with an initial state in both directions, and without one."""

    def run(optional, reverse, threads):
        options = {"bias": True, "reverse": reverse, "threads": threads}
        return jax.vmap(partial(native.weight_gradient, **options))(states, gradients, optional)

    cases = ((initial,), False), ((initial,), True), (None, False)
    return [[run(*case, threads) for threads in (1, 0, 2, 5)] for case in cases]


@needs_kernel
@pytest.mark.parametrize(
    ("time", "batch", "features", "columns"),
    # Several blocks of steps and panels of columns; parts of the rows; a part of a vector; no step at all; many steps.
    [(40, 23, 70, 260), (40, 120, 70, 8), (1, 3, 4, 19), (0, 2, 3, 8), (784, 64, 5, 8)],
)
def test_gradients_of_weights_are_those_of_numpy_on_any_number_of_threads(rng, time, batch, features, columns):
    shapes = (2, time, batch, features), (2, time, batch, columns), (2, batch, features)
    # Positive: rounding adds up.
    states, gradients, initial = arrays = [np.float32(rng.random(shape)) for shape in shapes]
    before = np.concatenate([initial[:, None], states], 1)[:, :-1], np.concatenate([states, initial[:, None]], 1)[:, 1:]
    for entered, (one, *others) in zip((*before, states), weight_gradients(*arrays), strict=True):
        for other in others:
            assert_equal(other, one)
        wanted = np.einsum("ntbf,ntbg->nfg", entered, gradients, dtype=np.float64), gradients.sum((1, 2), np.float64)
        for found, right in zip(one, wanted, strict=True):
            np.testing.assert_allclose(found, right, rtol=2e-6)


@needs_kernel
def test_what_gives_its_memory_away_may_still_be_wanted(rng):
    """The activations lend theirs to a result: XLA copies them where something else reads them."""
    args = arguments(rng, 5, 3, 4, 20)

    @jax.jit
    def twice(*args):
        states, pull_back = jax.vjp(lambda *args: lstm(*args, backend="native").h, *args)
        return pull_back(jnp.sin(states)), pull_back(jnp.cos(states))

    hs = numpy_states(args).h
    assert_close(twice(*args), [numpy_gradients(args, d_hs=part(hs)) for part in (np.sin, np.cos)], 3e-5)


@needs_kernel
def test_inference_keeps_neither_cells_nor_activations(rng):
    inputs, kernels, states = loops(rng, 6, 5, 20)
    full, lean = (forward(inputs, kernels, *states[:2], keep=keep) for keep in (True, False))
    assert lean[1] is None
    assert lean[2] is None
    for n in (0, 3, 4):
        np.testing.assert_array_equal(full[n], lean[n])


@needs_kernel
def test_inference_holds_no_large_projected_inputs():
    """Where few sequences have many weights: projected before the loop, unless that takes more than 64 MiB."""

    def temporary_mib(time, batch, features, hidden):
        shapes = (time, batch, features), (features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)
        args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (*shapes, (batch, hidden), (batch, hidden))]
        run = jax.jit(lambda *args: lstm(*args[:4], args[4:], return_cell_states=False, backend="native").last.h)
        return run.lower(*args).compile().memory_analysis().temp_size_in_bytes / 2**20

    # The projected inputs take 59.5 MiB, or would take 64.1 MiB; the h of all steps take a quarter of that.
    assert temporary_mib(1300, 10, 400, 300) > 59.5
    assert temporary_mib(1400, 10, 400, 300) < 30


@needs_kernel
def test_infinity_saturates_and_nan_stays_in_its_sequence(rng):
    inputs, *weights = arguments(rng, 5, 8, 4, 20)
    inputs[2, 3] = np.nan
    states, wanted = (lstm(inputs, *weights, backend=backend) for backend in ("native", "xla"))
    np.testing.assert_array_equal(np.isnan(states.h), np.isnan(wanted.h))
    assert np.isnan(states.h[2:, 3]).all()
    for value in (1e4, np.inf):
        _, kernels, (h, c, *_) = loops(rng, 1, 3, 17)
        signs = np.sign(kernels[0][:1])
        _, _, activations, *_ = forward(np.full((1, 3, 1), np.float32(value)), [signs, kernels[1]], h, c)
        np.testing.assert_array_equal(activations, np.broadcast_to(signs, (1, 3, 68)))


@needs_kernel
def test_tanh_is_accurate():
    x = np.concatenate([np.linspace(-12, 12, 2_000_001), np.geomspace(1e-30, 10, 100_000)]).astype(np.float32)
    x = x[: len(x) // 16 * 16].reshape(1, -1, 16)
    zeros = np.zeros((x.shape[1], 4), np.float32)
    twice_for_sigmoids = np.diag(np.repeat(np.float32([2, 2, 1, 2]), 4))
    _, _, tanh, *_ = forward(x, [twice_for_sigmoids, np.zeros((4, 16), np.float32)], zeros, zeros)
    wanted = np.tanh(x.astype(np.float64))
    assert np.max(np.abs(tanh - wanted)) < 3.7e-7
    assert np.max(np.abs(tanh - wanted) / np.maximum(np.abs(wanted), 1e-37)) < 3.7e-7
    assert np.max(np.abs(tanh)) == 1


def test_an_unknown_backend_is_refused(rng):
    with pytest.raises(ValueError, match="expected"):
        lstm(*arguments(rng, 2, 2, 2, 2), backend="fast")


def test_numpy_arrays_of_any_floats_are_taken(rng):
    args = arguments(rng, 4, 3, 2, 5)
    doubles = jax.tree.map(lambda array: np.asarray(array, np.float64), args)
    jax.tree.map(np.testing.assert_array_equal, lstm(*doubles), lstm(*args))
    with pytest.raises((ValueError, TypeError)):  # the suite's own check of types comes first
        lstm(args[0], args[1], jnp.ones((5, 20), np.int32), *args[3:])


def test_the_kernel_refuses_other_dtypes(rng):
    args = jax.tree.map(lambda array: jax.device_put(array.astype(jnp.bfloat16)), arguments(rng, 2, 2, 2, 2))
    with pytest.raises(ValueError, match="bfloat16"):
        lstm(*args, backend="native")
    assert not native.supports(2, 2, jnp.bfloat16)
    assert lstm(*args).h.dtype == jnp.bfloat16


BUSY = """
import os, subprocess, statistics, sys, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax, jax.numpy as jnp
from functools import partial
from lstm_mnist_jax.rnn import lstm
keys = jax.random.split(jax.random.key(0), 3)
inputs, weights, recurrent = [jax.random.normal(k, s) / 16 for k, s in zip(keys, [(256, 1, 4), (4, 1024), (256, 1024)])]
carry = (jnp.zeros((1, 256)),) * 2
runs = {b: jax.jit(partial(lstm, backend=b)) for b in ("native", "xla")}
seconds = {b: [] for b in runs}
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(6)]
try:
    time.sleep(0.3)
    for _ in range(6):
        for b, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run(inputs, weights, recurrent, jnp.zeros(1024), carry))
            seconds[b].append(time.perf_counter() - began)
finally:
    for process in busy:
        process.kill()
        process.wait()
print(*(statistics.median(values[1:]) for values in seconds.values()))
"""


@pytest.mark.slow
@needs_kernel
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="chooses processors as Linux does")
def test_on_busy_processors_threads_do_not_wait_for_each_other():
    """Where they did, the kernel took 17 to 45 times as long as XLA's loops; now no longer than these."""
    done = programs.run(code=BUSY)
    assert done.returncode == 0, done.stderr
    native_seconds, xla_seconds = map(float, done.stdout.split())
    assert native_seconds < 4 * xla_seconds
