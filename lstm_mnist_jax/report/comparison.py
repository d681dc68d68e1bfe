"""Comparison of runs and of the settings of sweeps: accuracies, curves and figures. Validation alone ranks them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lstm_mnist_jax.config.space import describe
from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.errors import UserError
from lstm_mnist_jax.inference import load_data
from lstm_mnist_jax.report.style import (
    BLUE,
    INK,
    VERMILION,
    Picture,
    epoch_axis,
    error_axis,
    marker,
    new_figure,
    series_style,
    shown,
)
from lstm_mnist_jax.statistics import FOR_AN_INTERVAL, Share, mean_of
from lstm_mnist_jax.training.results import SettingResult, best_member, member_results, setting_results
from lstm_mnist_jax.training.run_folder import RunFolder, read_run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS = ("validation", "test")

CURVES = 5
"""The curves of so many entries are drawn: of the best."""

RANKS = 24
"""The accuracies of so many entries are drawn."""


@dataclass(frozen=True)
class Estimate:
    """An accuracy, 0 to 1, with its 95 % confidence interval.

    Attributes:
      value: of one run, or the mean over several; NaN where there is none.
      low, high: the ends of the interval; NaN where it is unknown.
      kind: "binomial", for one run, from the number of examples; "Student's t", for the mean over seeds; "" for none.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    kind: str = ""

    def __str__(self) -> str:
        """As text: "98.58% (98.33 to 98.79)"; a mean: "98.56% ± 0.15"."""
        if math.isnan(self.value):
            return "-"
        if self.kind == "Student's t":
            return f"{self.value:.2%} ± {100 * (self.high - self.value):.2f}"
        return f"{self.value:.2%}" + (f" ({100 * self.low:.2f} to {100 * self.high:.2f})" if self.kind else "")


def estimate(accuracies: Sequence[float], examples: int | None) -> Estimate:
    """The accuracy of runs that differ in their seeds.

    Args:
      accuracies: of each run, 0 to 1.
      examples: the number of examples, for the interval of a single run; None where it is unknown.
    """
    if len(accuracies) > 1:
        mean = mean_of(accuracies)
        kind = "" if math.isnan(mean.half_width) else "Student's t"
        return Estimate(mean.mean, mean.mean - mean.half_width, mean.mean + mean.half_width, kind)
    if not accuracies or examples is None:
        return Estimate(accuracies[0] if accuracies else math.nan)
    share = Share(round(accuracies[0] * examples), examples)
    return Estimate(share.value, *share.interval, "binomial")


@dataclass(frozen=True, eq=False)
class Entry:
    """A run, or a setting of a sweep with its seeds.

    Attributes:
      label: its name.
      folder: of the run or of the sweep.
      run: the path of the run, or of the best one of the setting.
      epochs: int [epochs].
      curves: by split, the accuracy of each run after each epoch, [runs, epochs]; NaN where there is none, or the run
        diverged.
      best_epochs: the best epoch on validation of each run that did not diverge.
      selection_metric: the metric for the best epoch, see `Config.selection_metric`.
      score: the mean score by this metric, higher is better; minus infinity where it is unknown.
      accuracies: by split, the accuracies after the best epochs.
      diverged: the number of runs that diverged.
      examples: by split, the number of examples; None where the data cannot be loaded.
    """

    label: str
    folder: Path
    run: Path
    epochs: Int[np.ndarray, " epochs"]
    curves: dict[str, Float[np.ndarray, "runs epochs"]]
    best_epochs: tuple[int, ...]
    selection_metric: str
    score: float
    accuracies: dict[str, tuple[float, ...]]
    diverged: int
    examples: dict[str, int | None]

    @property
    def has_two_seeds(self) -> bool:
        """Whether its mean is of two runs, and so has no interval."""
        return len(self.best_epochs) == 2

    def result(self, split: str) -> Estimate:
        """Its accuracy at the best epoch on validation."""
        return estimate(self.accuracies[split], self.examples[split])

    def along(self, split: str) -> list[Estimate]:
        """Its accuracy after each epoch."""
        columns = self.curves[split].T
        return [estimate([float(a) for a in column if not np.isnan(a)], self.examples[split]) for column in columns]


