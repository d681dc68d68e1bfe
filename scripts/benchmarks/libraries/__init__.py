"""The libraries: a module each, with one function for every kind of work that it can do.

    epoch(work, setting) -> Job      layer(work, setting) -> Job
    inference(work, setting) -> Job  product(work, setting) -> Job
    settings(work) -> list[str]      the settings to try, the likeliest to be the fastest first; may be missing

The modules are imported in the libraries' own processes alone. This file imports none of them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.work import Inference

CHECKED_STEPS = 10
"""How many first steps of an epoch must give the same losses in all libraries."""

CHECKED_IMAGES = 20

MODULES = {
    name: f"benchmarks.libraries.{module or name}"
    for name, module in (
        ("ours", ""), ("flax", ""), ("torch", ""), ("torch-compile", "torch_compile"), ("keras-jax", "keras"),
        ("keras-torch", "keras"), ("keras-tensorflow", "keras"), ("tf1", ""), ("cudnn", ""), ("numpy", ""),
    )
}  # fmt: skip

ENVIRONMENT = {f"keras-{name}": {"KERAS_BACKEND": name} for name in ("jax", "torch", "tensorflow")}
ENVIRONMENT["tf1"] = {"TF_USE_LEGACY_KERAS": "1"}
"""Environment variables that a library's process needs."""


class Unavailable(Exception):
    """A library cannot do a work on this machine; the message has the reason."""


@dataclass(frozen=True)
class Job:
    """A work that a library has prepared.

    Attributes:
      run: does the work once, and returns when its results are there.
      check: does a first part of it and returns numbers in which all libraries must agree; called before any `run`.
      compile_seconds: of tracing, lowering and compiling, where it is a step of its own.
      setting: how it runs, for people.
    """

    run: Callable[[], Any]
    check: Callable[[], Sequence[float]]
    compile_seconds: float | None = None
    setting: str = ""


def inference_job(work: Inference, predict: Callable[[np.ndarray], np.ndarray], setting: str) -> Job:
    """The job of `predict`, from uint8 images [n, height, width] to probabilities [n, classes]."""
    from lstm_mnist_jax import load

    test = load().test
    starts = itertools.cycle(range(0, len(test), work.images))

    def run() -> None:
        first = next(starts)
        predict(test.images[first : first + work.images])

    def check() -> list[float]:
        probabilities = predict(test.images[:CHECKED_IMAGES])
        return (-np.log(probabilities[range(CHECKED_IMAGES), test.labels[:CHECKED_IMAGES]])).tolist()

    return Job(run, check, setting=setting)
