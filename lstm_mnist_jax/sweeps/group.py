"""One group of a population: the trainings that share a program, as the loop drives them."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.reporting.progress import ProgressDisplay, say
from lstm_mnist_jax.reporting.statistics import Mean, mean_of, percent
from lstm_mnist_jax.sweeps.folder import PopulationFolder
from lstm_mnist_jax.sweeps.metrics import GroupMetrics, GroupMetricsWriter, MemberMetrics
from lstm_mnist_jax.sweeps.space import describe
from lstm_mnist_jax.training import checkpoint
from lstm_mnist_jax.training.checkpoint import Checkpoints
from lstm_mnist_jax.training.evaluation import Evaluation
from lstm_mnist_jax.training.loop import Course, is_stale
from lstm_mnist_jax.training.program import Stages, TrainingProgram
from lstm_mnist_jax.training.selection import score, score_of


@dataclass(frozen=True)
class Standing:
    """Where a member stood when a checkpoint was saved.

    Attributes:
      score: how good this very state is on validation, see `selection.score`; None where it was not evaluated.
      best_step, best_score: of its best epoch so far, if any.
      diverged_at: the first step whose loss or gradient was not finite, if any.
    """

    score: float | None = None
    best_step: int | None = None
    best_score: float | None = None
    diverged_at: int | None = None


@dataclass(frozen=True)
class GroupRecord:
    """Where a group stood when a checkpoint was saved.

    Attributes:
      step: how many steps were made.
      places: how many states were saved, one behind the other: those of the members, the last one perhaps again.
      epoch_seconds: seconds that the epoch so far was trained for.
      members: where each member stood.
    """

    step: int
    places: int
    epoch_seconds: float
    members: tuple[Standing, ...]

    @property
    def best_step(self) -> None:
        """No earlier checkpoint is kept: each holds its members' best as well."""


