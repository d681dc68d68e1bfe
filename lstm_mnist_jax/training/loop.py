"""The loop that the host runs, of one training or of a population.

The devices run about a second of steps at a time; in between, the host shows progress, looks for signals and for
numbers that are not finite, and saves. At the end of an epoch it evaluates. Nothing of what happens here, and no
matter when, changes what is trained: that is a function of the configs and the data alone.
"""

import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from rich.console import Console

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.reporting.metrics import EpochMetrics
from lstm_mnist_jax.reporting.progress import say
from lstm_mnist_jax.training import checkpoint, processes
from lstm_mnist_jax.training.evaluation import Evaluation
from lstm_mnist_jax.training.optimizer import last_learning_rate
from lstm_mnist_jax.training.program import StepSummary
from lstm_mnist_jax.training.signals import StopRequest

CHUNK_SECONDS = 1.0
"""How long the devices run without the host."""

FIRST_CHUNK = 1
"""Steps in the first chunk, which finds out how long a step takes."""


class Course(ABC):
    """What the loop drives, and what happens at its pauses.

    Attributes:
      config: with the number of epochs, and how often to save.
      steps_per_epoch: how many steps an epoch has.
      step: how many were made.
      epoch_seconds: how long the epoch so far was trained for.
    """

    config: Config
    steps_per_epoch: int
    step: int
    epoch_seconds: float

    @abstractmethod
    def advance(self, steps: int) -> None:
        """Trains for so many steps, and waits for them."""

    @abstractmethod
    def show(self, seconds_per_step: float) -> None:
        """Shows where the training stands, and raises what went wrong."""

    @abstractmethod
    def end_epoch(self) -> None:
        """Evaluates, tells and records the epoch just ended."""

    @abstractmethod
    def save(self) -> None:
        """Saves the state as it is."""

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing more to train."""
        return self.step >= self.config.epochs * self.steps_per_epoch


def drive(course: Course, stop: StopRequest) -> signal.Signals | None:
    """Runs a training to its end, or to the first Ctrl-C or SIGTERM that any of its processes gets.

    Returns:
      The signal, if any process got one, be it at the very end.
    """
    chunk, last_save, stopped_by = FIRST_CHUNK, time.monotonic(), 0
    while not course.is_complete and not stopped_by:
        steps = min(chunk, course.steps_per_epoch - course.step % course.steps_per_epoch)
        began = time.perf_counter()
        course.advance(steps)
        seconds = time.perf_counter() - began
        chunk = max(1, round(steps * CHUNK_SECONDS / seconds))
        overdue = time.monotonic() - last_save > 60 * course.config.checkpoints.checkpoint_minutes
        # The processes do the same or wait for each other for ever: the first one's clock counts, and any signal.
        wishes = processes.gather(np.array([stop.signal or 0, chunk, overdue], np.int32))
        stopped_by, (_, chunk, overdue) = int(wishes[:, 0].max()), wishes[0].tolist()

        course.epoch_seconds += seconds
        course.show(seconds / steps)
        at_end = course.step % course.steps_per_epoch == 0 or course.is_complete
        if at_end:
            course.end_epoch()
            course.epoch_seconds = 0.0
        if at_end or stopped_by or overdue:
            course.save()
            last_save = time.monotonic()
    return noted_signal(stop)


def noted_signal(stop: StopRequest) -> signal.Signals | None:
    """The signal that any of the processes got, if one did. All must ask."""
    number = int(processes.gather(np.array(stop.signal or 0, np.int32)).max())
    return signal.Signals(number) if number else None


def newest_sound_step(directory: Path, console: Console) -> int | None:
    """The step of the checkpoint from which to go on, in all processes; None is the start. Makes room behind it."""
    step = None
    if processes.is_first():
        step = checkpoint.newest_sound_step(directory)
        for line in checkpoint.set_aside(directory, newer_than=-1 if step is None else step):
            say(console, line)
    found = int(processes.gather(np.array(-1 if step is None else step))[0])
    return None if found < 0 else found


def is_stale(config: Config, step: int, best_step: int | None, steps_per_epoch: int) -> bool:
    """Whether nothing better than at `best_step` was found for as long as an early stop waits."""
    patience = config.early_stop_epochs
    if patience is None or best_step is None or step % steps_per_epoch:  # within an epoch, chunks would decide
        return False
    return step // steps_per_epoch - best_step // steps_per_epoch >= patience


def epoch_metrics(
    config: Config,
    seen: StepSummary,
    member: int,
    validation: Evaluation,
    test: Evaluation,
    seconds: float,
    steps_per_epoch: int,
) -> EpochMetrics:
    """The metrics of one training after an epoch that took so many seconds."""
    examples = seen.epoch_steps * config.batch_size
    return EpochMetrics(
        epoch=seen.step // steps_per_epoch,
        step=seen.step,
        train_loss=float(seen.loss[member]) / seen.epoch_steps,
        train_accuracy=int(seen.correct[member]) / examples,
        gradient_norm=float(seen.gradient_norm[member]) / seen.epoch_steps,
        validation_loss=validation.loss,
        validation_accuracy=validation.accuracy,
        test_loss=test.loss,
        test_accuracy=test.accuracy,
        learning_rate=last_learning_rate(config, steps_per_epoch, seen.step),
        seconds=seconds,
        examples_per_second=examples / seconds,
    )
