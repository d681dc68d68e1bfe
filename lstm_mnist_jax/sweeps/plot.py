"""The picture of a sweep: how accuracy grew, and the settings by rank, with 95 % confidence intervals."""

from typing import Any

import numpy as np

from lstm_mnist_jax.config.space import describe
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.statistics import Mean, mean_of
from lstm_mnist_jax.sweeps.results import MemberResult, SettingResult, setting_results
from lstm_mnist_jax.training.metrics import read_metrics
from lstm_mnist_jax.training.run_folder import RunFolder

CURVES = 5
"""Settings whose curves are drawn: the best on validation."""

RANKS = 24
"""Settings that are drawn by rank."""


def plot(folder: RunFolder, members: list[MemberResult]) -> None:
    """Draws results.png.

    Raises:
      RunError: it cannot be written.
    """
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
    """What an axis shows: all accuracies, however wide the intervals of few seeds."""
    margin = max(0.1, 0.1 * (max(accuracies) - min(accuracies)))
    return max(0.0, min(accuracies) - margin), min(100.0, max(accuracies) + margin)
