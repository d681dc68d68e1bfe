"""Metrics for machines: one JSON object an epoch, and TensorBoard event files."""

import contextlib
import time
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lstm_mnist_jax.config.json import from_dict
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.reporting.json_lines import JsonLines, not_written, read_json_lines


@dataclass(frozen=True)
class EpochMetrics:
    """What is known after an epoch. Losses are mean cross-entropies in nats, accuracies shares from 0 to 1.

    Attributes:
      epoch, step: counted from the start of the run, after the epoch.
      train_loss, train_accuracy: over the epoch's training steps, each with the weights that it started from.
      gradient_norm: the mean length of the steps' gradients, over all parameters, before any clipping.
      validation_loss, validation_accuracy, test_loss, test_accuracy: over the whole split, after the epoch.
      learning_rate: the step size.
      seconds: time that the epoch's training steps took, without compilation and evaluation.
      examples_per_second: training examples in that time.
    """

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


def read_metrics(path: Path) -> list[EpochMetrics]:
    """The epochs in a metrics.jsonl. Lines that are none, as a crash may leave, are passed over."""
    return read_json_lines(path, lambda values: from_dict(EpochMetrics, values))


def as_columns(epochs: Sequence[EpochMetrics]) -> dict[str, np.ndarray]:
    """The epochs as an array [epochs] for each field, by its name: int64 or float64, empty where there is none."""
    kinds = typing.get_type_hints(EpochMetrics)
    return {name: np.array([getattr(metrics, name) for metrics in epochs], kind) for name, kind in kinds.items()}


class MetricsWriter:
    """Writes the epochs of a run to metrics.jsonl, and to TensorBoard if wanted. Close it at the end."""

    def __init__(self, path: Path, tensorboard: Path | None, step: int) -> None:
        """Opens the files of a run that stands at `step`; what they hold of later steps is dropped.

        Raises:
          RunError: they cannot be written to.
        """
        self._path = path
        self._lines = JsonLines(path, [asdict(metrics) for metrics in read_metrics(path) if metrics.step <= step])
        try:
            self._events = None if tensorboard is None else _EventFile(tensorboard, step)
        except OSError as error:
            raise RunError(f"{tensorboard} cannot be written to: {error.strerror or error}.") from error

    def write(self, metrics: EpochMetrics) -> None:
        """Adds an epoch; when this returns, it is in the file.

        Raises:
          RunError: it could not be written.
        """
        self._lines.write(asdict(metrics))
        try:
            if self._events is not None:
                self._events.write(metrics)
        except OSError as error:
            raise not_written(self._path.parent, error) from error

    def close(self) -> None:
        """Closes the files. What could not be written has been said by `write`."""
        self._lines.close()
        with contextlib.suppress(OSError):
            if self._events is not None:
                self._events.close()


class _EventFile:
    """TensorBoard's events of one training, written at once: SummaryWriter's thread hangs where the disk is full."""

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

        values = {name: value for name, value in asdict(metrics).items() if name not in ("epoch", "step")}
        summary = Summary(value=[Summary.Value(tag=_tag(name), simple_value=v) for name, v in values.items()])
        self._writer.write_event(Event(wall_time=time.time(), step=metrics.step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _tag(name: str) -> str:
    """train_loss as TensorBoard groups it: train/loss."""
    split = name.split("_")[0] in ("train", "validation", "test")
    return name.replace("_", "/", 1) if split else name
