"""The compiled kernel against the loops of XLA, and its building where something is in the way."""

import math
import os
import platform
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lstm_mnist_jax.rnn import lstm, native, recurrence, xla_loops

REASON = native.unavailable()
needs_kernel = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernel: {REASON}")

# time, batch, features, hidden: below, at and above the widths of vectors (4, 8, 16) and tiles (3, 6), of which a
# machine has one each: `test_narrower_vectors` has the others.
SIZES = [
    (1, 1, 1, 1), (4, 2, 3, 3), (3, 5, 2, 7), (5, 3, 4, 16), (4, 7, 3, 33), (6, 13, 5, 64), (2, 1, 3, 70),
    (3, 25, 2, 48), (2, 6, 2, 130), (0, 2, 2, 5), (28, 32, 28, 32),
]  # fmt: skip


def arguments(rng, time, batch, features, hidden):
    shapes = [(time, batch, features), (features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)]
    shapes += [(batch, hidden)] * 2
    scales = [1, 0.5, 1 / math.sqrt(hidden), 1, 1, 1]
    arrays = [
        jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for shape, scale in zip(shapes, scales, strict=True)
    ]
    return *arrays[:4], (arrays[4], arrays[5])


def assert_close(got, wanted, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = max(1.0, float(jnp.max(jnp.abs(b), initial=0)))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


@needs_kernel
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_forward_is_that_of_xla(rng, sizes, reverse):
    args = arguments(rng, *sizes)
    native_states, states = (lstm(*args, reverse=reverse, backend=backend) for backend in ("native", "xla"))
    assert_close(native_states, states)
    if sizes[0]:
        np.testing.assert_array_equal(native_states.last.h, native_states.h[0 if reverse else -1])
        np.testing.assert_array_equal(native_states.last.c, native_states.c[0 if reverse else -1])


@needs_kernel
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("used", ["h", "c", "last", "all"])
@pytest.mark.parametrize("sizes", SIZES)
def test_gradient_is_that_of_xla(rng, sizes, used, reverse):
    args = arguments(rng, *sizes)

    def gradient(backend):
        def loss(*args):
            states = lstm(*args, reverse=reverse, backend=backend)
            parts = {"h": jnp.sin(3 * states.h).sum(), "c": jnp.cos(states.c).sum()}
            parts["last"] = jnp.sum(states.last.c**2) + jnp.sum(states.last.h)
            return sum(parts.values()) if used == "all" else parts[used]

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(*args)

    assert_close(gradient("native"), gradient("xla"), 3e-5)


@needs_kernel
def test_second_derivatives(rng):
    inputs, *weights = arguments(rng, 3, 2, 2, 5)

    def penalty(backend):
        def squared(x):
            return jnp.sum(jax.grad(lambda x: jnp.sum(lstm(x, *weights, backend=backend).h ** 2))(x) ** 2)

        return jax.grad(squared)(inputs), jax.jvp(squared, (inputs,), (inputs,))

    assert_close(penalty("native"), penalty("xla"), 1e-4)


def loops(rng, time, batch, hidden):
    """What the forward and the backward loop take."""
    states = [jnp.asarray(rng.normal(size=(batch, hidden)), jnp.float32) for _ in range(4)]
    projected = jnp.asarray(rng.normal(size=(time, batch, 4 * hidden)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(hidden, 4 * hidden)) / math.sqrt(hidden), jnp.float32)
    return projected, kernel, states


def forward(*, reverse=False, keep=True, threads=None):
    wanted = {"cells": keep, "activations": keep, "reverse": reverse}
    loop = native.forward(partial(xla_loops.forward, **wanted, unroll=1), **wanted, threads=threads)
    return jax.jit(lambda projected, *others: loop(projected, jnp.zeros(projected.shape[-1]), *others))


def run_both(projected, kernel, states, threads, reverse=False):
    xla = partial(xla_loops.backward, reverse=reverse, unroll=1)
    backward = native.backward(xla, reverse=reverse, threads=threads)
    outputs = forward(reverse=reverse, threads=threads)(projected, kernel, *states[:2])
    gradients = jax.jit(backward)(outputs[2], outputs[1], states[1], kernel, None, None, states[2], states[3])
    return outputs, gradients


@needs_kernel
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("time", "batch", "hidden"),
    # Threads divide the rows among them; or, of few rows, the units, step by step.
    [(9, 64, 64), (5, 37, 130), (3, 200, 65), (2, 1, 64), (9, 1, 200), (1, 8, 140), (40, 23, 129)],
)
def test_results_depend_neither_on_threads_nor_on_the_rest_of_the_batch(rng, time, batch, hidden, reverse):
    projected, kernel, states = loops(rng, time, batch, hidden)
    one = run_both(projected, kernel, states, 1, reverse)
    for threads in (0, 2, 3):
        several = run_both(projected, kernel, states, threads, reverse)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
            np.testing.assert_array_equal(a, b)
        hs, _, _, *last = forward(reverse=reverse, keep=False, threads=threads)(projected, kernel, *states[:2])
        for a, b in zip((one[0][0], *one[0][3:]), (hs, *last), strict=True):
            np.testing.assert_array_equal(a, b)
    row = batch // 2
    alone = run_both(projected[:, row : row + 1], kernel, [state[row : row + 1] for state in states], 1, reverse)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(a, b[..., row : row + 1, :])


