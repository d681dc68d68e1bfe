"""The loop that the host runs around the compiled steps, for one run or for several at once.

The devices run about a second of steps at a time; in between, the host shows progress, looks for signals and for
numbers that are not finite, and saves. At the end of an epoch it evaluates. Nothing of what happens here, and no
matter when, changes what is trained: that is a function of the configs and the data alone.
"""

import math
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.config.space import describe
from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.progress import ProgressDisplay, loss_in_words, say
from lstm_mnist_jax.statistics import mean_of, percent
from lstm_mnist_jax.training import checkpoint, processes
from lstm_mnist_jax.training.checkpoint import Checkpoints, MemberStatus, Record
from lstm_mnist_jax.training.evaluation import Evaluation
from lstm_mnist_jax.training.metrics import MEASURES, EpochMetrics, MetricsWriter
from lstm_mnist_jax.training.optimizer import last_learning_rate
from lstm_mnist_jax.training.program import Stages, TrainingProgram, copy_of
from lstm_mnist_jax.training.run_folder import RunFolder
from lstm_mnist_jax.training.selection import score, score_of
from lstm_mnist_jax.training.signals import StopRequest

CHUNK_SECONDS = 1.0
"""How long the devices run without the host."""

FIRST_CHUNK = 1
"""Steps in the first chunk, which finds out how long a step takes."""


