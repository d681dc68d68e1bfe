"""The kernels in Pallas, in interpret mode, against NumPy and the loops of XLA; and what is compiled of them.

test_every_option.py, test_native_transformations.py and test_sharding.py have cases of these backends, too.
"""

import json
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import pytest
from flax import nnx
from lstm_cases import arguments
from parameters import drawn_module

from compile_for import COMPILERS, is_installed
from lstm_mnist_jax.rnn import GRU, LSTM, lstm

INTERPRETED = ["pallas_interpret_tpu", "pallas_interpret_gpu"]


@pytest.mark.parametrize("backend", INTERPRETED)
def test_states_and_gradients_of_networks_of_several_blocks_and_tiles_are_those_of_numpy(rng, backend):
    """On a TPU, blocks of 512 sequences, the last not full. On a GPU, of 16, and tiles of 32 hidden units."""
    args = arguments(rng, 2, 516, 2, 33, networks=(2,))

    def loss(*args):
        states = lstm(*args, backend=backend)
        return jnp.sin(3 * states.h).sum() + jnp.cos(states.c).sum() + (states.last.c**2).sum(), states

    found = jax.device_get(jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)))(*args))
    for network in range(2):
        *weights, (c, h) = jax.tree.map(lambda array, n=network: array[n], args)
        gradients, states = jax.tree.map(lambda array, n=network: array[n], found)
        hs, cs = numpy_lstm.lstm(*weights, c, h)
        wanted = numpy_lstm.gradients(*weights, c, h, d_hs=3 * np.cos(3 * hs), d_cs=-np.sin(cs), d_last=(2 * cs[-1], 0))
        for a, b in zip(jax.tree.leaves((states, gradients)), [hs, cs, cs[-1], hs[-1], *wanted], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("backend", INTERPRETED)
def test_bfloat16_and_resets_are_those_of_xla(rng, backend):
    args = arguments(rng, 5, 3, 2, 7)
    resets = rng.random((5, 3)) < 0.4

    @jax.jit
    def both(*args):
        def loss(backend, *args):
            states = lstm(*args, reverse=True, backend=backend, resets=resets, reset_carry=args[4][::-1])
            return states.h.astype(jnp.float32).sum() + states.c.sum() + states.last.h.sum(), states

        narrow = jax.tree.map(lambda array: array.astype(jnp.bfloat16), args[:4])
        return [jax.grad(partial(loss, one), argnums=(0, 1, 2, 3, 4), has_aux=True)(*narrow, args[4])
                for one in (backend, "xla")]  # fmt: skip

    for a, b in zip(*map(jax.tree.leaves, both(*args)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=0.02, atol=0.02 * float(np.abs(b).max()))


@pytest.mark.slow
def test_forward_mode_and_second_derivatives_are_those_of_xla(rng):
    """Of one backend: what differentiates the kernel is the same for both."""
    inputs, *weights = arguments(rng, 3, 2, 2, 5)

    @jax.jit
    def both(inputs):
        def squared(backend, x):
            return jnp.sum(jax.grad(lambda x: jnp.sum(lstm(x, *weights, backend=backend).h ** 2))(x) ** 2)

        return [(jax.grad(partial(squared, one))(inputs), jax.jvp(partial(squared, one), (inputs,), (inputs,)))
                for one in ("pallas_interpret_gpu", "xla")]  # fmt: skip

    for a, b in zip(*map(jax.tree.leaves, both(inputs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_on_a_cpu_the_error_names_what_to_use(rng):
    with pytest.raises(ValueError, match=r'"auto".*pallas_interpret_tpu'):
        lstm(*arguments(rng, 2, 2, 2, 2), backend="pallas")


def test_a_program_for_several_platforms_is_refused(rng):
    with pytest.raises(ValueError, match="export the program once for each"):
        jax.export.export(jax.jit(partial(lstm, backend="pallas")), platforms=("cuda", "tpu"))(
            *arguments(rng, 2, 2, 2, 2)
        )


def test_what_has_no_kernel_is_refused(rng):
    with pytest.raises(ValueError, match=r"700 hidden features in float32 have 7.5 MiB, .* at most 6 MiB"):
        jax.eval_shape(partial(lstm, backend="pallas"), *arguments(rng, 1, 1, 1, 700))
    time, *_ = jax.export.symbolic_shape("time")
    symbolic = jax.ShapeDtypeStruct((time, 1, 1), jnp.float32)
    with pytest.raises(ValueError, match=r"numbers as sizes; got time\. Use"):
        jax.eval_shape(partial(lstm, backend="pallas"), symbolic, *arguments(rng, 1, 1, 1, 2)[1:])
    inputs = np.ones((2, 3, 4), np.float32)
    with jax.enable_x64(True), pytest.raises(ValueError, match="float32 and bfloat16, not in float64"):
        lstm(*jax.tree.map(np.float64, arguments(rng, 1, 1, 1, 2)), backend="pallas")
    with pytest.raises(ValueError, match="not this OptimizedLSTMCell in float16"):
        drawn_module(lambda: LSTM(4, 5, backend="pallas", dtype=jnp.float16, rngs=nnx.Rngs(0)))(inputs)
    for layer in (GRU, partial(LSTM, projection_features=2)):
        layer = drawn_module(lambda layer=layer: layer(4, 5, backend="pallas", rngs=nnx.Rngs(0)))
        with pytest.raises(ValueError, match=r'backend="pallas" runs an nnx\.OptimizedLSTMCell'):
            layer(inputs)
    with pytest.raises(ValueError, match='no noise with backend="pallas"'):
        nnx.eval_shape(lambda: LSTM(4, 5, recurrent_dropout_rate=0.1, backend="pallas", rngs=nnx.Rngs(0)))


def test_a_program_for_an_accelerator_has_two_kernels(rng):
    """Lowered, not compiled: this takes no plugin."""
    args = arguments(rng, 3, 4, 2, 8)
    gradient = jax.jit(jax.grad(lambda *args: lstm(*args, backend="pallas").h.sum(), argnums=(0, 1, 2)))
    text = gradient.trace(*args).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call(") == 2
    # From JAX 0.12 on, Triton asks for the kind of GPU and is deprecated.
    h100 = jax.sharding.AbstractDevice("NVIDIA H100", num_cores=None, platform="cuda")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=h100)
    with warnings.catch_warnings(), jax.sharding.use_abstract_mesh(mesh):
        warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
        text = gradient.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__gpu$xla.gpu.triton(") == 2


@pytest.mark.slow
@pytest.mark.parametrize("platform", COMPILERS)
def test_the_kernels_compile_for_v5e_and_h100(platform):
    module, name = COMPILERS[platform]
    if not is_installed(module):
        pytest.skip(f"{name} is not installed")
    program = Path(__file__).parents[2] / "scripts" / "compile_pallas.py"
    words = [sys.executable, program, platform, "--hidden", "32", "128"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(line["dtype"], line["hidden"]) for line in lines] == [
        (dtype, hidden) for dtype in ("float32", "bfloat16") for hidden in (32, 128)
    ]
    for line in lines:
        assert set(line["bytes"]) == {"lstm_forward", "lstm_backward"}
        assert max(line["bytes"].values()) <= (16 << 20 if platform == "tpu" else 232_448)