@needs_kernel
@pytest.mark.parametrize("memories", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 11, 20])
def test_blocks_of_time_make_up_the_whole(rng, monkeypatch, steps, reverse, memories):
    args = arguments(rng, 11, 3, 4, 5)
    run = partial(lstm, *args, reverse=reverse, memories=memories)
    whole = run(backend="xla")
    monkeypatch.setattr(recurrence, "PROJECTED_BYTES", steps * 3 * 20 * 4)
    assert_close(run(backend="native"), whole)
    assert_close(
        jax.vmap(lambda x: lstm(x, *args[1:], reverse=reverse).last)(args[0][None]),
        jax.tree.map(lambda part: part[None], whole.last),
    )


@needs_kernel
@pytest.mark.parametrize(("time", "batch", "hidden"), [(9, 64, 64), (4, 40, 130), (2, 1, 20)])
@pytest.mark.parametrize("networks", [2, 3])
def test_networks_at_once_are_those_one_by_one_on_any_number_of_threads(rng, time, batch, hidden, networks):
    projected, kernel, states = loops(rng, time, batch, hidden)
    every = jax.tree.map(
        lambda array: jnp.stack([array / (n + 1) for n in range(networks)]), (projected, kernel, states)
    )
    for threads in (1, 2, 3, 5):
        together = jax.jit(jax.vmap(partial(run_both, threads=threads)))(*every)
        for n in range(networks):
            alone = run_both(*jax.tree.map(lambda array, n=n: array[n], every), threads=1)
            for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
                np.testing.assert_array_equal(a[n], b)


@needs_kernel
def test_what_gives_its_memory_away_may_still_be_wanted(rng):
    """`projected` and the activations lend theirs to results: XLA copies them where something else reads them."""
    projected, kernel, states = loops(rng, 5, 3, 20)
    outputs, other = jax.jit(lambda p: (forward()(p, kernel, *states[:2]), 2 * p))(projected)
    jax.tree.map(np.testing.assert_array_equal, outputs, forward()(projected, kernel, *states[:2]))
    np.testing.assert_array_equal(other, 2 * projected)

    args = arguments(rng, 5, 3, 4, 20)

    @partial(jax.jit, static_argnums=0)
    def twice(backend, *args):
        states, pull_back = jax.vjp(lambda *args: lstm(*args, backend=backend).h, *args)
        return pull_back(jnp.sin(states)), pull_back(jnp.cos(states))

    assert_close(twice("native", *args), twice("xla", *args), 3e-5)


