"""Runs that many tests read: each is trained once in a run of the suite, by whichever worker needs it first."""

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from filelock import FileLock

from lstm_mnist_jax import load_run
from lstm_mnist_jax.config import Config, DataConfig, ModelConfig
from lstm_mnist_jax.data.idx import read_idx, write_idx
from lstm_mnist_jax.data.sources import EMBEDDED_MNIST
from lstm_mnist_jax.training import checkpoint
from lstm_mnist_jax.training.metrics import read_metrics


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, in which `make` was called by one worker; the others wait for it. Nobody may change it."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    return _made_once(root / "shared" / name, make)


def _made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(folder)
    return folder


FIRST = {"train": 3_100, "t10k": 1_100}


def _write_first_of_mnist(folder: Path) -> None:
    folder.mkdir()
    for split, count in FIRST.items():
        for name in (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"):
            write_idx(folder / name, read_idx(EMBEDDED_MNIST / f"{name}.gz")[:count])


FIRST_OF_MNIST = _made_once(
    Path(__file__).parents[1] / ".pytest_cache" / "-".join(["mnist", *map(str, FIRST.values())]), _write_first_of_mnist
)
"""MNIST's first training and test images, which are kept: to evaluate all 10,000 takes a third of a sweep's time."""

TINY = Config(
    epochs=3,
    data=DataConfig(str(FIRST_OF_MNIST), validation_examples=200, train_examples=1_000),
    model=ModelConfig(hidden_features=(4, 6)),
)
"""A second of training: 15 steps of 64 an epoch, so that batches straddle epochs.

Tests that vary it keep its shapes where they can: programs of the same shapes are compiled once for the whole suite.
"""

TINY_DATA = ["--epochs", "3", "--source", TINY.data.source, "--validation-examples", "200", "--train-examples", "1000"]
TINY_OPTIONS = [*TINY_DATA, "--hidden-features", "4", "6"]
"""TINY on the command line, after `train smoke` or `train`."""

ONE_LAYER = [*TINY_DATA, "--hidden-features", "3"]
"""What compiles soonest; for sweeps, the program of other tests."""

DIVERGING = 3e38
"""A learning rate with which no weight stays finite."""

TWO_NETWORKS = [(3,), (4, 6)]
"""What sweeps vary that have groups. A group of three or four members is one program on two devices, whatever its
optimizer's numbers: most sweeps here have as many, so that two networks are compiled for all of them."""


def metrics_of(run_dir):
    """The lines of metrics of a run or a sweep, without what depends on the clock."""
    lines = map(dataclasses.asdict, read_metrics(Path(run_dir) / "metrics.jsonl"))
    return [line | {"seconds": 0.0, "examples_per_second": 0.0} for line in lines]


def outcome(run_dir):
    """All that a run leaves and that must not depend on interruptions: final parameters, metrics, the best."""
    last, best = (load_run(run_dir, name) for name in ("last", "best"))
    leaves = [np.asarray(leaf).tobytes() for run in (last, best) for leaf in jax.tree.leaves(run.params)]
    return last.step, best.step, metrics_of(run_dir), leaves


def damage_the_newest_checkpoint(folder):
    (checkpoint.checkpoint_path(folder, checkpoint.newest_sound_step(folder)) / "record.json").write_text("{}")


def stop_after_group(metrics, path):
    """`on_epoch` of a sweep: SIGTERM once in an epoch of three members, or of one."""
    if metrics.member % 3 == 0:
        os.kill(os.getpid(), signal.SIGTERM)


def best_of(epochs):
    return max(epochs, key=lambda metrics: metrics.validation_accuracy)
