"""Trainings that have ended, read from their folders: at the best epoch on validation, and what they took."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.reporting.metrics import read_metrics
from lstm_mnist_jax.sweeps.folder import is_population, read_population_folder
from lstm_mnist_jax.sweeps.metrics import read_group_metrics
from lstm_mnist_jax.sweeps.results import is_done, member_results
from lstm_mnist_jax.training.run_folder import DataFacts, read_run_folder
from lstm_mnist_jax.training.selection import best_epoch


@dataclass(frozen=True)
class Run:
    """One training that has ended: complete, stopped early, or diverged.

    Attributes:
      config: what was trained.
      data: on what.
      environment: with what, where and when.
      best_epoch: the best on validation; None where the training diverged.
      validation, test: accuracies after it, 0 to 1; NaN where the training diverged.
      seconds: of training steps: as many epochs as there were, each taken to last as long as their median, whatever
        else the machine did meanwhile. Of a sweep's trainings, which ran together, an equal share each.
      folder: where it is.
    """

    config: Config
    data: DataFacts
    environment: dict[str, str]
    best_epoch: int | None
    validation: float
    test: float
    seconds: float
    folder: Path


def read_runs(path: Path) -> list[Run]:
    """The trainings in the folder of a run or of a sweep, all of which must have ended.

    Raises:
      RunError: it is neither; a training in it is not complete; or it began with weights from elsewhere.
    """
    return _of_population(path) if is_population(path) else [_of_run(path)]


def _unfinished(path: Path, what: str) -> RunError:
    return RunError(f"{what} not complete in {path}. Go on with: lstm-mnist train --resume {path}")


def _of_run(path: Path) -> Run:
    folder, epochs = read_run_folder(path), read_metrics(path / "metrics.jsonl")
    if folder.initial_weights is not None:
        raise RunError(f"{path} began with weights that no command here makes ({folder.initial_weights}).")
    best = best_epoch(folder.config, epochs)
    patience = folder.config.early_stop_epochs
    if best is None:
        raise _unfinished(path, "The training is")
    stopped = patience is not None and epochs[-1].epoch - best.epoch >= patience
    if epochs[-1].epoch != folder.config.epochs and not stopped:
        raise _unfinished(path, "The training is")
    seconds = _undisturbed([metrics.seconds for metrics in epochs])
    accuracies = best.validation_accuracy, best.test_accuracy
    return Run(folder.config, folder.data, folder.environment, best.epoch, *accuracies, seconds, path)


def _of_population(path: Path) -> list[Run]:
    folder = read_population_folder(path)
    results = member_results(folder)
    done = [is_done(folder.member_config(result.member), result) for result in results]
    if len(results) < len(folder.members) or not all(done):
        raise _unfinished(path, f"{len(folder.members) - sum(done)} of {len(folder.members)} trainings are")
    shares: list[list[float]] = [[] for _ in folder.members]
    for line in read_group_metrics(folder.metrics):
        for member in line.members:
            shares[member.member].append(line.seconds / len(line.members))
    runs = []
    for result in results:
        best, epoch = result.best, result.best_epoch
        accuracies = math.nan, math.nan
        if best is None or result.diverged:
            epoch = None
        else:
            accuracies = float(best.validation_accuracy or 0), float(best.test_accuracy or 0)
        config = folder.member_config(result.member)
        seconds = _undisturbed(shares[result.member])
        runs.append(Run(config, folder.data, folder.environment, epoch, *accuracies, seconds, path))
    return runs


def _undisturbed(seconds: list[float]) -> float:
    return statistics.median(seconds) * len(seconds) if seconds else 0.0