def read_entries(
    paths: Sequence[Path], source: str | None = None, data_dir: str | None = None
) -> tuple[list[Entry], list[str]]:
    """Reads runs and sweeps, finished or not.

    Args:
      paths: their folders.
      source, data_dir: where their data are now, if they have moved.

    Returns:
      The entries, the best on validation first and those that diverged last; and notes, a line each.

    Raises:
      RunError: a folder is neither a run nor a sweep.
    """
    labels, notes = _labels(paths), list[str]()
    entries, folders, datasets = list[Entry](), list[RunFolder](), list[Dataset | None]()
    for path, label in zip(paths, labels, strict=True):
        folder = read_run_folder(path)
        dataset = _dataset(folder, source, data_dir, notes)
        folders.append(folder)
        datasets.append(dataset)
        examples = {split: None if dataset is None else len(dataset.splits[split]) for split in SPLITS}
        name = label if len(paths) > 1 or not folder.is_sweep else ""
        entries += [entry_of(folder, result, examples, name) for result in setting_results(member_results(folder))]
    if len({folder.data.fingerprint for folder in folders}) > 1:
        notes.append(_difference(datasets))
    return _in_order(entries, notes), notes


def _in_order(entries: list[Entry], notes: list[str]) -> list[Entry]:
    """Those with runs that diverged last; else by score, or by accuracy where the metrics differ."""
    metrics = {entry.selection_metric for entry in entries}
    if metrics == {"loss"}:
        notes.append("The best on validation is the one with the lowest loss there.")
    if len(metrics) > 1:
        notes.append("Some selected their best epoch by accuracy, some by loss; the order is by validation accuracy.")

    def rank(entry: Entry) -> tuple[bool, float]:
        value = entry.score if len(metrics) == 1 else entry.result("validation").value
        return entry.diverged > 0, math.inf if math.isnan(value) else -value

    return sorted(entries, key=rank)