class GroupCourse(Course):
    """A group, as the loop drives it."""

    def __init__(
        self,
        folder: PopulationFolder,
        group: int,
        population: TrainingProgram,
        stages: Stages,
        record: GroupRecord,
        checkpoints: Checkpoints,
        writer: GroupMetricsWriter | None,
        display: ProgressDisplay,
    ) -> None:
        self.config, self.steps_per_epoch = population.configs[0], population.steps_per_epoch
        self.step, self.epoch_seconds = record.step, record.epoch_seconds
        self._folder, self._group, self._members = folder, group, folder.groups[group]
        self._population, self._stages, self._standings = population, stages, list(record.members)
        self._checkpoints, self._writer, self._display = checkpoints, writer, display

    @property
    def is_complete(self) -> bool:
        ended = (has_ended(self.config, self.step, standing, self.steps_per_epoch) for standing in self._standings)
        return super().is_complete or all(ended)

    def advance(self, steps: int) -> None:
        newest = self._population.run_steps(self._stages.newest, steps)
        self._stages = self._stages._replace(newest=newest)
        self._seen = self._population.summarize(newest)
        self.step = self._seen.step

    def show(self, seconds_per_step: float) -> None:
        seen = self._seen
        for number, first_bad_step in enumerate(seen.first_bad_step.tolist()):
            before = (self.step - 1) // self.steps_per_epoch * self.steps_per_epoch
            standing = self._standings[number]
            if first_bad_step >= 0 and not has_ended(self.config, before, standing, self.steps_per_epoch):
                self._mark_diverged(number, first_bad_step)
        losses = seen.loss[np.isfinite(seen.loss)] / seen.epoch_steps
        rate = len(self._members) * self.config.batch_size / seconds_per_step
        self._display.advance(self.step, float(losses.mean()) if losses.size else math.nan, rate)
        self._checkpoints.raise_failure()

    def end_epoch(self) -> None:
        params = self._stages.newest.trained
        validations, tests = (self._population.evaluate(split, params) for split in ("validation", "test"))
        better = np.zeros(len(self._members), bool)
        before = self.step - self.steps_per_epoch
        stopped = [is_stale(self.config, before, s.best_step, self.steps_per_epoch) for s in self._standings]
        for number, validation in enumerate(validations):
            if stopped[number]:
                self._standings[number] = replace(self._standings[number], score=None)
                continue
            if not math.isfinite(validation.loss):
                self._mark_diverged(number, self.step - 1)
            standing = self._standings[number]
            if standing.diverged_at is not None:
                continue
            value = score(self.config, validation.loss, validation.accuracy)
            better[number] = standing.best_score is None or value > standing.best_score
            if better[number]:
                standing = replace(standing, best_step=self.step, best_score=value)
            self._standings[number] = replace(standing, score=value)
        self._stages = self._population.choose(better, self._stages)
        metrics = self._metrics(validations, tests, stopped)
        if self._writer is not None:
            self._writer.write(metrics)
        self._display.say(epoch_line(metrics, self._folder, self.config.epochs))

    def save(self) -> None:
        at_end = self.step % self.steps_per_epoch == 0
        standings = (s if at_end else replace(s, score=None) for s in self._standings)
        record = GroupRecord(self.step, self._population.places, self.epoch_seconds, tuple(standings))
        # A copy: the training goes on in the memory of the original while it is written.
        self._checkpoints.save(jax.tree.map(jnp.copy, self._stages), record)

    def _mark_diverged(self, number: int, step: int) -> None:
        standing = self._standings[number]
        if standing.diverged_at is None:
            self._standings[number] = replace(standing, score=None, diverged_at=step)
            member = self._folder.members[self._members[number]]
            setting = f" ({describe(member.setting)})" if member.setting else ""
            self._display.say(
                f"seed {member.seed}{setting}: the loss or its gradient is not a finite number any more at step "
                f"{step:,}; the others go on"
            )

    def _metrics(self, validations: list[Evaluation], tests: list[Evaluation], stopped: list[bool]) -> GroupMetrics:
        seen, examples = self._seen, self._seen.epoch_steps * self.config.batch_size
        members = []
        for number, member in enumerate(self._members):
            if stopped[number]:
                continue
            values: tuple[float | None, ...] = (
                float(seen.loss[number]) / seen.epoch_steps,
                int(seen.correct[number]) / examples,
                float(seen.gradient_norm[number]) / seen.epoch_steps,
                validations[number].loss,
                validations[number].accuracy,
                tests[number].loss,
                tests[number].accuracy,
            )
            if self._standings[number].diverged_at is not None:
                values = (None,) * len(values)
            members.append(MemberMetrics(member, self._folder.members[member].seed, *values))
        return GroupMetrics(
            group=self._group,
            epoch=-(-self.step // self.steps_per_epoch),
            step=self.step,
            seconds=self.epoch_seconds,
            examples_per_second=len(self._members) * examples / self.epoch_seconds,
            members=tuple(members),
        )


def has_ended(config: Config, step: int, standing: Standing, steps_per_epoch: int) -> bool:
    """Whether a member is not trained on: it diverged, or would have stopped early by itself."""
    return standing.diverged_at is not None or is_stale(config, step, standing.best_step, steps_per_epoch)


def epoch_line(metrics: GroupMetrics, folder: PopulationFolder, epochs: int) -> str:
    """An epoch for people: means with their 95 % intervals, of the setting that is the best on validation so far."""
    by_setting: dict[str, list[MemberMetrics]] = {}
    for member in metrics.members:
        if not member.diverged:
            by_setting.setdefault(describe(folder.members[member.member].setting), []).append(member)
    start = f"epoch {metrics.epoch:{len(str(epochs))}d}/{epochs}  "
    end = f"{metrics.seconds:.1f} s  {metrics.examples_per_second:,.0f} examples/s"
    if not by_setting:
        return f"{start}all have diverged  {end}"

    def mean(members: list[MemberMetrics], name: str) -> Mean:
        return mean_of([getattr(member, name) for member in members])

    def mean_score(setting: str) -> float:
        return float(np.mean([score_of(folder.config, member) for member in by_setting[setting]]))

    best = max(by_setting, key=mean_score)
    members = by_setting[best]
    loss = mean_of([member.train_loss or 0.0 for member in members])
    spread = "" if math.isnan(loss.half_width) else f" ± {loss.half_width:.4f}"
    accuracies = "  ".join(f"{split} {percent(mean(members, f'{split}_accuracy'))}" for split in ("validation", "test"))
    chosen = f"best of {len(by_setting)}: {best}  " if len(by_setting) > 1 else ""
    return f"{start}{chosen}loss {loss.mean:.4f}{spread}  {accuracies}  {end}"


def read_group(directory: Path, step: int, population: TrainingProgram, console: Console) -> tuple[Stages, GroupRecord]:
    """The stages and the record of a group's checkpoint."""
    path = checkpoint.checkpoint_path(directory, step)
    record = checkpoint.read_record(path, GroupRecord)
    epochs, total = step // population.steps_per_epoch, population.configs[0].epochs
    say(console, f"resumed at step {step:,}: {epochs} of {total} epochs are done")
    state = population.abstract_saved(record.places)
    saved = checkpoint.load_state(path, Stages(state, state))
    return population.from_saved(saved), record