@needs_kernel
@pytest.mark.parametrize("weights", ["shared", "own"])
def test_no_instances_at_all(rng, weights):
    inputs, kernel, recurrent_kernel, *rest = arguments(rng, 4, 3, 2, 6)
    axes = (0, None) if weights == "shared" else (0, 0)
    none = jnp.zeros((0, *inputs.shape)), recurrent_kernel if weights == "shared" else jnp.zeros((0, 6, 24))

    def loss(x, u):
        return jnp.sum(lstm(x, kernel, u, *rest, backend="native").h)

    values, gradients = jax.vmap(jax.value_and_grad(loss, argnums=(0, 1)), in_axes=axes)(*none)
    assert values.shape == (0,)
    assert [gradient.shape for gradient in gradients] == [(0, 4, 3, 2), (0, 6, 24)]


def test_blocks_of_time_fill_the_cache_and_leave_no_remainder():
    def block(time, batch, hidden, is_native=True):
        loops = recurrence.Loops(is_native, reverse=False, unroll=1, memories=False)
        return recurrence._block(loops, jnp.zeros((time, batch, 1)), jnp.zeros(4 * hidden))

    step = 4 * 64 * 512
    most = recurrence.PROJECTED_BYTES // step
    assert most == 32
    assert block(784, 64, 128) == 28  # divides 784, as 32 does not
    assert block(1009, 64, 128) == most  # a prime
    assert block(20, 64, 128) == 20
    assert block(0, 64, 128) == block(5, 1 << 20, 1) == 1
    assert block(784, 64, 128, is_native=False) == 784


@needs_kernel
def test_inference_keeps_neither_cells_nor_activations(rng):
    projected, kernel, states = loops(rng, 6, 5, 20)
    full, lean = (forward(keep=keep)(projected, kernel, *states[:2]) for keep in (True, False))
    assert lean[1] is None
    assert lean[2] is None
    for n in (0, 3, 4):
        np.testing.assert_array_equal(full[n], lean[n])


@needs_kernel
def test_infinity_saturates_and_nan_stays_in_its_sequence(rng):
    inputs, *weights = arguments(rng, 5, 8, 4, 20)
    states = lstm(inputs.at[2, 3].set(jnp.nan), *weights, backend="native")
    wanted = lstm(inputs.at[2, 3].set(jnp.nan), *weights, backend="xla")
    np.testing.assert_array_equal(jnp.isnan(states.h), jnp.isnan(wanted.h))
    assert jnp.isnan(states.h[2:, 3]).all()
    for value in (1e4, jnp.inf):
        projected, kernel, (h, c, *_) = loops(rng, 1, 3, 17)
        projected = jnp.where(projected > 0, value, -value)
        _, _, activations, *_ = forward()(projected, kernel, h, c)
        np.testing.assert_array_equal(activations, jnp.sign(projected))


@needs_kernel
def test_tanh_is_accurate():
    x = np.concatenate([np.linspace(-12, 12, 2_000_001), np.geomspace(1e-30, 10, 100_000)]).astype(np.float32)
    x = x[: len(x) // 16 * 16].reshape(1, -1, 16)
    zeros = jnp.zeros((x.shape[1], 4))
    _, _, tanh, *_ = forward()(x, jnp.zeros((4, 16)), zeros, zeros)
    wanted = np.tanh(x.astype(np.float64))
    assert np.max(np.abs(tanh - wanted)) < 3.7e-7
    assert np.max(np.abs(tanh - wanted) / np.maximum(np.abs(wanted), 1e-37)) < 3.7e-7
    assert np.max(np.abs(tanh)) == 1


@needs_kernel
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 2)])
def test_vmap(rng, axes):
    inputs_of_one, kernel, recurrent_kernel, *rest = arguments(rng, 4, 3, 2, 6)
    inputs = inputs_of_one
    inputs = inputs if axes[0] is None else jnp.stack([inputs, -inputs, inputs * 2], axes[0])
    weights = recurrent_kernel
    weights = weights if axes[1] is None else jnp.stack([weights, -weights, weights * 2], axes[1])

    def gradient(backend):
        def loss(x, u):
            return jnp.sum(lstm(x, kernel, u, *rest, backend=backend).h ** 2)

        single = jax.value_and_grad(loss, argnums=(0, 1))
        twice = jax.vmap(jax.vmap(single, in_axes=(None, 0)), in_axes=(0, None))
        nested = twice(jnp.stack([arguments(rng_of(1), 4, 3, 2, 6)[0]] * 2), jnp.stack([recurrent_kernel] * 3))
        biases = jnp.stack([rest[0], 2 * rest[0]])
        biased = jax.vmap(lambda b: lstm(inputs_of_one, kernel, recurrent_kernel, b, rest[1], backend=backend))(biases)
        return jax.jit(jax.vmap(single, in_axes=axes))(inputs, weights), nested, biased

    assert_close(gradient("native"), gradient("xla"), 3e-5)


