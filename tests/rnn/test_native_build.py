"""Building the compiled kernel where something is in the way."""

import os
import sys
import time

import programs
import pytest

from lstm_mnist_jax.rnn import native

needs_kernel = pytest.mark.skipif(
    native.unavailable() is not None, reason=f"no compiled kernel: {native.unavailable()}"
)

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
    return programs.Program(code=PROBE, env={**os.environ, **variables, **environment})


def finish(process):
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors == ""
    return output.splitlines()


REMEMBER = """#!/bin/sh
for output; do :; done
if [ ! -f "$0.so" ]; then
    {compiler} "$@" && cp "$output" "$0.$$" && mv "$0.$$" "$0.so"
else
    cp "$0.so" "$output"
fi
"""


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """The compiler behind a cache, as people have them. It takes seconds, and what it does is not the point here."""
    script = tmp_path_factory.mktemp("compiler") / "c++"
    script.write_text(REMEMBER.format(compiler=os.environ.get("CXX", "c++")))
    script.chmod(0o755)
    return str(script)


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


@pytest.mark.slow
@needs_kernel
@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is for Linux")
def test_two_builders_at_once_leave_one_library(tmp_path, compiler):
    processes = [start(tmp_path, CXX=compiler) for _ in range(2)]
    assert [finish(process) for process in processes] == [["None"], ["None"]]
    (library,) = (tmp_path / "lstm_mnist_jax" / "native").iterdir()
    # The next process takes what is there, and asks no compiler for it.
    written = library.stat().st_mtime_ns
    assert finish(start(tmp_path, CXX=compiler)) == ["None"]
    assert library.stat().st_mtime_ns == written


@pytest.mark.slow
@needs_kernel
def test_a_damaged_library_is_made_anew(tmp_path, compiler):
    folder = tmp_path / "lstm_mnist_jax" / "native"
    assert finish(start(tmp_path, CXX=compiler)) == ["None"]
    (library,) = folder.iterdir()
    library.write_bytes(b"no library")
    assert finish(start(tmp_path, CXX=compiler)) == ["None"]
    assert library.stat().st_size > 10_000


@pytest.mark.slow
@needs_kernel
def test_a_cache_folder_that_cannot_be_written_is_no_obstacle(tmp_path, compiler):
    (tmp_path / "file").write_text("")
    assert finish(start(tmp_path / "file", CXX=compiler)) == ["None"]


@pytest.mark.slow
@needs_kernel
def test_libraries_that_nobody_loads_any_more_are_removed(tmp_path, compiler):
    folder = tmp_path / "lstm_mnist_jax" / "native"
    folder.mkdir(parents=True)
    for name, age in (("lstm-old.so", 100), ("lstm-new.so", 10)):
        (folder / name).write_bytes(b"")
        then = time.time() - age * 24 * 3600
        os.utime(folder / name, (then, then))
    assert finish(start(tmp_path, CXX=compiler)) == ["None"]
    assert not (folder / "lstm-old.so").exists()
    assert (folder / "lstm-new.so").exists()


def test_a_switch_that_is_neither_on_nor_off_is_refused(tmp_path):
    process = start(tmp_path, LSTM_MNIST_JAX_NATIVE="nonsense")
    _, errors = process.communicate()
    assert process.returncode != 0
    assert "LSTM_MNIST_JAX_NATIVE is 'nonsense', expected 0 or 1" in errors
