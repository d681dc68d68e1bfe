"""What came of a sweep: member by member, and setting by setting over its seeds. The order is validation's alone."""

import csv
import functools
import io
import math
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.config.space import Setting, show
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.statistics import Mean, mean_of, percent
from lstm_mnist_jax.training import selection
from lstm_mnist_jax.training.metrics import EpochMetrics, read_metrics
from lstm_mnist_jax.training.run_folder import RunFolder, write_atomically

MAX_ROWS = 40
"""Rows of a table on the terminal; results.csv has all."""


@dataclass(frozen=True)
class MemberResult:
    """What came of one training.

    Attributes:
      member, seed, setting: which it is.
      epochs: how many it was trained for, up to where it diverged.
      best_epoch: the epoch that is the best on validation, the earliest of equals; None before the first ends.
      best: what is known of the member after that epoch.
      score: how good that was, see `selection.score`; minus infinity where nothing is known.
      last: after the last one.
      diverged: whether its loss was not finite any more in the end.
    """

    member: int
    seed: int
    setting: Setting
    epochs: int
    best_epoch: int | None
    best: EpochMetrics | None
    score: float
    last: EpochMetrics | None
    diverged: bool


@dataclass(frozen=True)
class SettingResult:
    """What came of one setting, over its seeds that did not diverge, each at its best epoch on validation.

    Attributes:
      setting: which it is.
      members: its trainings.
      score: the mean of their scores; minus infinity where there is none.
      validation, test: mean accuracy, 0 to 1, with its 95 % confidence interval.
      diverged: how many runs diverged.
    """

    setting: Setting
    members: tuple[MemberResult, ...]
    score: float
    validation: Mean
    test: Mean
    diverged: int


def member_results(folder: RunFolder) -> list[MemberResult]:
    """What came of every member of a sweep, of one of its members, or of the one run, as metrics.jsonl has it."""
    by_member: dict[int, dict[int, EpochMetrics]] = {}
    for metrics in read_metrics(folder.metrics):
        by_member.setdefault(metrics.member, {})[metrics.epoch] = metrics
    results = []
    for number, member in enumerate(folder.members):
        if folder.member not in (None, number):
            continue
        epochs = by_member.get(number, {})
        sound = {epoch: metrics for epoch, metrics in epochs.items() if not metrics.diverged}
        score_of = functools.partial(selection.score_of, folder.config)
        best_epoch, best = max(sound.items(), key=lambda known: score_of(known[1]), default=(None, None))
        results.append(
            MemberResult(
                member=number,
                seed=member.seed,
                setting=member.setting,
                epochs=len(sound),
                best_epoch=best_epoch,
                best=best,
                score=-math.inf if best is None else score_of(best),
                last=sound[max(sound)] if sound else None,
                diverged=len(sound) < len(epochs),
            )
        )
    return results


def is_done(config: Config, result: MemberResult) -> bool:
    """Whether a training ran all its epochs, stopped early, or diverged."""
    patience, best = config.early_stopping_patience, result.best_epoch
    stopped = patience is not None and best is not None and result.epochs - best >= patience
    return result.diverged or stopped or result.epochs == config.epochs


def setting_results(members: list[MemberResult]) -> list[SettingResult]:
    """What came of every setting, the best on validation first. Members that diverged count against none."""
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
    # A setting with runs that diverged stands behind those without, however good the others were.
    return sorted(results, key=lambda result: (result.diverged > 0, -result.score))


def _mean(members: list[MemberResult], name: str) -> Mean:
    return mean_of([getattr(member.best, name) for member in members if member.best is not None])


def best_member(members: list[MemberResult]) -> int | None:
    """The member that is the best on validation, the earliest of equals; None where nothing is known of any."""
    known = [member for member in members if member.best is not None]
    best = max(known, key=lambda member: member.score, default=None)
    return None if best is None else best.member


def table(config: Config, members: list[MemberResult]) -> Table:
    """The results for people: of each setting, or where there is one, of each seed. A loss that decides is shown."""
    by_loss = config.selection_metric == "loss"
    settings = setting_results(members)
    found = Table()
    if len(settings) > 1:
        for name in settings[0].setting:
            found.add_column(name, justify="right", no_wrap=True)
        diverged = any(result.diverged for result in settings)
        for name in ("seeds", *["validation loss"] * by_loss, "validation", "test", *["diverged"] * diverged):
            found.add_column(name, justify="right", no_wrap=True)
        for result in settings[:MAX_ROWS]:
            values = [show(value) for value in result.setting.values()]
            values += [str(len(result.members)), *[_loss(result.score)] * by_loss]
            values += [percent(result.validation), percent(result.test)]
            found.add_row(*values, *[str(result.diverged)] * diverged)
        _elide(found, len(settings))
        return found
    for name in ("seed", "best epoch", *["validation loss"] * by_loss, "validation", "test", "test, last epoch"):
        found.add_column(name, justify="right", no_wrap=True)
    for member in members[:MAX_ROWS]:
        epoch, *accuracies = _cells(member)
        found.add_row(str(member.seed), epoch, *[_loss(member.score)] * by_loss, *accuracies)
    _elide(found, len(members))
    if len(members) > 1:
        sound = [member for member in members if not member.diverged and member.last is not None]
        last = mean_of([member.last.test_accuracy for member in sound if member.last is not None])
        found.add_section()
        losses = [_loss(settings[0].score)] * by_loss
        found.add_row("mean", "", *losses, percent(settings[0].validation), percent(settings[0].test), percent(last))
    return found


def _loss(score: float) -> str:
    return "-" if math.isinf(score) else f"{-score:.4f}"


def _cells(member: MemberResult) -> tuple[str, ...]:
    if member.best is None or member.last is None:
        return "-", "diverged" if member.diverged else "-", "-", "-"
    last = "diverged" if member.diverged else f"{member.last.test_accuracy:.2%}"
    return str(member.best_epoch), f"{member.best.validation_accuracy:.2%}", f"{member.best.test_accuracy:.2%}", last


def _elide(table: Table, rows: int) -> None:
    if rows > MAX_ROWS:
        table.add_row(f"... {rows - MAX_ROWS} more, in results.csv")


def write_csv(folder: RunFolder, members: list[MemberResult]) -> None:
    """Writes results.csv, a row a member.

    Raises:
      RunError: it cannot be written.
    """
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
    try:
        write_atomically(folder.path / "results.csv", text.getvalue())
    except OSError as error:
        raise RunError(f"{folder.path} cannot be written to: {error.strerror or error}.") from error