def rng_of(seed):
    return np.random.default_rng(seed)


@needs_kernel
@pytest.mark.parametrize("check_vma", [False, True])
def test_shard_map(rng, check_vma):
    if jax.device_count() < 2 or jax.default_backend() != "cpu":
        pytest.skip("needs two CPU devices")
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    *arrays, (c, h) = arguments(rng, 5, 4, 4, 6)

    def gradient(backend):
        def local(inputs, kernel, recurrent_kernel, bias, c, h):
            def loss(*weights):
                return lstm(inputs, *weights, (c, h), backend=backend).last.h.sum()

            value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2))(kernel, recurrent_kernel, bias)
            return jax.lax.psum((value, grads), "data") if not check_vma else (jax.lax.psum(value, "data"), grads)

        specs = P(None, "data"), P(), P(), P(), P("data"), P("data")
        mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
        return jax.jit(mapped)(*arrays, c, h)

    assert_close(gradient("native"), gradient("xla"))


@needs_kernel
def test_loops_and_checkpoint(rng):
    inputs, *weights = arguments(rng, 4, 3, 6, 6)

    def gradient(backend):
        def layer(x):
            return lstm(x, *weights, backend=backend).h

        def loss(x):
            x, _ = jax.lax.scan(lambda x, _: (jax.checkpoint(layer)(x), None), x, None, length=3)
            return x.sum()

        return jax.jit(jax.grad(loss))(inputs), jax.lax.fori_loop(0, 3, lambda _, x: layer(x), inputs)

    assert_close(gradient("native"), gradient("xla"))


@needs_kernel
def test_another_platform_takes_xla_and_an_export_must_ask_for_it(rng):
    args = arguments(rng, 4, 3, 6, 6)
    with pytest.raises(ValueError, match="custom calls"):
        jax.export.export(jax.jit(lambda *args: lstm(*args, backend="native")))(*args)
    exported = jax.export.export(jax.jit(lambda *args: lstm(*args, backend="native")), platforms=["cuda"])(*args)
    assert "lstm_mnist_jax_forward" not in exported.mlir_module()
    exported = jax.export.export(jax.jit(lambda *args: lstm(*args, backend="xla")))(*args)
    assert_close(exported.call(*args), lstm(*args))


def test_an_unknown_backend_is_refused(rng):
    with pytest.raises(ValueError, match="expected"):
        lstm(*arguments(rng, 2, 2, 2, 2), backend="fast")


def test_numpy_arrays_of_any_floats_are_taken(rng):
    args = arguments(rng, 4, 3, 2, 5)
    doubles = jax.tree.map(lambda array: np.asarray(array, np.float64), args)
    jax.tree.map(np.testing.assert_array_equal, lstm(*doubles), lstm(*args))
    with pytest.raises((ValueError, TypeError)):  # the suite's own check of types comes first
        lstm(args[0], args[1], jnp.ones((5, 20), jnp.int32), *args[3:])


def test_the_kernel_refuses_other_dtypes(rng):
    args = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arguments(rng, 2, 2, 2, 2))
    with pytest.raises(ValueError, match="bfloat16"):
        lstm(*args, backend="native")
    assert not native.serves(2, 2, jnp.bfloat16)
    assert lstm(*args).h.dtype == jnp.bfloat16


PROBE = """
import numpy as np
from lstm_mnist_jax.rnn import lstm, native
print(native.unavailable())
x = np.ones((2, 2, 2), "f"); w = np.ones((2, 8), "f"); z = np.zeros((2, 2), "f")
assert np.isfinite(lstm(x, w, w, w[0], (z, z)).h).all()
try:
    lstm(x, w, w, w[0], (z, z), backend="native")
except ValueError as error:
    print("refused:", error)
"""


