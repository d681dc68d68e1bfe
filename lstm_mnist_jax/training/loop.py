"""The training loop on the host, for one run or for several at once.

The devices run about a second of steps at a time. In between, the host shows progress, checks for signals and for
numbers that are not finite, and saves. At the end of an epoch it evaluates. The result does not depend on when the host
does this: it is a function of the configs and the data alone.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
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
from lstm_mnist_jax.training.metrics import MEASURES, EpochMetrics, MetricsWriter, OnEpoch, score, score_of
from lstm_mnist_jax.training.optimizer import schedule
from lstm_mnist_jax.training.program import LatestAndBest, TrainingProgram, copy_of
from lstm_mnist_jax.training.run_folder import RunFolder

CHUNK_SECONDS = 1.0
"""How long the devices run without the host."""


@dataclass
class StopRequest:
    """The signal that asks a run to stop, once there is one."""

    signal: int | None = None


@contextmanager
def noted_stop_request() -> Iterator[StopRequest]:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is noted; a second one ends the process at once.

    At once, because unwinding would wait for a save under way; a checkpoint is made to survive that. A signal that
    the process ignores (SIGHUP under nohup) stays ignored. Outside the main thread, where Python allows no
    handlers, no signal is noted.
    """
    request, former = StopRequest(), dict[int, Any]()

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = number
        for caught in former:
            signal.signal(caught, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            caught = getattr(signal, name, None)  # Windows has no SIGHUP
            if caught is not None and signal.getsignal(caught) != signal.SIG_IGN:
                former[caught] = signal.signal(caught, note)
    try:
        yield request
    finally:
        for caught, handler in former.items():
            signal.signal(caught, handler)


class TrainingLoop:
    """Trains the members of a group of a sweep, or the one run of a folder.

    Attributes:
      step: the number of steps made.
      members: the status of each member.
    """

    def __init__(
        self,
        folder: RunFolder,
        group: int,
        program: TrainingProgram,
        states: LatestAndBest,
        record: Record,
        console: Console,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        self.step, self.members = record.step, list(record.members)
        self._config, self._steps_per_epoch = program.configs[0], program.steps_per_epoch
        self._folder, self._group, self._numbers = folder, group, folder.groups[group]
        self._program, self._states = program, states
        self._epoch_seconds, self._console, self._on_epoch = record.epoch_seconds, console, on_epoch
        self._has_on_epoch = bool(processes.gather(np.array(on_epoch is not None))[0])

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing more to train."""
        return is_complete(self._config, self.step, self.members, self._steps_per_epoch)

    def run(self, stop: StopRequest) -> signal.Signals | None:
        """Trains to the last epoch, or to the first Ctrl-C or SIGTERM that any of the processes gets.

        Returns:
          The signal, if any process got one, even after the last step.
        """
        folder, config = self._folder, self._config
        with ExitStack() as stack:
            checkpoints = Checkpoints(folder.checkpoints_of(self._group), config.checkpoints.keep_checkpoints)
            self._checkpoints, self._writer = stack.enter_context(closing(checkpoints)), None
            if processes.is_first():
                events = folder.tensorboard if config.tensorboard and not folder.is_sweep else None
                writer = MetricsWriter(folder.metrics, events, self.step, self._numbers)
                self._writer = stack.enter_context(closing(writer))
            display = ProgressDisplay(self._console, config.epochs, self._steps_per_epoch, self.step)
            self._display = stack.enter_context(display)
            self._run(stop)
            return noted_signal(stop)

    def _run(self, stop: StopRequest) -> None:
        # The first chunk measures how long a step takes.
        chunk, last_save, stopped_by = 1, time.monotonic(), 0
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
            epochs = list[EpochMetrics]()
            if at_end:
                epochs = self._end_epoch()
                self._epoch_seconds = 0.0
            if at_end or stopped_by or overdue:
                self._save()
                last_save = time.monotonic()
            if at_end and self._has_on_epoch:
                self._call_on_epoch(epochs)

    def _advance(self, steps: int) -> None:
        newest = self._program.run_steps(self._states.newest, steps)
        self._states = self._states._replace(newest=newest)
        self._fetched = self._program.fetch(newest)
        self.step = int(self._fetched.step[0])

    def _show(self, seconds_per_step: float) -> None:
        """Shows the progress, and notes which members have diverged."""
        sums, before = self._fetched.epoch_sums, (self.step - 1) // self._steps_per_epoch * self._steps_per_epoch
        for place, first_bad_step in enumerate(self._fetched.first_bad_step.tolist()):
            member = self.members[place]
            ended = self._folder.is_sweep and has_ended(self._config, before, member, self._steps_per_epoch)
            if first_bad_step >= 0 and not ended:
                self._mark_diverged(place, first_bad_step)
        losses = (sums.loss / sums.steps)[np.isfinite(sums.loss)]
        rate = len(self.members) * self._config.batch_size / seconds_per_step
        self._display.advance(self.step, float(losses.mean()) if losses.size else math.nan, rate)
        self._checkpoints.raise_failure()

    def _end_epoch(self) -> list[EpochMetrics]:
        """Evaluates the members, prints and writes their metrics, and notes which have improved."""
        evaluations = self._program.evaluate(self._states.newest.trained)
        validations, tests = evaluations["validation"], evaluations["test"]
        better, before = np.zeros(len(self.members), bool), self.step - self._steps_per_epoch
        # Of the last step, as a fraction of the peak: the schedule is the same for all members.
        rate_at = schedule(self._config.optimizer, self._steps_per_epoch, self._config.epochs)
        self._rate = float(rate_at(self.step - 1))
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
        self._states = self._program.choose(better, self._states)
        if self._writer is not None:
            self._writer.write(epochs)
        for line in epoch_lines(epochs, self._folder, self._config.epochs, self._epoch_seconds):
            self._display.say(line)
        return epochs

    def _call_on_epoch(self, epochs: Sequence[EpochMetrics]) -> None:
        """Calls the user's function in process 0. Raises RunError in all processes where it failed."""
        failure: Exception | None = None
        if self._on_epoch is not None and processes.is_first():
            try:
                for metrics in epochs:
                    own = self._folder.path / str(metrics.member) if self._folder.is_sweep else self._folder.path
                    self._on_epoch(metrics, own)
            except Exception as error:
                failure = error
        # The other processes have to stop as well: they would wait for the first one for ever.
        if not processes.gather(np.array(failure is not None))[0]:
            return
        self._checkpoints.wait()
        command = "sweep" if self._folder.is_sweep else "train"
        reason = f" with {type(failure).__name__}: {failure}" if failure is not None else " in process 0"
        raise RunError(
            f"on_epoch failed{reason}, after epoch {epochs[0].epoch}. The run has stopped, and everything up to this "
            f"epoch is saved in {self._folder.path}: continue with {command}(..., resume=True), or "
            f"lstm-mnist {command} --resume {self._folder.path}"
        ) from failure

    def _save(self) -> None:
        at_end = self.step % self._steps_per_epoch == 0
        members = (member if at_end else replace(member, score=None) for member in self.members)
        record = Record(self.step, self._program.places, self._epoch_seconds, tuple(members))
        self._checkpoints.wait()  # else three copies would be in memory
        # A copy: the next steps reuse the memory of the original while it is written.
        self._checkpoints.save(copy_of(self._states), record)

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
            "the other runs go on"
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
        sums = self._fetched.epoch_sums
        steps = int(sums.steps[place])
        examples = steps * self._config.batch_size
        diverged = self.members[place].diverged_at is not None
        metrics = EpochMetrics(
            member=self._numbers[place],
            epoch=-(-self.step // self._steps_per_epoch),
            step=self.step,
            train_loss=float(sums.loss[place]) / steps,
            train_accuracy=int(sums.correct[place]) / examples,
            gradient_norm=float(sums.gradient_norm[place]) / steps,
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


def is_complete(config: Config, step: int, members: Sequence[MemberStatus], steps_per_epoch: int) -> bool:
    """Whether there is nothing more to train in a group: the last epoch is done, or all members have ended."""
    ended = (has_ended(config, step, member, steps_per_epoch) for member in members)
    return step >= config.epochs * steps_per_epoch or all(ended)


def has_ended(config: Config, step: int, member: MemberStatus, steps_per_epoch: int) -> bool:
    """Whether a member is not trained on: it diverged, or stopped early."""
    return member.diverged_at is not None or is_stale(config, step, member.best_step, steps_per_epoch)


def is_stale(config: Config, step: int, best_step: int | None, steps_per_epoch: int) -> bool:
    """Whether validation has not improved since `best_step` for as many epochs as early stopping waits."""
    patience = config.early_stopping_patience
    if patience is None or best_step is None or step % steps_per_epoch:  # within an epoch, chunks would decide
        return False
    return step // steps_per_epoch - best_step // steps_per_epoch >= patience


def noted_signal(stop: StopRequest) -> signal.Signals | None:
    """The signal that any of the processes got, if one did. All processes must call this."""
    number = int(processes.gather(np.array(stop.signal or 0, np.int32)).max())
    return signal.Signals(number) if number else None


def refuse_fewer_epochs(folder: RunFolder, epochs: int, step: int, steps_per_epoch: int) -> None:
    """Raises ConfigError where a run is to have fewer epochs than it was trained for."""
    if step > epochs * steps_per_epoch:
        done = -(-step // steps_per_epoch)
        raise ConfigError(
            f"epochs is {epochs}, but {folder.path} was trained for {done} already. Use --epochs {done} or more."
        )


def newest_sound_step(directory: Path, console: Console) -> int | None:
    """The step of the checkpoint to resume from, in all processes; None is the start. Sets later ones aside."""
    step = None
    if processes.is_first():
        step = checkpoint.newest_sound_step(directory)
        for line in checkpoint.set_aside(directory, newer_than=-1 if step is None else step):
            say(console, line)
    found = int(processes.gather(np.array(-1 if step is None else step))[0])
    return None if found < 0 else found


def epoch_lines(metrics: list[EpochMetrics], folder: RunFolder, epochs: int, seconds: float) -> list[str]:
    """What is printed of an epoch: of the best setting on validation, means over its seeds with 95 % confidence
    intervals. A run takes one line, several take two."""
    by_setting: dict[str, list[EpochMetrics]] = {}
    for each in metrics:
        if not each.diverged:
            by_setting.setdefault(describe(folder.members[each.member].setting), []).append(each)
    start = f"epoch {metrics[0].epoch:{len(str(epochs))}d}/{epochs}  "
    end = f"{seconds:.1f} s  {metrics[0].examples_per_second:,.0f} images/s"
    if not by_setting:
        return [f"{start}all have diverged  {end}"]

    def mean_score(setting: str) -> float:
        return float(np.mean([score_of(folder.config, each) for each in by_setting[setting]]))

    best = max(by_setting, key=mean_score)
    loss = mean_of([each.train_loss for each in by_setting[best]])
    spread = "" if math.isnan(loss.half_width) else f" ± {loss.half_width:.4f}"
    accuracies = "  ".join(
        f"{split} {percent(mean_of([getattr(each, f'{split}_accuracy') for each in by_setting[best]])):>6}"
        for split in ("validation", "test")
    )
    found = f"{start}loss {loss_in_words(loss.mean)}{spread}  {accuracies}"
    if not folder.is_sweep:
        return [f"{found}  {end}"]
    chosen = f"best of {len(by_setting)}: {best}  " if len(by_setting) > 1 else ""
    return [found, f"  {chosen}{end}"]