class TrainingLoop:
    """Trains the members of a group to their last epoch, or to a signal.

    Attributes:
      step: how many steps were made.
      members: the status of each member.
    """

    def __init__(
        self,
        folder: RunFolder,
        group: int,
        program: TrainingProgram,
        stages: Stages,
        record: Record,
        checkpoints: Checkpoints,
        writer: MetricsWriter | None,
        display: ProgressDisplay,
    ) -> None:
        self.step, self.members = record.step, list(record.members)
        self._config, self._steps_per_epoch = program.configs[0], program.steps_per_epoch
        self._folder, self._numbers, self._program, self._stages = folder, folder.groups[group], program, stages
        self._epoch_seconds = record.epoch_seconds
        self._checkpoints, self._writer, self._display = checkpoints, writer, display

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing more to train."""
        ended = (has_ended(self._config, self.step, member, self._steps_per_epoch) for member in self.members)
        return self.step >= self._config.epochs * self._steps_per_epoch or all(ended)

    def run(self, stop: StopRequest) -> signal.Signals | None:
        """Trains to the end, or to the first Ctrl-C or SIGTERM that any of the processes gets.

        Returns:
          The signal, if any process got one, be it at the very end.
        """
        chunk, last_save, stopped_by = FIRST_CHUNK, time.monotonic(), 0
        while not self.is_complete and not stopped_by:
            steps = min(chunk, self._steps_per_epoch - self.step % self._steps_per_epoch)
            began = time.perf_counter()
            self._advance(steps)
            seconds = time.perf_counter() - began
            chunk = max(1, round(steps * CHUNK_SECONDS / seconds))
            overdue = time.monotonic() - last_save > 60 * self._config.checkpoints.checkpoint_minutes
            # The processes do the same or wait for each other for ever: the first one's clock counts, and any signal.
            requests = processes.gather(np.array([stop.signal or 0, chunk, overdue], np.int32))
            stopped_by, (_, chunk, overdue) = int(requests[:, 0].max()), requests[0].tolist()

            self._epoch_seconds += seconds
            self._show(seconds / steps)
            at_end = self.step % self._steps_per_epoch == 0 or self.is_complete
            if at_end:
                self._end_epoch()
                self._epoch_seconds = 0.0
            if at_end or stopped_by or overdue:
                self._save()
                last_save = time.monotonic()
        return noted_signal(stop)

    def _has_ended(self, step: int, member: MemberStatus) -> bool:
        """Whether a member of a sweep had ended at a step, while others go on. A run ends as a whole."""
        return self._folder.is_sweep and has_ended(self._config, step, member, self._steps_per_epoch)

    def _advance(self, steps: int) -> None:
        """Trains for so many steps, and waits for them."""
        newest = self._program.run_steps(self._stages.newest, steps)
        self._stages = self._stages._replace(newest=newest)
        self._summary = self._program.summarize(newest)
        self.step = self._summary.step

    def _show(self, seconds_per_step: float) -> None:
        """Shows the progress, and notes which members have diverged."""
        summary, before = self._summary, (self.step - 1) // self._steps_per_epoch * self._steps_per_epoch
        for place, first_bad_step in enumerate(summary.first_bad_step.tolist()):
            if first_bad_step >= 0 and not self._has_ended(before, self.members[place]):
                self._mark_diverged(place, first_bad_step)
        losses = summary.loss[np.isfinite(summary.loss)] / summary.epoch_steps
        rate = len(self.members) * self._config.batch_size / seconds_per_step
        self._display.advance(self.step, float(losses.mean()) if losses.size else math.nan, rate)
        self._checkpoints.raise_failure()

    def _end_epoch(self) -> None:
        """Evaluates the members, prints and writes their metrics, and notes which are at their best."""
        params = self._stages.newest.trained
        validations, tests = (self._program.evaluate(split, params) for split in ("validation", "test"))
        better, before = np.zeros(len(self.members), bool), self.step - self._steps_per_epoch
        # The schedule is the same for all members.
        peak = self._config.optimizer.learning_rate
        self._rate = last_learning_rate(self._config, self._steps_per_epoch, self.step) / peak
        epochs = []
        for place, member in enumerate(self.members):
            if self._folder.is_sweep and is_stale(self._config, before, member.best_step, self._steps_per_epoch):
                self.members[place] = replace(member, score=None)
                continue
            if not math.isfinite(validations[place].loss):
                self._mark_diverged(place, self.step - 1)
            member = self.members[place]
            if member.diverged_at is None:
                value = score(self._config, validations[place].loss, validations[place].accuracy)
                better[place] = member.best_score is None or value > member.best_score
                if better[place]:
                    member = replace(member, best_step=self.step, best_score=value)
                self.members[place] = replace(member, score=value)
            epochs.append(self._metrics(place, validations[place], tests[place]))
        self._stages = self._program.choose(better, self._stages)
        if self._writer is not None:
            self._writer.write(epochs)
        self._display.say(epoch_line(epochs, self._folder, self._config.epochs, self._epoch_seconds))

    def _save(self) -> None:
        at_end = self.step % self._steps_per_epoch == 0
        members = (member if at_end else replace(member, score=None) for member in self.members)
        record = Record(self.step, self._program.places, self._epoch_seconds, tuple(members))
        self._checkpoints.wait()  # else three copies would be in memory
        # A copy: the training goes on in the memory of the original while it is written.
        self._checkpoints.save(copy_of(self._stages), record)

    def _mark_diverged(self, place: int, step: int) -> None:
        """Notes that a member has diverged. A sweep goes on with the others; a run ends with RunError."""
        if self.members[place].diverged_at is not None:
            return
        if not self._folder.is_sweep:
            self._fail(step)
        self.members[place] = replace(self.members[place], score=None, diverged_at=step)
        member = self._folder.members[self._numbers[place]]
        setting = f" ({describe(member.setting)})" if member.setting else ""
        self._display.say(
            f"seed {member.seed}{setting}: the loss or its gradient is not a finite number any more at step {step:,}; "
            "the others go on"
        )

    def _fail(self, step: int) -> None:
        self._checkpoints.wait()
        finished = checkpoint.finished_steps(self._folder.checkpoints)
        kept = (
            f"The last good checkpoint is that of step {finished[-1]:,}, kept in {self._folder.path}."
            if finished
            else "There is no checkpoint before it."
        )
        raise RunError(
            f"The loss or its gradient is not a finite number any more at step {step:,} "
            f"(epoch {step // self._steps_per_epoch + 1}). {kept} A new run with a lower --learning-rate usually "
            f"helps; here it was {self._config.optimizer.learning_rate:g}."
        )

    def _metrics(self, place: int, validation: Evaluation, test: Evaluation) -> EpochMetrics:
        summary = self._summary
        examples = summary.epoch_steps * self._config.batch_size
        diverged = self.members[place].diverged_at is not None
        metrics = EpochMetrics(
            member=self._numbers[place],
            epoch=-(-self.step // self._steps_per_epoch),
            step=self.step,
            train_loss=float(summary.loss[place]) / summary.epoch_steps,
            train_accuracy=int(summary.correct[place]) / examples,
            gradient_norm=float(summary.gradient_norm[place]) / summary.epoch_steps,
            validation_loss=validation.loss,
            validation_accuracy=validation.accuracy,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            learning_rate=self._program.configs[place].optimizer.learning_rate * self._rate,
            seconds=self._epoch_seconds / len(self.members),
            examples_per_second=len(self.members) * examples / self._epoch_seconds,
        )
        nothing: dict[str, Any] = dict.fromkeys(MEASURES, math.nan)
        return replace(metrics, **nothing) if diverged else metrics


def has_ended(config: Config, step: int, member: MemberStatus, steps_per_epoch: int) -> bool:
    """Whether a member is not trained on: it diverged, or would have stopped early by itself."""
    return member.diverged_at is not None or is_stale(config, step, member.best_step, steps_per_epoch)


def is_stale(config: Config, step: int, best_step: int | None, steps_per_epoch: int) -> bool:
    """Whether nothing better than at `best_step` was found for as long as early stopping waits."""
    patience = config.early_stopping_patience
    if patience is None or best_step is None or step % steps_per_epoch:  # within an epoch, chunks would decide
        return False
    return step // steps_per_epoch - best_step // steps_per_epoch >= patience


def noted_signal(stop: StopRequest) -> signal.Signals | None:
    """The signal that any of the processes got, if one did. All must ask."""
    number = int(processes.gather(np.array(stop.signal or 0, np.int32)).max())
    return signal.Signals(number) if number else None


def too_few_epochs(folder: RunFolder, epochs: int, step: int, steps_per_epoch: int) -> ConfigError:
    """The error of a run that is to have fewer epochs than it has."""
    done = -(-step // steps_per_epoch)
    return ConfigError(
        f"epochs is {epochs}, but {folder.path} was trained for {done} already. Ask for as many or more."
    )


def newest_sound_step(directory: Path, console: Console) -> int | None:
    """The step of the checkpoint from which to go on, in all processes; None is the start. Makes room behind it."""
    step = None
    if processes.is_first():
        step = checkpoint.newest_sound_step(directory)
        for line in checkpoint.set_aside(directory, newer_than=-1 if step is None else step):
            say(console, line)
    found = int(processes.gather(np.array(-1 if step is None else step))[0])
    return None if found < 0 else found


def epoch_line(metrics: list[EpochMetrics], folder: RunFolder, epochs: int, seconds: float) -> str:
    """An epoch of a group for people: of the setting that is the best on validation so far, means over its seeds with
    95 % confidence intervals."""
    by_setting: dict[str, list[EpochMetrics]] = {}
    for each in metrics:
        if not each.diverged:
            by_setting.setdefault(describe(folder.members[each.member].setting), []).append(each)
    start = f"epoch {metrics[0].epoch:{len(str(epochs))}d}/{epochs}  "
    end = f"{seconds:.1f} s  {metrics[0].examples_per_second:,.0f} examples/s"
    if not by_setting:
        return f"{start}all have diverged  {end}"

    def mean_score(setting: str) -> float:
        return float(np.mean([score_of(folder.config, each) for each in by_setting[setting]]))

    best = max(by_setting, key=mean_score)
    loss = mean_of([each.train_loss for each in by_setting[best]])
    spread = "" if math.isnan(loss.half_width) else f" ± {loss.half_width:.4f}"
    accuracies = "  ".join(
        f"{split} {percent(mean_of([getattr(each, f'{split}_accuracy') for each in by_setting[best]])):>7}"
        for split in ("validation", "test")
    )
    chosen = f"best of {len(by_setting)}: {best}  " if len(by_setting) > 1 else ""
    return f"{start}{chosen}loss {loss_in_words(loss.mean)}{spread}  {accuracies}  {end}"
