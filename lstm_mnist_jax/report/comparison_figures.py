"""Runs and settings side by side, as pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstm_mnist_jax.report.comparison import SPLITS, Entry
from lstm_mnist_jax.report.style import (
    BLUE,
    INK,
    VERMILION,
    WIDTH,
    Picture,
    epoch_axis,
    error_axis,
    marker,
    series_style,
    settled,
    shown,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = 5
"""Entries whose curves are drawn: the best."""

RANKS = 24
"""Entries whose accuracies are drawn."""


def comparison_pictures(entries: Sequence[Entry]) -> list[Picture]:
    """The pictures of a comparison; none where no entry has finished an epoch.

    Args:
      entries: of `read_entries`.
    """
    known = [entry for entry in entries if entry.best_epochs]
    if not known:
        return []
    best, drawn = known[0], known[:RANKS]
    parts = "; ".join(
        f"{entry.label}: validation {entry.result('validation')}, test {entry.result('test')}" for entry in drawn
    )
    of = f"The best {len(drawn)} of {len(known)}" if len(drawn) < len(known) else "All"
    kinds = "Intervals are binomial for a single training and Student's t for a mean over seeds."
    return [
        Picture(
            "comparison",
            "Where they ended",
            f"{of}, each run at its best epoch on validation, in percent with 95 % confidence intervals: {parts}. "
            f"{kinds} The validation accuracy is biased upwards, since validation chose the epoch.",
            draw_accuracies(known),
        ),
        Picture(
            "comparison-curves",
            "How they learned",
            f"Validation accuracy after each epoch of {'all' if len(known) <= CURVES else f'the best {CURVES}'}, with "
            f"95 % confidence intervals. The best, {best.label}, reaches {best.result('validation')}. {kinds}",
            draw_curves(known),
        ),
    ]


def draw_curves(entries: Sequence[Entry]) -> "Figure":
    """Validation accuracy over the epochs, with 95 % confidence intervals, of the best entries.

    Args:
      entries: the best first, those of them with an epoch.
    """
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        axes, seen = figure.subplots(), []
        for number, entry in enumerate(entries[:CURVES]):
            along = entry.along("validation")
            errors = 100 * (1 - np.array([estimate.value for estimate in along]))
            style = series_style(number)
            axes.plot(entry.epochs, errors, label=shown(entry.label, 60), **style, **marker(entry.epochs))
            ends = np.array([[100 * (1 - estimate.low), 100 * (1 - estimate.high)] for estimate in along]).T
            axes.fill_between(entry.epochs, *np.clip(ends, 0, 100), color=style["color"], alpha=0.13, lw=0)
            seen += [*errors]
        epoch_axis(axes, np.unique(np.concatenate([entry.epochs for entry in entries[:CURVES]])))
        error_axis(axes, seen)
        axes.set_ylabel("validation accuracy, %")
        figure.legend(loc="outside upper left", ncols=1)
        return settled(figure)


def draw_accuracies(entries: Sequence[Entry]) -> "Figure":
    """Validation and test accuracy of each entry at its best epoch, with confidence intervals and the seeds.

    Args:
      entries: the best first, those of them with an epoch.
    """
    from matplotlib.figure import Figure

    entries = entries[:RANKS]
    rows = np.arange(len(entries))
    points = [100 * accuracy for entry in entries for split in SPLITS for accuracy in entry.accuracies[split]]
    with styled():
        figure = Figure(figsize=(WIDTH, 1.2 + 0.4 * len(entries)), layout="constrained")
        axes = figure.subplots()
        reach = max(1.0, max(points) - min(points))  # intervals of two seeds may go from 0 to 100
        low, high = min(points), max(points)
        for split, shift, form, color in (("validation", -0.14, "o", BLUE), ("test", 0.14, "s", VERMILION)):
            results = [entry.result(split) for entry in entries]
            values = 100 * np.array([result.value for result in results])
            ends = 100 * np.array([[result.low, result.high] for result in results]).T
            lengths = np.nan_to_num(np.abs(ends - values))
            axes.errorbar(
                values, rows + shift, xerr=lengths, fmt=form, color=color, capsize=3, markersize=5, label=split
            )
            near = ends[np.abs(ends - np.array([[min(points)], [max(points)]])) <= reach]
            low, high = min([low, *near]), max([high, *near])
            for row, entry in enumerate(entries):
                if len(entry.accuracies[split]) > 1:
                    seeds = [100 * accuracy for accuracy in entry.accuracies[split]]
                    axes.plot(seeds, [row + shift] * len(seeds), "|", color=color, markersize=9, markeredgewidth=1)
        handles, labels = axes.get_legend_handles_labels()
        if any(len(entry.accuracies["test"]) > 1 for entry in entries):
            handles, labels = [*handles, *axes.plot([], [], "|", color=INK, markersize=9)], [*labels, "each seed"]
        margin = 0.04 * max(high - low, 0.2)
        axes.set_xlim(max(0, low - margin), min(100 + margin, high + margin))
        axes.set_yticks(rows, [shown(entry.label, 40) for entry in entries])
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.set_xlabel("accuracy at the best epoch on validation, %, with its 95 % confidence interval")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        figure.legend(handles, labels, loc="outside upper right", ncols=3)
        return settled(figure)
