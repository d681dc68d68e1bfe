"""The results of a sweep, by run and by setting over its seeds, ranked on validation: table and CSV."""

import csv
import functools
import io
import math
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.config.space import Setting, show
from lstm_mnist_jax.errors import RunError, os_errors_as
from lstm_mnist_jax.statistics import Mean, mean_of, percent
from lstm_mnist_jax.training.loop import is_stale
from lstm_mnist_jax.training.metrics import EpochMetrics, read_metrics, score_of
from lstm_mnist_jax.training.run_folder import RunFolder, write_atomically

MAX_ROWS = 40
"""Rows of a table on the terminal; results.csv has all."""


@dataclass(frozen=True)
class MemberResult:
    """The result of one run.

    Attributes:
      member, seed, setting: its number, its seed, and the fields of the config that the sweep set.
      history: the metrics of its epochs, up to where it diverged.
      best: those of the best epoch on validation, the earliest of equals; None before the first ends.
      score: its score, see `metrics.score`; minus infinity without an epoch.
      diverged: whether its loss was not finite in the end.
    """

    member: int
    seed: int
    setting: Setting
    history: tuple[EpochMetrics, ...]
    best: EpochMetrics | None
    score: float
    diverged: bool

    @property
    def epochs(self) -> int:
        """The number of epochs it was trained for, up to where it diverged."""
        return len(self.history)

    @property
    def best_epoch(self) -> int | None:
        """The number of the best epoch."""
        return None if self.best is None else self.best.epoch

    @property
    def last(self) -> EpochMetrics | None:
        """The metrics of the last epoch."""
        return self.history[-1] if self.history else None


@dataclass(frozen=True)
class SettingResult:
    """The result of one setting, over its seeds that did not diverge, each at its best epoch on validation.

    Attributes:
      setting: the fields of the config that the sweep set.
      members: its runs.
      score: the mean of their scores; minus infinity where there is none.
      validation: mean accuracy on validation, 0 to 1, with its 95 % confidence interval.
      test: mean accuracy on test, 0 to 1, with its 95 % confidence interval.
      diverged: the number of runs that diverged.
    """

    setting: Setting
    members: tuple[MemberResult, ...]
    score: float
    validation: Mean
    test: Mean
    diverged: int


def member_results(folder: RunFolder) -> list[MemberResult]:
    """The results in metrics.jsonl of all runs of a sweep, of the one that `folder` names, or of a single run."""
    by_member: dict[int, dict[int, EpochMetrics]] = {}
    for metrics in read_metrics(folder.metrics):
        by_member.setdefault(metrics.member, {})[metrics.epoch] = metrics
    results = []
    for number, member in enumerate(folder.members):
        if folder.member not in (None, number):
            continue
        epochs = by_member.get(number, {})
        history = tuple(epochs[epoch] for epoch in sorted(epochs) if not epochs[epoch].diverged)
        best = max(history, key=functools.partial(score_of, folder.config), default=None)
        score = -math.inf if best is None else score_of(folder.config, best)
        diverged = len(history) < len(epochs)
        results.append(MemberResult(number, member.seed, member.setting, history, best, score, diverged))
    return results


def is_done(config: Config, result: MemberResult) -> bool:
    """Whether a run is complete, stopped early, or diverged."""
    stopped = is_stale(config, result.epochs, result.best_epoch, steps_per_epoch=1)
    return result.diverged or stopped or result.epochs == config.epochs


def setting_results(members: list[MemberResult]) -> list[SettingResult]:
    """The result of every setting, the best on validation first. Runs that diverged do not enter the means."""
    by_setting: dict[str, list[MemberResult]] = {}
    for member in members:
        by_setting.setdefault(repr(member.setting), []).append(member)
    results = []
    for group in by_setting.values():
        sound = [member for member in group if not member.diverged]
        scores = [member.score for member in sound if member.best is not None]
        results.append(
            SettingResult(
                setting=group[0].setting,
                members=tuple(group),
                score=float(np.mean(scores)) if scores else -math.inf,
                validation=_mean(sound, "validation_accuracy"),
                test=_mean(sound, "test_accuracy"),
                diverged=sum(member.diverged for member in group),
            )
        )
    # Settings with runs that diverged come after those without.
    return sorted(results, key=lambda result: (result.diverged > 0, -result.score))