def start(cache, **environment):
    variables = {"LSTM_MNIST_JAX_NATIVE": "1", "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    variables |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROBE],
        env={**os.environ, **variables, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert errors == ""
    return output.splitlines()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"LSTM_MNIST_JAX_NATIVE": "0"}, "LSTM_MNIST_JAX_NATIVE=0"),
        ({"CXX": "/nowhere/c++"}, "/nowhere/c++"),
        ({"CXX": "false"}, "false failed"),
        ({"CXX": "true"}, "OSError"),
        ({"CXX": "c++ 'a"}, "No closing quotation"),
    ],
    ids=["turned off", "no compiler", "a compiler that fails", "a compiler that writes nothing", "half a quotation"],
)
def test_without_a_kernel_everything_runs_and_the_reason_is_told(tmp_path, environment, reason):
    first, second = finish(start(tmp_path, **environment))
    assert reason in first
    assert second.startswith("refused: ")
    assert reason in second


NARROWER = """
import numpy as np, pytest, test_native as tests
assert tests.REASON is None, tests.REASON
for sizes in tests.SIZES:
    for reverse in (False, True):
        tests.test_forward_is_that_of_xla(np.random.default_rng(0), sizes, reverse)
        tests.test_gradient_is_that_of_xla(np.random.default_rng(0), sizes, "all", reverse)
for sizes in [(5, 37, 130), (40, 23, 129)]:
    tests.test_results_depend_neither_on_threads_nor_on_the_rest_of_the_batch(np.random.default_rng(0), *sizes, False)
tests.test_infinity_saturates_and_nan_stays_in_its_sequence(np.random.default_rng(0))
tests.test_tanh_is_accurate()
"""


@needs_kernel
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="vectors of x86")
@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx"])
def test_narrower_vectors(tmp_path, flag):
    """The kernel as processors with AVX2, and with SSE alone, compile it."""
    compiler = f"{os.environ.get('CXX', 'c++')} {flag}"
    variables = {"CXX": compiler, "XDG_CACHE_HOME": str(tmp_path), "LSTM_MNIST_JAX_NATIVE": "1"}
    variables["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run([sys.executable, "-c", NARROWER], env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is for Linux")
def test_two_builders_at_once_leave_one_library(tmp_path):
    processes = [start(tmp_path) for _ in range(2)]
    assert [finish(process) for process in processes] == [["None"], ["None"]]
    assert len(list((tmp_path / "lstm_mnist_jax" / "native").iterdir())) == 1
    # The next process takes what is there, and asks no compiler for it.
    assert finish(start(tmp_path)) == ["None"]


@needs_kernel
def test_a_damaged_library_is_made_anew(tmp_path):
    folder = tmp_path / "lstm_mnist_jax" / "native"
    assert finish(start(tmp_path)) == ["None"]
    (library,) = folder.iterdir()
    library.write_bytes(b"no library")
    assert finish(start(tmp_path)) == ["None"]
    assert library.stat().st_size > 10_000


@needs_kernel
def test_a_cache_folder_that_cannot_be_written_is_no_obstacle(tmp_path):
    (tmp_path / "file").write_text("")
    assert finish(start(tmp_path / "file")) == ["None"]


@needs_kernel
def test_libraries_that_nobody_loads_any_more_are_removed(tmp_path):
    folder = tmp_path / "lstm_mnist_jax" / "native"
    folder.mkdir(parents=True)
    for name, age in (("lstm-old.so", 100), ("lstm-new.so", 10)):
        (folder / name).write_bytes(b"")
        then = time.time() - age * 24 * 3600
        os.utime(folder / name, (then, then))
    assert finish(start(tmp_path)) == ["None"]
    assert not (folder / "lstm-old.so").exists()
    assert (folder / "lstm-new.so").exists()


def test_a_switch_that_is_neither_on_nor_off_is_refused(tmp_path):
    process = start(tmp_path, LSTM_MNIST_JAX_NATIVE="nonsense")
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "LSTM_MNIST_JAX_NATIVE is 'nonsense', expected 0 or 1" in errors
