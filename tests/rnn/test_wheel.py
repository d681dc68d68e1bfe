"""The wheels with the compiled kernel: built, and run in a process that finds no compiler."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LSTM_MNIST_JAX_NATIVE")}

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from lstm_mnist_jax.rnn import lstm, native
assert native.__file__.startswith(sys.argv[1])
assert native.unavailable() is None, native.unavailable()
x = np.ones((2, 2, 2), "f"); w = np.ones((2, 8), "f"); z = np.zeros((2, 2), "f")
np.testing.assert_allclose(
    *(lstm(x, w, w, w[0], (z, z), backend=backend).h for backend in ("native", "xla")), rtol=1e-6
)
"""

SELF_TEST = """
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  const char* (*test)() = library ? (const char* (*)())dlsym(library, "LstmMnistJaxSelfTest") : 0;
  const char* wrong = test ? test() : dlerror();
  puts(wrong ? wrong : "right");
}
"""


def build(folder, wanted):
    """Unpacks a wheel for a platform into a folder; returns its library."""
    if missing := [name for name in ("hatchling", "ziglang") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    gcc = {"manylinux_2_28_x86_64": "x86_64-linux-gnu-g++", "manylinux_2_28_aarch64": "aarch64-linux-gnu-g++"}[wanted]
    if shutil.which(gcc) is None:
        pytest.skip(f"{gcc} is not installed")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(words, env=ENVIRONMENT | {"LSTM_MNIST_JAX_WHEEL": wanted}, cwd=ROOT, check=True, timeout=900)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.endswith(f"-py3-none-{wanted}.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    (library,) = folder.rglob("prebuilt-*.so")
    symbols = subprocess.run(
        ["readelf", "-W", "--dyn-syms", library], capture_output=True, text=True, check=True
    ).stdout
    versions = [tuple(map(int, found)) for found in re.findall(r"@GLIBC_(\d+)\.(\d+)", symbols)]
    assert versions
    assert max(versions) <= (2, 28)
    assert "GLIBCXX" not in symbols
    return library


@pytest.mark.slow
def test_a_wheel_for_this_machine_needs_no_compiler(tmp_path):
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("for Linux on x86-64")
    build(tmp_path, "manylinux_2_28_x86_64")
    environment = ENVIRONMENT | {"CXX": "/nowhere/c++", "XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": "/nowhere"}
    words = [sys.executable, "-c", PROGRAM, tmp_path]
    subprocess.run(words, env=environment, cwd=tmp_path, check=True, timeout=300)
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.slow
def test_the_library_of_a_wheel_for_arm_passes_its_self_test(tmp_path):
    if missing := [name for name in ("aarch64-linux-gnu-gcc", "qemu-aarch64") if shutil.which(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    library = build(tmp_path, "manylinux_2_28_aarch64")
    (tmp_path / "test.c").write_text(SELF_TEST)
    subprocess.run(["aarch64-linux-gnu-gcc", tmp_path / "test.c", "-o", tmp_path / "test"], check=True, timeout=60)
    words = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", tmp_path / "test", library]
    assert subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout == "right\n"


def test_nothing_else_is_built_without_being_asked(tmp_path):
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(words, env=ENVIRONMENT, cwd=ROOT, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    done = subprocess.run(
        words, env=ENVIRONMENT | {"LSTM_MNIST_JAX_WHEEL": "beos"}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "LSTM_MNIST_JAX_WHEEL is 'beos', expected one of manylinux_2_28_x86_64, " in done.stderr