def _mean(members: list[MemberResult], name: str) -> Mean:
    return mean_of([getattr(member.best, name) for member in members if member.best is not None])


def best_member(members: list[MemberResult]) -> int | None:
    """The best run on validation, the earliest of equals; None before the first epoch of any ends."""
    best = max((m for m in members if m.best is not None), key=lambda member: member.score, default=None)
    return None if best is None else best.member


def table(config: Config, members: list[MemberResult]) -> Table:
    """The results on the terminal: of each setting, or where there is one, of each seed."""
    settings, losses = setting_results(members), ["validation loss"] * (config.selection_metric == "loss")
    if len(settings) > 1:
        diverged = ["diverged"] * any(result.diverged for result in settings)
        names = [*settings[0].setting, "seeds", *losses, "validation", "test", *diverged]
        rows = [
            [
                *map(show, result.setting.values()),
                str(len(result.members)),
                *[_loss(result.score) for _ in losses],
                percent(result.validation),
                percent(result.test),
                *[str(result.diverged) for _ in diverged],
            ]
            for result in settings
        ]
    else:
        names = ["seed", "best epoch", *losses, "validation", "test", "test, last epoch"]
        rows = []
        for member in members:
            epoch, *accuracies = _cells(member)
            rows.append([str(member.seed), epoch, *[_loss(member.score) for _ in losses], *accuracies])
    found = Table()
    for name in names:
        found.add_column(name, justify="right", no_wrap=True)
    for row in rows[:MAX_ROWS]:
        found.add_row(*row)
    if len(rows) > MAX_ROWS:
        found.add_row(f"... {len(rows) - MAX_ROWS} more, in results.csv")
    if len(settings) == 1 and len(members) > 1:
        last = mean_of([m.last.test_accuracy for m in members if m.last is not None and not m.diverged])
        means = [percent(mean) for mean in (settings[0].validation, settings[0].test, last)]
        found.add_section()
        found.add_row("mean", "", *[_loss(settings[0].score) for _ in losses], *means)
    return found


def _loss(score: float) -> str:
    return "-" if math.isinf(score) else f"{-score:.4f}"


def _cells(member: MemberResult) -> tuple[str, ...]:
    if member.best is None or member.last is None:
        return "-", "diverged" if member.diverged else "-", "-", "-"
    last = "diverged" if member.diverged else f"{member.last.test_accuracy:.2%}"
    return str(member.best_epoch), f"{member.best.validation_accuracy:.2%}", f"{member.best.test_accuracy:.2%}", last


def write_csv(folder: RunFolder, members: list[MemberResult]) -> None:
    """Writes results.csv, a row for each run. Raises RunError where it cannot be written."""
    assert folder.space is not None
    text = io.StringIO()
    measures = ("validation_loss", "validation_accuracy", "test_accuracy")
    writer = csv.writer(text, lineterminator="\n")
    known = ("epochs", "diverged", "best_epoch")
    lasting = (f"last_{name}" for name in measures)
    writer.writerow(["member", *folder.space.names, "seed", "group", *known, *measures, *lasting])
    for member in members:
        which = (member.member, *map(show, member.setting.values()), member.seed, folder.group_of(member.member))
        values = [
            None if metrics is None else getattr(metrics, name)
            for metrics in (member.best, member.last)
            for name in measures
        ]
        writer.writerow([*which, member.epochs, int(member.diverged), member.best_epoch, *values])
    with os_errors_as(RunError, folder.path, "written to"):
        write_atomically(folder.path / "results.csv", text.getvalue())