def _labels(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as distinguish them."""
    absolute = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, absolute)) + 1):
        labels = ["/".join(parts[-length:]) for parts in absolute]
        if len(set(labels)) == len(labels):
            return labels
    twice = next(path for n, path in enumerate(paths) if path.absolute() in [p.absolute() for p in paths[:n]])
    raise UserError(f"{twice} is named twice. Name each run once.")


def _dataset(folder: RunFolder, source: str | None, data_dir: str | None, notes: list[str]) -> Dataset | None:
    try:
        return load_data(folder, source, data_dir)
    except UserError as error:
        notes.append(f"{error} Without them, single runs have no intervals.")
        return None


def _difference(datasets: Sequence[Dataset | None]) -> str:
    """A note on data sets that are not all the same: which of their splits differ."""
    loaded = [dataset for dataset in datasets if dataset is not None]
    if len(loaded) < len(datasets):
        return "The runs used different data, or different parts of it: compare their accuracies with care."
    differing = [
        split for split in loaded[0].splits if len({dataset.splits[split].fingerprint() for dataset in loaded}) > 1
    ]
    evaluated = [split for split in differing if split in SPLITS]
    if evaluated:
        return f"The runs have different {' and '.join(evaluated)} images: accuracies on these are not comparable."
    return "The runs were trained on different images; their validation and test images are the same."


def entry_of(folder: RunFolder, result: SettingResult, examples: Mapping[str, int | None], label: str = "") -> Entry:
    """The entry of a setting of a sweep, or of a run."""
    rows = {member.member: row for row, member in enumerate(result.members)}
    sound = [member for member in result.members if not member.diverged]
    lines = [metrics for member in sound for metrics in member.history]
    epochs = np.array(sorted({metrics.epoch for metrics in lines}), int)
    curves = {split: np.full((len(rows), len(epochs)), np.nan) for split in SPLITS}
    for metrics in lines:
        at = rows[metrics.member], int(np.searchsorted(epochs, metrics.epoch))
        for split in SPLITS:
            curves[split][at] = getattr(metrics, f"{split}_accuracy")
    bests = [(member.best_epoch, member.best) for member in sound if member.best and member.best_epoch]
    setting = describe(result.setting) if folder.is_sweep else ""
    best = best_member(list(result.members))
    return Entry(
        label=": ".join(filter(None, (label, setting))) or f"{len(rows)} seeds",
        folder=folder.path,
        run=folder.path / str(best) if folder.is_sweep and best is not None else folder.path,
        epochs=epochs,
        curves=curves,
        best_epochs=tuple(epoch for epoch, _ in bests),
        selection_metric=folder.config.selection_metric,
        score=result.score,
        accuracies={split: tuple(getattr(best, f"{split}_accuracy") for _, best in bests) for split in SPLITS},
        diverged=result.diverged,
        examples=dict(examples),
    )


def comparison_pictures(entries: Sequence[Entry]) -> list[Picture]:
    """The figures of a comparison; none if no entry has a finished epoch.

    Args:
      entries: of `read_entries`.
    """
    known = [entry for entry in entries if entry.best_epochs]
    if not known:
        return []
    best, ranked = known[0], known[:RANKS]
    parts = "; ".join(
        f"{entry.label}: validation {entry.result('validation')}, test {entry.result('test')}" for entry in ranked
    )
    of = f"The best {len(ranked)} of {len(known)}" if len(ranked) < len(known) else "All"
    kinds = "Intervals are binomial for a single run and Student's t for a mean over seeds"
    kinds += f"; {FOR_AN_INTERVAL}." if any(entry.has_two_seeds for entry in known) else "."
    return [
        Picture(
            "comparison",
            "Accuracy at the best epoch",
            f"{of}, each run at its best epoch on validation, in percent with 95 % confidence intervals: {parts}. "
            f"{kinds} The validation accuracy is biased upwards, since validation selected the epoch.",
            draw_accuracies(ranked),
        ),
        Picture(
            "comparison-curves",
            "Validation accuracy by epoch",
            f"Validation accuracy after each epoch of {'all' if len(known) <= CURVES else f'the best {CURVES}'}, with "
            f"95 % confidence intervals. The best, {best.label}, reaches {best.result('validation')}. {kinds}",
            draw_curves(known[:CURVES]),
        ),
    ]


def draw_curves(entries: Sequence[Entry]) -> "Figure":
    """Validation accuracy over the epochs, with 95 % confidence intervals, of entries with a finished epoch."""
    with new_figure(4.2) as figure:
        axes, seen = figure.subplots(), []
        for number, entry in enumerate(entries):
            along = entry.along("validation")
            errors = 100 * (1 - np.array([estimate.value for estimate in along]))
            style = series_style(number)
            axes.plot(entry.epochs, errors, label=shown(entry.label, 60), **style, **marker(entry.epochs))
            ends = np.array([[100 * (1 - estimate.low), 100 * (1 - estimate.high)] for estimate in along]).T
            axes.fill_between(entry.epochs, *np.clip(ends, 0, 100), color=style["color"], alpha=0.13, lw=0)
            seen += [*errors]
        epoch_axis(axes, np.unique(np.concatenate([entry.epochs for entry in entries])))
        error_axis(axes, seen)
        axes.set_ylabel("validation accuracy, %")
        figure.legend(loc="outside upper left", ncols=1)
    return figure


def draw_accuracies(entries: Sequence[Entry]) -> "Figure":
    """Validation and test accuracy of entries at their best epoch, with confidence intervals and the seeds."""
    rows = np.arange(len(entries))
    points = [100 * accuracy for entry in entries for split in SPLITS for accuracy in entry.accuracies[split]]
    with new_figure(1.2 + 0.4 * len(entries)) as figure:
        axes = figure.subplots()
        low, high = min(points), max(points)
        limits, reach = np.array([[low], [high]]), max(1.0, high - low)  # intervals of few seeds may go from 0 to 100
        for split, shift, form, color in (("validation", -0.14, "o", BLUE), ("test", 0.14, "s", VERMILION)):
            results = [entry.result(split) for entry in entries]
            values = 100 * np.array([result.value for result in results])
            ends = 100 * np.array([[result.low, result.high] for result in results]).T
            lengths = np.nan_to_num(np.abs(ends - values))
            axes.errorbar(
                values, rows + shift, xerr=lengths, fmt=form, color=color, capsize=3, markersize=5, label=split
            )
            near = ends[np.abs(ends - limits) <= reach]
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
    return figure
