"""What runs and sweeps came to, side by side: accuracies over seeds, and what it took. Chosen on validation alone."""

import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lstm_mnist_jax import model
from lstm_mnist_jax.config import PRESETS, CheckpointConfig, Config, DataConfig
from lstm_mnist_jax.config.json import differences
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.reporting.metrics import read_metrics
from lstm_mnist_jax.sweeps.folder import is_population, read_population_folder
from lstm_mnist_jax.sweeps.metrics import read_group_metrics
from lstm_mnist_jax.sweeps.results import is_done, member_results
from lstm_mnist_jax.training.run_folder import DataFacts, read_run_folder


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


@dataclass(frozen=True)
class Record:
    """Trainings that differ in nothing but the seed.

    Attributes:
      runs: they, by seed.
      preset: the preset whose command makes them, with the fewest options.
      options: those options.
      parameters: how many the network has.
    """

    runs: tuple[Run, ...]
    preset: str
    options: str
    parameters: int

    @property
    def commands(self) -> list[str]:
        """What trains them all, the diverged ones too: one command for seeds that follow one another."""
        seeds = [run.config.seed for run in self.runs]
        starts = [n for n, seed in enumerate(seeds) if n == 0 or seed != seeds[n - 1] + 1]
        parts = [seeds[start:end] for start, end in zip(starts, [*starts[1:], len(seeds)], strict=True)]
        return [
            f"lstm-mnist train {self.preset}{self.options}"
            + (f" --seeds {len(part)}" if len(part) > 1 else "")
            + (f" --seed {part[0]}" if part[0] else "")
            for part in parts
        ]

    @property
    def sound(self) -> list[Run]:
        """The runs that did not diverge."""
        return [run for run in self.runs if run.best_epoch is not None]

    def values(self, name: str) -> np.ndarray:
        """A number of each run that did not diverge."""
        return np.array([getattr(run, name) for run in self.sound], float)


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
    best = max(epochs, key=lambda metrics: (metrics.validation_accuracy, -metrics.epoch), default=None)
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


def make_records(runs: Iterable[Run]) -> list[Record]:
    """The trainings, those of one config and one data set together, the best on validation of each task first.

    Raises:
      RunError: a seed stands twice among trainings of one config.
    """
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        recipe = _recipe(run.config)
        # The data are what they are, wherever they lie.
        anywhere = replace(recipe, data=replace(recipe.data, source=""))
        groups.setdefault((anywhere, run.data.fingerprint), []).append(run)
    records = []
    for group in groups.values():
        group.sort(key=lambda run: run.config.seed)
        for one, other in itertools.pairwise(group):
            if one.config.seed == other.config.seed:
                raise RunError(
                    f"{one.folder} and {other.folder} hold the same training, of seed {one.config.seed}. Name one only."
                )
        preset, options = _command(_recipe(group[0].config))
        records.append(Record(tuple(group), preset, options, _parameters(group[0])))
    order = list(dict.fromkeys(record.runs[0].config.model.task for record in records))
    return sorted(records, key=lambda r: (order.index(r.runs[0].config.model.task), -_mean(r.values("validation"))))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _recipe(config: Config) -> Config:
    """A config without what changes no number of its own, and without the seed."""
    data = replace(config.data, data_dir=None)
    return replace(config, seed=0, tensorboard=Config.tensorboard, checkpoints=CheckpointConfig(), data=data)


def _command(recipe: Config) -> tuple[str, str]:
    """The preset that is nearest to a config, and the options that make it that."""
    near = {name: differences(_recipe(preset), recipe) for name, preset in PRESETS.items()}
    preset = min(near, key=lambda name: len(near[name]))
    return preset, "".join(f" {_option(name.rsplit('.')[-1], value)}" for name, (_, value) in near[preset].items())


def _option(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    if name == "source" and not value.startswith("tfds:"):
        value = Path(value).name  # a folder, wherever it is
    return f"--{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def _parameters(run: Run) -> int:
    shape, classes = run.data.image_shape, len(run.data.class_names)
    params = jax.eval_shape(lambda key: model.init(run.config.model, key, shape, classes), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


COLUMNS = ("task", "data", "preset", "parameters", "seeds", "test %", "sd", "validation %", "best epoch", "minutes",
           "machine", "date")  # fmt: skip


def row(record: Record) -> tuple[str, ...]:
    """A record as the cells of a table, under `COLUMNS`. Test accuracies are those at each run's best epoch."""
    first, sound = record.runs[0], record.sound
    config, test = first.config, 100 * record.values("test")
    steps, features = model.task_of(config.model).shape(first.data.image_shape)
    diverged = len(record.runs) - len(sound)
    return (
        f"{config.model.task}, {steps} x {features}",
        _data_name(config.data),
        f"`{record.preset}`" + (" *" if record.options else ""),
        f"{record.parameters:,}",
        f"{len(sound)}" + (f" ({diverged} more diverged)" if diverged else ""),
        f"{test.mean():.2f}" if sound else "-",
        f"{test.std(ddof=1):.2f}" if len(sound) > 1 else "-",
        f"{100 * record.values('validation').mean():.2f}" if sound else "-",
        f"{_span(run.best_epoch for run in sound)} of {config.epochs}",
        f"{record.values('seconds').mean() / 60:.1f}" if sound else "-",
        "; ".join(sorted({run.environment.get("machine", "?") for run in record.runs})),
        _span(run.environment.get("date", "?") for run in record.runs),
    )


def _span(values: Iterable[Any]) -> str:
    """The least and the greatest of some values."""
    known = sorted(values)
    if not known:
        return "-"
    return f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def _data_name(config: DataConfig) -> str:
    return "MNIST" if config.source == "mnist" else config.source.removeprefix("tfds:").rsplit("/")[-1]


def to_markdown(records: list[Record]) -> str:
    """The records as a table, and the command of each."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(row, records)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    commands = "\n".join(command for record in records for command in record.commands)
    return f"{table}\n\n```sh\n{commands}\n```\n"
