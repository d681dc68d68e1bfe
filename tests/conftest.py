"""Settings for the whole suite: array shapes are checked while it runs, two CPU devices, one compilation cache."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before JAX is imported, here and in the subprocesses that tests start.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")  # accelerators round products by default
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# A shell starts what runs in its background deaf to Ctrl-C, and so would be the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jaxtyping

jaxtyping.install_import_hook("lstm_mnist_jax", "beartype.beartype")

import jax
import numpy as np
import pytest

from lstm_mnist_jax.cli import main
from lstm_mnist_jax.data import Dataset, Examples


@pytest.fixture(autouse=True, scope="module")
def programs_end_with_their_module() -> Iterator[None]:
    """Linux grants a process 65,530 mappings, a compiled program takes about ten: the suite's would be too many."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def tiny_dataset(rng: np.random.Generator) -> Dataset:
    """130 training, 21 validation and 33 test images of 6 x 5 pixels in 3 classes that can be told apart."""

    def examples(n: int) -> Examples:
        labels = rng.integers(0, 3, n).astype(np.int32)
        images = rng.integers(0, 100, (n, 6, 5)).astype(np.uint8)
        images[np.arange(n), labels] += 120
        return Examples(images, labels, 3)

    return Dataset(examples(130), examples(21), examples(33), ("a", "b", "c"), "made up")


@pytest.fixture
def command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`lstm-mnist WORDS`, in the process of the test: one of its own takes seconds to import JAX."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which the program replaces
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        return subprocess.CompletedProcess(words, ended.value.code, *capsys.readouterr())

    return run
