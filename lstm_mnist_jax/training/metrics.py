"""Metrics for machines: one JSON object for each epoch of each run, and TensorBoard event files."""

import contextlib
import json
import math
import os
import time
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lstm_mnist_jax.config.json import from_dict
from lstm_mnist_jax.errors import RunError

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class EpochMetrics:
    """What is known after an epoch. Losses are mean cross-entropies in nats, accuracies shares from 0 to 1.

    They are NaN in an epoch in which the run diverged, null in the file.

    Attributes:
      member: which run of a sweep; 0 where there is one.
      epoch, step: counted from the start of the run, after the epoch.
      train_loss, train_accuracy: over the epoch's training steps, each with the weights that it started from.
      gradient_norm: the mean length of the steps' gradients, over all parameters, before any clipping.
      validation_loss, validation_accuracy, test_loss, test_accuracy: over the whole split, after the epoch.
      learning_rate: the step size.
      seconds: time that the epoch's training steps took, without compilation and evaluation. Of runs that are trained
        at once, an equal share each.
      examples_per_second: training examples in that time.
    """

    member: int
    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    gradient_norm: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float
    seconds: float
    examples_per_second: float

    @property
    def diverged(self) -> bool:
        """Whether the loss was not finite any more."""
        return math.isnan(self.validation_accuracy)


MEASURES = ("train_loss", "train_accuracy", "gradient_norm",
            "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")  # fmt: skip
"""The fields that are NaN after a run has diverged."""


def read_metrics(path: Path, member: int | None = None) -> list[EpochMetrics]:
    """The epochs in a metrics.jsonl, of all members or of one. Lines that a crash has cut short are passed over."""

    def parse(values: Any) -> EpochMetrics:
        missing = [name for name in MEASURES if isinstance(values, dict) and values.get(name, 0) is None]
        values = values | dict.fromkeys(missing, 0.0) if missing else values
        return replace(from_dict(EpochMetrics, values), **dict.fromkeys(missing, math.nan))

    return [metrics for metrics in read_json_lines(path, parse) if member in (None, metrics.member)]


def as_columns(epochs: Sequence[EpochMetrics]) -> dict[str, np.ndarray]:
    """The epochs of a run as an array [epochs] for each field, by its name: int64 or float64, empty where none is."""
    kinds = typing.get_type_hints(EpochMetrics)
    del kinds["member"]
    return {name: np.array([getattr(metrics, name) for metrics in epochs], kind) for name, kind in kinds.items()}


class MetricsWriter:
    """Writes the epochs of some members to metrics.jsonl, and to TensorBoard if wanted. Close it at the end."""

    def __init__(self, path: Path, tensorboard: Path | None, step: int, members: Sequence[int] = (0,)) -> None:
        """Opens the files of members that stand at `step`; what the files hold of their later steps is dropped.

        Raises:
          RunError: they cannot be written to.
        """
        self._path, own = path, frozenset(members)
        kept = (metrics for metrics in read_metrics(path) if metrics.member not in own or metrics.step <= step)
        self._lines = JsonLines(path, map(_as_json, kept))
        try:
            self._events = None if tensorboard is None else _EventFile(tensorboard, step)
        except OSError as error:
            raise RunError(f"{tensorboard} cannot be written to: {error.strerror or error}.") from error

    def write(self, epochs: Sequence[EpochMetrics]) -> None:
        """Adds an epoch of each member; when this returns, they are in the file.

        Raises:
          RunError: they could not be written.
        """
        self._lines.write(*map(_as_json, epochs))
        try:
            if self._events is not None:
                for metrics in epochs:
                    self._events.write(metrics)
        except OSError as error:
            raise not_written(self._path.parent, error) from error

    def close(self) -> None:
        """Closes the files. What could not be written has been said by `write`."""
        self._lines.close()
        with contextlib.suppress(OSError):
            if self._events is not None:
                self._events.close()


def _as_json(metrics: EpochMetrics) -> dict[str, Any]:
    nothing = dict.fromkeys(MEASURES) if metrics.diverged else {}
    return asdict(metrics) | nothing


class _EventFile:
    """TensorBoard's events of one run, written at once: SummaryWriter's thread hangs where the disk is full."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if step:  # TensorBoard then hides what earlier files hold of later steps
            self._writer.write_event(
                Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
            )

    def write(self, metrics: EpochMetrics) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = {name: value for name, value in asdict(metrics).items() if name not in ("member", "epoch", "step")}
        summary = Summary(value=[Summary.Value(tag=_tag(name), simple_value=v) for name, v in values.items()])
        self._writer.write_event(Event(wall_time=time.time(), step=metrics.step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _tag(name: str) -> str:
    """train_loss as TensorBoard groups it: train/loss."""
    split = name.split("_")[0] in ("train", "validation", "test")
    return name.replace("_", "/", 1) if split else name


def read_json_lines(path: Path, parse: Callable[[Any], Parsed]) -> list[Parsed]:
    """What `parse` makes of each line. Lines of which it makes a ValueError, as a crash may leave, are passed over."""
    found = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(parse(json.loads(line)))
    return found


class JsonLines:
    """Writes such a file. Close it at the end."""

    def __init__(self, path: Path, kept: Iterable[dict[str, Any]]) -> None:
        """Opens the file, with what it is to begin with.

        Raises:
          RunError: it cannot be written to.
        """
        self._path = path
        try:
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(_line(values) for values in kept), "utf-8")
            partial.replace(path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise RunError(f"{path} cannot be written to: {error.strerror or error}.") from error

    def write(self, *objects: dict[str, Any]) -> None:
        """Adds objects; when this returns, they are in the file.

        Raises:
          RunError: they could not be written.
        """
        try:
            self._file.write("".join(map(_line, objects)))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise not_written(self._path.parent, error) from error

    def close(self) -> None:
        """Closes the file. What could not be written has been said by `write`."""
        with contextlib.suppress(OSError):
            self._file.close()


def not_written(folder: Path, error: OSError) -> RunError:
    """What to say where a run's folder takes no more."""
    return RunError(
        f"{folder} could not be written to: {error.strerror or error}. Checkpoints are kept; make room, then go on "
        "with --resume."
    )


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
