"""Metrics of each epoch: metrics.jsonl, TensorBoard event files, and model selection on the validation split."""

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.config.json import from_dict
from lstm_mnist_jax.errors import RunError


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of an epoch. Losses are mean cross-entropies in nats, accuracies are from 0 to 1.

    They are NaN in an epoch in which the run diverged, null in the file.

    Attributes:
      member: the number of the run in a sweep; 0 for a single run.
      epoch: the number of the epoch, from 1.
      step: the number of steps from the start of the run to the end of the epoch.
      train_loss: over the epoch's training steps, each with the weights that it started from.
      train_accuracy: over the same steps.
      gradient_norm: the mean norm of the steps' gradients, over all parameters, before any clipping.
      validation_loss: over the whole validation split, after the epoch.
      validation_accuracy: over the whole validation split, after the epoch.
      test_loss: over the whole test split, after the epoch.
      test_accuracy: over the whole test split, after the epoch.
      learning_rate: of the epoch's last step.
      seconds: time of the epoch's training steps, without compilation and evaluation. Of runs that are trained at once,
        an equal share each.
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
        """Whether the loss is not finite."""
        return math.isnan(self.validation_accuracy)


OnEpoch = Callable[[EpochMetrics, Path], object]
"""A function that is called with the metrics of each epoch and the folder of the run; its result is ignored."""

MEASURES = ("train_loss", "train_accuracy", "gradient_norm",
            "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")  # fmt: skip
"""The fields that are NaN after a run has diverged."""

DARK = 64
"""A training set whose brightest pixel is below this is named as the cause where a run learns nothing."""

FEWEST = 20
"""Validation examples of which accuracies are compared with that of guessing."""

COUNTS = ("member", "epoch", "step")
"""The fields that say which epoch it is."""


def read_metrics(path: Path, member: int | None = None) -> list[EpochMetrics]:
    """The epochs in a metrics.jsonl, of all members or of one. Lines that a crash has cut short are skipped."""
    found = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            missing = [name for name in MEASURES if isinstance(values, dict) and values.get(name, 0) is None]
            values = values | dict.fromkeys(missing, 0.0) if missing else values
            metrics = replace(from_dict(EpochMetrics, values), **dict.fromkeys(missing, math.nan))
            if member in (None, metrics.member):
                found.append(metrics)
    return found


def best_in_words(config: Config) -> str:
    """What the best weights are called in messages."""
    return "best on validation" if config.selection_metric == "accuracy" else "best on validation by loss"


def score(config: Config, loss: float | None, accuracy: float | None) -> float:
    """The score for model selection: validation accuracy, or minus the loss, by `config.selection_metric`.

    It is the same in all processes to the last bit, like the all-reduced gradients. None and NaN give minus infinity.
    """
    value = accuracy if config.selection_metric == "accuracy" else loss
    if value is None or math.isnan(value):
        return -math.inf
    return value if config.selection_metric == "accuracy" else -value


def score_of(config: Config, epoch: EpochMetrics) -> float:
    """The score of the weights at the end of an epoch."""
    return score(config, epoch.validation_loss, epoch.validation_accuracy)


class Guessing(NamedTuple):
    """The accuracy and the loss of guessing on the validation split.

    Attributes:
      accuracy: of the most frequent class.
      loss: of the frequencies of the classes, their entropy in nats.
      examples: the number of validation images.
    """

    accuracy: float
    loss: float
    examples: int

    @staticmethod
    def of(counts: np.ndarray) -> "Guessing":
        """Of a split with so many examples of each class, int [classes]."""
        shares = counts[counts > 0] / counts.sum()
        return Guessing(float(shares.max()), float((shares * np.log(1 / shares)).sum()), int(counts.sum()))

    def is_as_good_as(self, epochs: Sequence[EpochMetrics]) -> bool:
        """Whether no epoch was much better: none has a lower loss, and none an accuracy that is three standard
        deviations above, or twice as high where there are many classes and the loss ends above twice this loss.
        Few examples, or those of one class, do not show it."""
        if self.examples < FEWEST or not self.loss:
            return False
        share = self.accuracy
        most = share + 3 * math.sqrt(share * (1 - share) / self.examples)
        if epochs and epochs[-1].validation_loss > 2 * self.loss and share < 0.25:
            most = max(most, 2 * share)
        most = min(most, (1 + share) / 2)  # of few examples, or where most are of one class
        return all(each.validation_accuracy < most and each.validation_loss > 0.98 * self.loss for each in epochs)

    def warning(self, config: Config, epochs: Sequence[EpochMetrics], images: np.ndarray | None = None) -> str | None:
        """What is printed of a run that was no better; None of one that was, and of one without an epoch.

        Args:
          config, epochs: of the run.
          images: the training images, uint8, which may be the cause; None where they are not at hand.
        """
        epochs = [each for each in epochs if not each.diverged]
        if not epochs or not self.is_as_good_as(epochs):
            return None
        accuracy = max(each.validation_accuracy for each in epochs)
        loss = min(each.validation_loss for each in epochs)
        causes = likely_causes([config.optimizer.learning_rate], len(epochs), images)
        if epochs[-1].validation_loss > 2 * self.loss:
            causes = f"  the learning rate ({config.optimizer.learning_rate:g}) may be too high"
        return (
            f"no epoch is much better than guessing on validation: accuracy {accuracy:.2%}, loss {loss:.4g}\n"
            f"  (of the most frequent class {self.accuracy:.2%}, of the classes' frequencies {self.loss:.4g})\n{causes}"
        )


