"""Settings for the whole suite: array shapes are checked while it runs, two CPU devices, one compilation cache."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

# Before JAX is imported, here and in the subprocesses that tests start.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")  # accelerators round products by default
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# How XLA compiles for CPUs, which takes most of the time: one LLVM module a program; and with its former emitters,
# in two thirds of the time, where jaxlib has them (0.10 does, 0.12 does not). XLA_FLAGS=" " has it compile as users
# have it.
_flags = ["--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    _flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_flags))

# A shell starts what runs in its background deaf to Ctrl-C, and so would be the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jaxtyping

jaxtyping.install_import_hook("lstm_mnist_jax", "beartype.beartype")

import jax
import numpy as np
import pytest
from runs import DIVERGING, TINY, made_once

from lstm_mnist_jax import train
from lstm_mnist_jax.cli.main import main
from lstm_mnist_jax.config import PRESETS
from lstm_mnist_jax.data import Dataset, Examples
from lstm_mnist_jax.sweeps import Space, space_of, sweep

# JAX makes many objects that live long: the default thresholds have the collector look at all of them again and again.
gc.set_threshold(100_000, 50, 100)

LONGEST = (
    "test_processes", "test_train", "test_sweep", "test_step", "test_feed", "test_benchmark", "test_cli",
    "test_docs_runs",
    "test_docs_sweeps", "test_docs_weights", "test_native", "test_report", "test_page_drawing", "test_stack",
    "test_tf_checkpoint", "test_page",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take the longest come first: at the end, no worker waits long for the other. (pytest-xdist hands
    out whole files, see pyproject.toml.)"""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@contextmanager
def optimized(wanted: bool) -> Iterator[None]:
    """With or without most of XLA's optimizations, which take a third of the time to compile."""
    before = jax.config.values["jax_disable_most_optimizations"]
    choose_optimizations(wanted)
    try:
        yield
    finally:
        choose_optimizations(not before)


def choose_optimizations(wanted: bool) -> None:
    if jax.config.values["jax_disable_most_optimizations"] == wanted:
        jax.config.update("jax_disable_most_optimizations", not wanted)
        jax.clear_caches()  # JAX takes a program compiled with the other setting for the same


@pytest.fixture(autouse=True, scope="module")
def optimized_where_bits_are_compared(request: pytest.FixtureRequest) -> Iterator[None]:
    """These modules compare to the last bit, which optimizations might change; all others have tolerances."""
    with optimized(request.path.name in ("test_train.py", "test_sweep.py", "test_step.py", "test_feed.py")):
        yield


MANY_MAPPINGS = 30_000


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_dropped_when_they_are_many() -> Iterator[None]:
    """Linux grants a process 65,530 mappings, and a compiled program takes about ten."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()


def _made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    def make_optimized(path: Path) -> None:
        with optimized(True):
            make(path)

    return made_once(factory, name, make_optimized)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete run of TINY. Read only: copy it to change it."""
    return _made_once(tmp_path_factory, "tiny_run", lambda path: train(TINY, path))


@pytest.fixture(scope="session")
def tiny_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete sweep of three seeds of TINY. Read only: copy it to change it."""
    return _made_once(tmp_path_factory, "tiny_sweep", lambda path: sweep(TINY, Space(seeds=3), path))


@pytest.fixture(scope="session")
def diverging_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete sweep of two seeds of TINY, and of two with a learning rate that diverges. Read only."""
    space = space_of({"learning_rate": [TINY.optimizer.learning_rate, DIVERGING]}, seeds=2)
    return _made_once(tmp_path_factory, "diverging_sweep", lambda path: sweep(TINY, space, path))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that reads nine digits of ten rightly: three epochs of `smoke`. Read only."""
    return _made_once(tmp_path_factory, "digits_run", lambda path: train(replace(PRESETS["smoke"], epochs=3), path))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def tiny_dataset(rng: np.random.Generator) -> Dataset:
    """130 training, 21 validation and 33 test images of 6 x 5 pixels in 3 classes that can be distinguished."""

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
