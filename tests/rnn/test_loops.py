"""The compiled loops without XLA, as other processors run them: against NumPy, in a program of their own."""

import math
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import numpy_gru
import numpy_lstm
import pytest

import lstm_mnist_jax

NATIVE = Path(lstm_mnist_jax.__file__).parent / "rnn" / "native"
PROGRAM = Path(__file__).with_name("run_loops.cc")
COMPILER = os.environ.get("CXX", "c++")

ARM = "aarch64-linux-gnu-g++"

# The loops of a wheel's library for x86-64, and the flags that they are compiled with.
LOOPS = {"loops": [], "loops_avx2": ["-mavx2", "-mfma"], "loops_avx512": ["-mavx512f", "-mavx2", "-mfma"]}

# time, batch, hidden: below, at and above the widths of vectors and of tiles.
SIZES = [
    (1, 1, 1), (4, 2, 3), (3, 5, 7), (5, 3, 16), (4, 7, 33), (3, 13, 64), (2, 1, 70), (3, 25, 48), (2, 6, 130),
    (0, 2, 5), (6, 1, 68), (6, 2, 68), (3, 8, 20),
]  # fmt: skip


def cases():
    """Every size of both cells, in both directions, with and without resets: of projected inputs and of inputs that the
    loop projects, one of them whole and one in parts, as threads do it.
    """
    for number, sizes in enumerate(SIZES):
        projected, inputs = ((2, 1), (0, 0)) if number // 2 % 2 else ((0, 0), (2, 1))  # rows and units of a part
        for gates in (4, 3):
            for reverse, has_resets in ((0, 0), (1, 1)) if number % 2 else ((1, 0), (0, 1)):
                time, batch, hidden = sizes
                yield gates, time, batch, 0, hidden, reverse, has_resets, *projected
                yield gates, time, batch, 5, hidden, reverse, has_resets, *inputs


def arrays_of(case, rng):
    gates, time, batch, features, hidden, _, has_resets, *_ = case
    columns = gates * hidden
    shapes = [(time, batch, features or columns), (features, columns), (4 * hidden,), (hidden, columns)]
    shapes += [*[(batch, hidden)] * 6, (time, batch, hidden)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays[3] /= np.float32(np.sqrt(hidden))
    return arrays, rng.random((time, batch)) < 0.3 if has_resets else None


def wanted_of(case, arrays, resets):
    """What `run` returns, as NumPy computes it in float64, step by step."""
    gates, time, batch, features, hidden, reverse, *_ = case
    inputs, of_inputs, bias, kernel, h, c, reset_h, reset_c, d_last_h, d_last_c, d_hs = map(np.float64, arrays)
    projected = (inputs @ of_inputs if features else inputs) + bias[: gates * hidden]
    order = list(reversed(range(time))) if reverse else list(range(time))
    hs, d_projected = np.zeros((time, batch, hidden)), np.zeros((time, batch, gates * hidden))
    kept = {}
    for t in order:
        if resets is not None:
            h, c = (np.where(resets[t][:, None], *pair) for pair in ((reset_h, h), (reset_c, c)))
        before = h, c
        x = projected[t]
        if gates == 4:
            i, f, g, o = np.split(x + h @ kernel, 4, axis=-1)
            i, f, g, o = numpy_lstm.sigmoid(i), numpy_lstm.sigmoid(f), np.tanh(g), numpy_lstm.sigmoid(o)
            c = f * c + i * g
            h = o * np.tanh(c)
            kept[t] = before, (i, f, g, o), np.tanh(c)
        else:
            (xr, xz, xn), (ur, uz, un) = np.split(x, 3, -1), np.split(h @ kernel, 3, -1)
            r, z, recurrent = numpy_gru.sigmoid(xr + ur), numpy_gru.sigmoid(xz + uz), un + bias[3 * hidden :]
            n = np.tanh(xn + r * recurrent)
            h = n + z * (h - n)
            kept[t] = before, (r, z, n), recurrent
        hs[t] = h
    dh, dc = d_last_h, d_last_c
    for t in reversed(order):
        (h, c), gate, last = kept[t]
        dh = dh + d_hs[t]
        if gates == 4:
            i, f, g, o = gate
            dc = dc + dh * o * (1 - last**2)
            parts = [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2), dh * last * o * (1 - o)]
            recurrent, dc = np.concatenate(parts, -1), dc * f
            dh = recurrent @ kernel.T
        else:
            r, z, n = gate
            dn = dh * (1 - z) * (1 - n**2)
            parts = [dn * last * r * (1 - r), dh * (h - n) * z * (1 - z), dn]
            dh = dh * z + np.concatenate([*parts[:2], dn * r], -1) @ kernel.T
        d_projected[t] = np.concatenate(parts, -1)
        if resets is not None:
            dh, dc = (np.where(resets[t][:, None], 0, d) for d in (dh, dc))
    entered = hs
    if resets is None:
        entered = np.zeros_like(hs)
        for t in order:
            entered[t] = kept[t][0][0]
    return hs, d_projected, dh, np.einsum("tbh,tbg->hg", entered, d_projected), d_projected.sum((0, 1))


