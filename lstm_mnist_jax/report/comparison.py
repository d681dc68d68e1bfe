"""Runs and the settings of sweeps side by side: how accuracy grew, and where it ended. Chosen on validation alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from lstm_mnist_jax.config.space import describe
from lstm_mnist_jax.errors import UserError
from lstm_mnist_jax.inference import load_data
from lstm_mnist_jax.statistics import Share, mean_of
from lstm_mnist_jax.sweeps.results import SettingResult, best_member, member_results, setting_results
from lstm_mnist_jax.training.metrics import read_metrics
from lstm_mnist_jax.training.run_folder import RunFolder, read_run_folder

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Estimate:
    """An accuracy, 0 to 1, with its 95 % confidence interval.

    Attributes:
      value: of one training, or the mean over several; NaN where there is none.
      low, high: of the interval; NaN where it is not known.
      kind: "binomial", of one training on so many examples; "Student's t", of the mean over seeds; "" for none.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    kind: str = ""

    def __str__(self) -> str:
        """For people: "98.58% (98.33 to 98.79)", and of a mean "98.56% ± 0.15"."""
        if math.isnan(self.value):
            return "-"
        if self.kind == "Student's t":
            return f"{self.value:.2%} ± {100 * (self.high - self.value):.2f}"
        return f"{self.value:.2%}" + (f" ({100 * self.low:.2f} to {100 * self.high:.2f})" if self.kind else "")


def estimate(accuracies: Sequence[float], examples: int | None) -> Estimate:
    """The accuracy of runs that differ in their seeds.

    Args:
      accuracies: of each, 0 to 1.
      examples: how many each was evaluated on, for the interval of a single one; None where it is not known.
    """
    if len(accuracies) > 1:
        mean = mean_of(accuracies)
        return Estimate(mean.mean, mean.mean - mean.half_width, mean.mean + mean.half_width, "Student's t")
    if not accuracies or examples is None:
        return Estimate(accuracies[0] if accuracies else math.nan)
    share = Share(round(accuracies[0] * examples), examples)
    return Estimate(share.value, *share.interval, "binomial")


@dataclass(frozen=True, eq=False)
class Entry:
    """What is compared: a run, or a setting of a sweep with its seeds.

    Attributes:
      label: what it is called.
      folder: of the run or of the sweep.
      run: the path of the run, or of the best one of the setting.
      epochs: int [epochs].
      curves: by split, the accuracy of each run after each epoch, [runs, epochs]; NaN where there is none, or
        the run diverged.
      best_epochs: of each run that did not diverge, the best on validation.
      selection_metric: what makes it the best, see `Config.selection_metric`.
      score: how good it was, see `selection.score`, on the mean; minus infinity where nothing is known.
      accuracies: by split, the accuracy after it.
      diverged: how many runs diverged.
      examples: by split, how many there are; None where the data cannot be loaded.
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
      The entries, the best on validation first and those that diverged last; and what people should know, a line each.

    Raises:
      RunError: a folder is neither a run nor a sweep.
    """
    labels, notes = _labels(paths), list[str]()
    entries, fingerprints = list[Entry](), set[str]()
    for path, label in zip(paths, labels, strict=True):
        folder = read_run_folder(path)
        fingerprints.add(folder.data.fingerprint)
        examples = _examples(folder, source, data_dir, notes)
        name = label if len(paths) > 1 or not folder.is_sweep else ""
        entries += [_of_setting(folder, result, examples, name) for result in setting_results(member_results(folder))]
    if len(fingerprints) > 1:
        notes.append("They were not trained on the same data: their accuracies are of different questions.")
    return _in_order(entries, notes), notes


def _in_order(entries: list[Entry], notes: list[str]) -> list[Entry]:
    """Those with runs that diverged last; else by score, or by accuracy where the scores are of two kinds."""
    kinds = {entry.selection_metric for entry in entries}
    if kinds == {"loss"}:
        notes.append("The best on validation is what has the least loss there.")
    if len(kinds) > 1:
        notes.append(
            "Some chose their best epoch by accuracy on validation, some by loss; the order is that of accuracy."
        )

    def rank(entry: Entry) -> tuple[bool, float]:
        value = entry.score if len(kinds) == 1 else entry.result("validation").value
        return entry.diverged > 0, math.inf if math.isnan(value) else -value

    return sorted(entries, key=rank)


def _labels(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    absolute = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, absolute)) + 1):
        labels = ["/".join(parts[-length:]) for parts in absolute]
        if len(set(labels)) == len(labels):
            return labels
    twice = next(path for n, path in enumerate(paths) if path.absolute() in [p.absolute() for p in paths[:n]])
    raise UserError(f"{twice} is named twice. Name each run once.")


def _examples(folder: RunFolder, source: str | None, data_dir: str | None, notes: list[str]) -> dict[str, int | None]:
    try:
        splits = load_data(folder, source, data_dir).splits
    except UserError as error:
        notes.append(f"{error} Without them, single runs have no intervals.")
        return dict.fromkeys(SPLITS)
    return {split: len(splits[split]) for split in SPLITS}


def _of_setting(folder: RunFolder, result: SettingResult, examples: dict[str, int | None], label: str) -> Entry:
    members = {member.member: row for row, member in enumerate(result.members)}
    sound = {member.member for member in result.members if not member.diverged}
    lines = [metrics for metrics in read_metrics(folder.metrics) if metrics.member in sound]
    epochs = np.array(sorted({metrics.epoch for metrics in lines}), int)
    curves = {split: np.full((len(members), len(epochs)), np.nan) for split in SPLITS}
    for metrics in lines:
        for split in SPLITS:
            column = int(np.searchsorted(epochs, metrics.epoch))
            curves[split][members[metrics.member], column] = getattr(metrics, f"{split}_accuracy")
    bests = [(m.best_epoch, m.best) for m in result.members if not m.diverged and m.best and m.best_epoch]
    setting = describe(result.setting) if folder.is_sweep else ""
    best = best_member(list(result.members))
    return Entry(
        label=": ".join(filter(None, (label, setting))) or f"{len(members)} seeds",
        folder=folder.path,
        run=folder.path / str(best) if folder.is_sweep and best is not None else folder.path,
        epochs=epochs,
        curves=curves,
        best_epochs=tuple(epoch for epoch, _ in bests),
        selection_metric=folder.config.selection_metric,
        score=result.score,
        accuracies={split: tuple(getattr(best, f"{split}_accuracy") for _, best in bests) for split in SPLITS},
        diverged=result.diverged,
        examples=examples,
    )
