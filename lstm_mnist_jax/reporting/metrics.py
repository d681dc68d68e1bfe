"""Metrics for machines: one JSON object an epoch, and TensorBoard event files."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lstm_mnist_jax.errors import RunError


@dataclass(frozen=True)
class EpochMetrics:
    """What is known after an epoch. Losses are mean cross-entropies in nats, accuracies shares from 0 to 1.

    Attributes:
      epoch, step: counted from the start of the run, after the epoch.
      train_loss, train_accuracy: over the epoch's training steps, each with the weights that it started from.
      validation_loss, validation_accuracy, test_loss, test_accuracy: over the whole split, after the epoch.
      learning_rate: the step size.
      seconds: time that the epoch's training steps took, without compilation and evaluation.
      examples_per_second: training examples in that time.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float
    seconds: float
    examples_per_second: float


def read_metrics(path: Path) -> list[EpochMetrics]:
    """The epochs in a metrics.jsonl. A last line that a crash left unfinished is passed over."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            found.append(EpochMetrics(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return found


class MetricsWriter:
    """Writes the epochs of a run to metrics.jsonl, and to TensorBoard if wanted. Close it at the end."""

    def __init__(self, path: Path, tensorboard: Path | None, step: int) -> None:
        """Opens the files of a run that stands at `step`; what they hold of later steps is dropped."""
        kept = [metrics for metrics in read_metrics(path) if metrics.step <= step]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(_line(metrics) for metrics in kept), "utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")
        self._events: Any = None
        if tensorboard is not None:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)

    def write(self, metrics: EpochMetrics) -> None:
        """Adds an epoch; when this returns, it is in the file.

        Raises:
          RunError: it could not be written.
        """
        try:
            self._file.write(_line(metrics))
            self._file.flush()
        except OSError as error:
            raise RunError(
                f"{self._file.name} could not be written to: {error.strerror or error}. Checkpoints are kept; "
                "make room, then --resume the run."
            ) from error
        if self._events is not None:
            for name, value in asdict(metrics).items():
                if name not in ("epoch", "step"):
                    self._events.add_scalar(name.replace("_", "/", 1) if "_" in name else name, value, metrics.step)
            self._events.flush()

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _line(metrics: EpochMetrics) -> str:
    return json.dumps(asdict(metrics)) + "\n"