def build(folder, compiler, *flags, loops):
    """The program with these loops."""
    compile_ = [compiler, "-std=c++17", "-O0", "-fno-math-errno", "-ffp-contract=off", "-w", *flags]
    objects = []
    for name, some in loops.items():
        objects.append(folder / f"{name}.o")
        words = [*compile_, *some, f"-DLOOPS={name}", "-c", NATIVE / "loops.cc", "-o", objects[-1]]
        subprocess.run(words, check=True, timeout=300)
    program = folder / "run_loops"
    subprocess.run([*compile_, PROGRAM, f"-I{NATIVE}", *objects, "-o", program], check=True, timeout=300)
    return program


@pytest.fixture(scope="module")
def x86_64(tmp_path_factory):
    """The program with all loops of a wheel's library."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("this machine has another kind of processor")
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed")
    return build(tmp_path_factory.mktemp("x86-64"), COMPILER, "-DLSTM_MNIST_JAX_WHEEL", loops=LOOPS)


def emulator(name):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def flags_of_this_processor():
    return set(Path("/proc/cpuinfo").read_text().split())


def run(command, every):
    """The results of each: hs, the gradients of the projected inputs, the initial h, the kernel and the bias.

    Those of the kernel are of `hs` where there are resets: see run_loops.cc.
    """
    sent = b""
    for case, arrays, resets in every:
        sent += np.int64(case).tobytes() + b"".join(array.tobytes() for array in arrays)
        sent += b"" if resets is None else resets.tobytes()
    done = subprocess.run(command, input=sent, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr.decode())
    values = np.frombuffer(done.stdout, np.float32)
    found = []
    for (gates, time, batch, _, hidden, *_), *_ in every:
        state, columns = (batch, hidden), gates * hidden
        shapes = [(time, *state), (time, *state), (time, batch, columns), *[state] * 4, (hidden, columns), (columns,)]
        sizes = [math.prod(shape) for shape in shapes]
        parts = np.split(values[: sum(sizes)], np.cumsum(sizes)[:-1])
        values = values[sum(sizes) :]
        hs, _, d_projected, d_h, _, _, _, *of_weights = map(np.reshape, parts, shapes)
        found.append([hs, d_projected, d_h, *of_weights])
    assert len(values) == 0
    return found


@cache
def every_case():
    """What a program is given, and what NumPy makes of it."""
    rng = np.random.default_rng(0)
    every = [(case, *arrays_of(case, rng)) for case in cases()]
    return every, [wanted_of(*given) for given in every]


def check(command):
    """The recurrences of `cases` are NumPy's."""
    every, results = every_case()
    for (case, *_), found, wanted_results in zip(every, run(command, every), results, strict=True):
        for got, wanted in zip(found, wanted_results, strict=True):
            scale = max(1.0, np.max(np.abs(wanted), initial=0))
            np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5 * scale, err_msg=str(case))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_loops_of_a_wheel_are_those_of_numpy(x86_64, name):
    needed = {"loops": set(), "loops_avx2": {"avx2", "fma"}, "loops_avx512": {"avx512f"}}[name]
    if missing := needed - flags_of_this_processor():
        pytest.skip(f"this processor has no {', '.join(sorted(missing))}")
    check([x86_64, name])


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["-U__ARM_FEATURE_FMA"]], ids=["with FMA", "without FMA"])
def test_loops_of_arm_are_those_of_numpy(tmp_path, flags):
    if shutil.which(ARM) is None:
        pytest.skip(f"{ARM} is not installed")
    check([emulator("qemu-aarch64"), build(tmp_path, ARM, "-static", *flags, loops={"loops": []})])


@pytest.mark.slow
def test_the_loops_of_a_wheel_are_those_for_the_processor(x86_64):
    def width(*command):
        return int(subprocess.run([*command, x86_64], input=b"", capture_output=True, check=True).stderr.split()[-1])

    flags = flags_of_this_processor()
    assert width() == (16 if "avx512f" in flags else 8 if {"avx2", "fma"} <= flags else 4)
    qemu = emulator("qemu-x86_64")
    # Nehalem has SSE alone, Sandy Bridge AVX without AVX2. QEMU emulates AVX2 since version 7.2, and no AVX-512.
    assert [width(qemu, "-cpu", name) for name in ("Nehalem", "SandyBridge")] == [4, 4]
    assert width(qemu, "-cpu", "Haswell") == width(qemu, "-cpu", "max") == 8
    assert width(qemu, "-cpu", "Haswell,-fma") == width(qemu, "-cpu", "Haswell,-avx2") == 4


@pytest.mark.slow
def test_loops_with_instructions_that_the_processor_lacks_fail_their_test(x86_64):
    words = [emulator("qemu-x86_64"), "-cpu", "Nehalem", x86_64]
    for name in ("loops_avx2", "loops_avx512"):
        done = subprocess.run([*words, name], input="", capture_output=True, check=False, text=True)
        assert (done.returncode, done.stderr) == (
            1,
            "the processor does not have the instructions that it says it has\n",
        )
