"""Fixtures of all files: runs that many read, how XLA compiles, the command line in the test's own process."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import DIVERGING, TINY, made_once

from lstm_mnist_jax import train
from lstm_mnist_jax.cli.main import main
from lstm_mnist_jax.config import PRESETS
from lstm_mnist_jax.data import Dataset, Examples
from lstm_mnist_jax.report import style
from lstm_mnist_jax.report.page import build
from lstm_mnist_jax.sweeps import Space, space_of, sweep
from lstm_mnist_jax.training import TrainingProgram
from lstm_mnist_jax.training.step import TrainState

gc.freeze()  # what is imported stays: the collector need not look at it again and again


def pytest_sessionfinish() -> None:
    """Once over all that the tests have left: pytest does it five times."""
    gc.collect()
    gc.freeze()


def choose_optimizations(wanted: bool) -> None:
    """With or without most of XLA's optimizations, which take most of the time to compile; also in subprocesses."""
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(not wanted))
    if jax.config.values["jax_disable_most_optimizations"] == wanted:
        jax.config.update("jax_disable_most_optimizations", not wanted)
        jax.clear_caches()  # JAX takes a program compiled with the other setting for the same


@pytest.fixture(autouse=True, scope="module")
def optimized_where_bits_are_compared(request: pytest.FixtureRequest) -> None:
    """These modules compare bits of what the optimizer might change; all others have tolerances, or compare runs of
    one program."""
    choose_optimizations(request.path.name in ("test_determinism.py", "test_feed.py", "test_recipe.py"))


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
    def make_unoptimized(path: Path) -> None:  # in whatever module the first test is that takes it
        before = not jax.config.values["jax_disable_most_optimizations"]
        choose_optimizations(False)
        try:
            make(path)
        finally:
            choose_optimizations(before)

    return made_once(factory, name, make_unoptimized)


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
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Makes the runs and sweeps of this test get SIGTERM at a step; None ends that."""
    run_steps, stop = TrainingProgram.run_steps, None

    def run_some(self: TrainingProgram, state: TrainState, n: int) -> TrainState:
        done = int(state.step[0])
        state = run_steps(self, state, n if stop is None or stop <= done else min(n, stop - done))
        if int(state.step[0]) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return state

    def choose(step: int | None) -> None:
        nonlocal stop
        stop = step

    monkeypatch.setattr(TrainingProgram, "run_steps", run_some)
    return choose


@pytest.fixture
def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, also into pages, and their files stay empty: to write all of them takes seconds."""
    assert build.file_bytes is style.file_bytes  # that of pages is not replaced
    monkeypatch.setattr(style, "file_bytes", lambda figure, kind: b"")


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
