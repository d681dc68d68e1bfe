"""Runs that many tests read: each is trained once in a run of the suite, by whichever worker needs it first."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from lstm_mnist_jax.config import Config, DataConfig, ModelConfig

TINY = Config(
    epochs=3,
    data=DataConfig(validation_examples=200, train_examples=1_000),
    model=ModelConfig(hidden_features=(4, 6)),
)
"""A second of training: 15 steps of 64 an epoch, so that batches straddle epochs.

Tests that vary it keep its shapes where they can: programs of the same shapes are compiled once for the whole suite.
"""

TINY_DATA = ["--epochs", "3", "--validation-examples", "200", "--train-examples", "1000"]
TINY_OPTIONS = [*TINY_DATA, "--hidden-features", "4", "6"]
"""TINY on the command line, after `train smoke` or `train`."""

ONE_LAYER = [*TINY_DATA, "--hidden-features", "3"]
"""What compiles soonest; for sweeps, the program of other tests."""

DIVERGING = 3e38
"""A learning rate with which no weight stays finite."""


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name`, in which `make` was called by one worker; the others wait for it. Nobody may change it."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_name(f"{name}.lock")):
        if not folder.exists():
            unfinished = folder.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(folder)
    return folder
