"""The results of a sweep, by run and by setting over its seeds, ranked on validation: table, CSV and figure."""

import csv
import functools
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.config.space import Setting, describe, show
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.statistics import Mean, mean_of, percent
from lstm_mnist_jax.training.metrics import EpochMetrics, read_metrics, score_of
from lstm_mnist_jax.training.run_folder import RunFolder, write_atomically

MAX_ROWS = 40
"""Rows of a table on the terminal; results.csv has all."""

CURVES = 5
"""Settings whose curves are drawn: the best on validation."""

RANKS = 24
"""Settings that are drawn by rank."""


@dataclass(frozen=True)
class MemberResult:
    """The result of one run.

    Attributes:
      member, seed, setting: its number, its seed, and the fields of the config that the sweep set.
      epochs: the number of epochs it was trained for, up to where it diverged.
      best_epoch: the best epoch on validation, the earliest of equals; None before the first ends.
      best: the metrics of that epoch.
      score: its score, see `metrics.score`; minus infinity without an epoch.
      last: the metrics of the last epoch.
      diverged: whether its loss was not finite in the end.
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
        sound = {epoch: metrics for epoch, metrics in epochs.items() if not metrics.diverged}
        best = max(sound.values(), key=functools.partial(score_of, folder.config), default=None)
        results.append(
            MemberResult(
                member=number,
                seed=member.seed,
                setting=member.setting,
                epochs=len(sound),
                best_epoch=None if best is None else best.epoch,
                best=best,
                score=-math.inf if best is None else score_of(folder.config, best),
                last=sound[max(sound)] if sound else None,
                diverged=len(sound) < len(epochs),
            )
        )
    return results


def is_done(config: Config, result: MemberResult) -> bool:
    """Whether a run is complete, stopped early, or diverged."""
    patience, best = config.early_stopping_patience, result.best_epoch
    stopped = patience is not None and best is not None and result.epochs - best >= patience
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
    try:
        write_atomically(folder.path / "results.csv", text.getvalue())
    except OSError as error:
        raise RunError(f"{folder.path} cannot be written to: {error.strerror or error}.") from error


def plot(folder: RunFolder, members: list[MemberResult]) -> None:
    """Draws results.png. Raises RunError where it cannot be written."""
    settings = [result for result in setting_results(members) if result.validation.count]
    if not settings:
        return
    from matplotlib.figure import Figure  # half a second, only for those who use it

    ranked = settings[:RANKS]
    figure = Figure(figsize=(12, max(4.5, 1.5 + 0.3 * len(ranked))), layout="constrained")
    curves, ranks = figure.subplots(1, 2)
    _draw_curves(curves, folder, settings[:CURVES], len(settings))
    _draw_ranks(ranks, ranked, len(settings), folder.config.selection_metric)
    try:
        figure.savefig(folder.path / "results.png", dpi=120)
    except OSError as error:
        raise RunError(f"{folder.path} cannot be written to: {error.strerror or error}.") from error


def _draw_curves(axes: Any, folder: RunFolder, settings: list[SettingResult], count: int) -> None:
    from matplotlib.ticker import MaxNLocator

    accuracies: dict[int, dict[int, float]] = {}
    for metrics in read_metrics(folder.metrics):
        if not metrics.diverged:
            accuracies.setdefault(metrics.member, {})[metrics.epoch] = metrics.validation_accuracy
    for result in settings:
        of_setting = [accuracies.get(member.member, {}) for member in result.members]
        epochs = sorted(set().union(*of_setting))
        means = [mean_of([known[epoch] for known in of_setting if epoch in known]) for epoch in epochs]
        center = 100 * np.array([mean.mean for mean in means])
        half_width = 100 * np.nan_to_num([mean.half_width for mean in means])
        label = describe(result.setting) or f"{len(result.members)} seeds"
        if len(epochs) == 1:
            axes.errorbar(epochs, center, yerr=half_width, fmt="o", capsize=3, label=label)
            continue
        (line,) = axes.plot(epochs, center, marker=".", label=label)
        axes.fill_between(epochs, center - half_width, center + half_width, color=line.get_color(), alpha=0.15, lw=0)
    shown = [100 * accuracy for r in settings for m in r.members for accuracy in accuracies.get(m.member, {}).values()]
    which = "" if len(settings) == count else f"the best {len(settings)} of {count} settings"
    seeds = "mean over seeds, 95 % confidence interval" if max(len(r.members) for r in settings) > 1 else ""
    axes.set(xlabel="epoch", ylabel="validation accuracy, %", title=", ".join(filter(None, (which, seeds))))
    axes.set_ylim(_range(shown))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")


def _draw_ranks(axes: Any, settings: list[SettingResult], count: int, selection_metric: str) -> None:
    rows, shown = np.arange(len(settings)), []
    for name, shift, marker in (("validation", -0.12, "o"), ("test", 0.12, "s")):
        means: list[Mean] = [getattr(result, name) for result in settings]
        half_widths = 100 * np.nan_to_num([mean.half_width for mean in means])
        centers = [100 * mean.mean for mean in means]
        points = axes.errorbar(centers, rows + shift, xerr=half_widths, fmt=marker, capsize=3, label=name)
        for row, result in enumerate(settings):
            seeds = [100 * getattr(m.best, f"{name}_accuracy") for m in result.members if m.best and not m.diverged]
            shown += seeds
            axes.plot(seeds, [row + shift] * len(seeds), "|", color=points[0].get_color(), alpha=0.5)
    axes.set_yticks(rows, [describe(result.setting) or "all seeds" for result in settings], fontsize="small")
    axes.set_ylim(len(settings) - 0.5, -0.5)
    which = f"the best {len(settings)} of {count} settings" if count > len(settings) else "the settings"
    order = "validation" if selection_metric == "accuracy" else "the loss on validation"
    axes.set(xlabel="accuracy, %", title=f"{which}, in the order of {order}", xlim=_range(shown))
    axes.plot([], [], "k|", alpha=0.5, label="each seed")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize="small")


def _range(accuracies: list[float]) -> tuple[float, float]:
    """The limits of an axis: all accuracies, but not the whole of a wide confidence interval."""
    margin = max(0.1, 0.1 * (max(accuracies) - min(accuracies)))
    return max(0.0, min(accuracies) - margin), min(100.0, max(accuracies) + margin)