def likely_causes(learning_rates: Sequence[float], epochs: int, images: np.ndarray | None) -> str:
    """Why runs with these learning rates may have learned nothing, in lines.

    Args:
      learning_rates: of the runs.
      epochs: the number that they were trained for.
      images: the training images, uint8; None where they are not at hand.
    """
    rates = " to ".join(f"{rate:g}" for rate in sorted({min(learning_rates), max(learning_rates)}))
    brightest = 255 if images is None else int(images.max())
    dark = f", or pixels of at most {brightest} (white is 255)" if brightest < DARK else ""
    return (
        f"  likely causes: labels that are not those of the images, too few epochs ({epochs}),\n"
        f"  {'' if dark else 'or '}the learning rate ({rates}){dark}"
    )


class MetricsWriter:
    """Writes the epochs of some members to metrics.jsonl, and to TensorBoard if wanted. Close it at the end."""

    def __init__(self, path: Path, tensorboard: Path | None, step: int, members: Sequence[int] = (0,)) -> None:
        """Opens the files, without these members' epochs after `step`. Raises RunError where they are not writable."""
        self._path, own, opened = path, frozenset(members), path
        kept = [metrics for metrics in read_metrics(path) if metrics.member not in own or metrics.step <= step]
        try:
            partial = path.with_name(path.name + ".partial")
            partial.write_text("".join(map(_as_line, kept)), "utf-8")
            partial.replace(path)
            self._file, self._events = path.open("a", encoding="utf-8"), None
            if tensorboard is not None:
                opened = tensorboard
                self._events = _open_event_file(tensorboard, step)
        except OSError as error:
            raise RunError(f"{opened} cannot be written to: {error.strerror or error}.") from error

    def write(self, epochs: Sequence[EpochMetrics]) -> None:
        """Adds an epoch of each member, synced to disk. Raises RunError where they cannot be written."""
        try:
            self._file.write("".join(map(_as_line, epochs)))
            self._file.flush()
            os.fsync(self._file.fileno())
            if self._events is not None:
                for metrics in epochs:
                    self._events.write_event(_as_event(metrics))
                    self._events.flush()
        except OSError as error:
            raise RunError(
                f"{self._path.parent} could not be written to: {error.strerror or error}. Checkpoints are kept; make "
                "room, then continue with --resume."
            ) from error

    def close(self) -> None:
        """Closes the files. `write` has reported what could not be written."""
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()


def _as_line(metrics: EpochMetrics) -> str:
    nothing = dict.fromkeys(MEASURES) if metrics.diverged else {}
    return json.dumps(asdict(metrics) | nothing) + "\n"


def _open_event_file(folder: Path, step: int) -> Any:
    """TensorBoard's writer of events, without the thread of SummaryWriter, which hangs where the disk is full."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    folder.mkdir(parents=True, exist_ok=True)
    writer = EventsWriter(str(folder / "events"))
    if step:  # TensorBoard then hides what earlier files hold of later steps
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))
    return writer


def _as_event(metrics: EpochMetrics) -> Any:
    """The event of an epoch, with train_loss as train/loss, by which TensorBoard groups."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    values = asdict(metrics).items()
    tags = {re.sub("^(train|validation|test)_", r"\1/", name): value for name, value in values if name not in COUNTS}
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()])
    return Event(wall_time=time.time(), step=metrics.step, summary=summary)
