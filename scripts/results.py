"""The results of runs and sweeps as a table in Markdown: `python scripts/results.py RUN_DIR... [--into FILE]`.

The table of docs/recipes.md is written by `--into docs/recipes.md`. Runs behind its latest rows, without their
weights, are in scripts/results/.
"""

import itertools
import math
import re
import shlex
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from lstm_mnist_jax import model
from lstm_mnist_jax.config import PRESETS, CheckpointConfig, Config
from lstm_mnist_jax.config.json import differences
from lstm_mnist_jax.data.splits import usual_validation_examples
from lstm_mnist_jax.errors import RunError, UserError
from lstm_mnist_jax.training.metrics import read_metrics
from lstm_mnist_jax.training.results import is_done, member_results
from lstm_mnist_jax.training.run_folder import DataFacts, read_run_folder, write_atomically

COLUMNS = ("task", "data", "parameters", "seeds", "test %", "sd", "validation %", "best epoch", "minutes", "machine",
           "date", "command")  # fmt: skip
BAR = re.compile(r"(?<!\\)\|")
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


@dataclass(frozen=True)
class Run:
    """A run that has ended: complete, stopped early, or diverged.

    Attributes:
      config, data, environment: as its folder has them.
      best_epoch: the best epoch on validation; None where the run diverged.
      validation, test: accuracies after that epoch, 0 to 1; NaN where the run diverged.
      seconds: of training steps: the median epoch times the epochs. Runs of a sweep, which ran together, have an equal
        share each.
      folder: its folder, or that of its sweep.
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
    """The runs in the folder of a run or of a sweep, or the one of a member of a sweep.

    Raises:
      RunError: the folder is neither, a run in it has not ended, or a run began with given weights.
    """
    folder = read_run_folder(path)
    if folder.initial_weights is not None:
        raise RunError(f"{path} began with given weights ({folder.initial_weights}): no command here makes them.")
    results, runs = member_results(folder), []
    ended = sum(is_done(folder.member_config(result.member), result) for result in results)
    if ended < len(results):
        what = f"{len(results) - ended} of {len(results)} runs in {path} are" if folder.is_sweep else f"{path} is"
        raise RunError(f"{what} not complete. Continue with: lstm-mnist train --resume {folder.home}")
    for result in results:
        sound = result.best is not None and not result.diverged
        accuracies = (result.best.validation_accuracy, result.best.test_accuracy) if result.best else (math.nan,) * 2
        runs.append(
            Run(
                config=folder.member_config(result.member),
                data=folder.data,
                environment=folder.environment,
                best_epoch=result.best_epoch if sound else None,
                validation=accuracies[0] if sound else math.nan,
                test=accuracies[1] if sound else math.nan,
                seconds=_undisturbed([m.seconds for m in read_metrics(folder.metrics, result.member)]),
                folder=path,
            )
        )
    return runs


def _undisturbed(seconds: list[float]) -> float:
    """The median epoch times the number of epochs."""
    return statistics.median(seconds) * len(seconds) if seconds else 0.0


def group_by_recipe(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ in the seed alone together, by seed; of each task the highest validation accuracy first.

    Raises:
      RunError: a group has a seed twice.
    """
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        recipe = _recipe(run.config)
        anywhere = replace(recipe, data=replace(recipe.data, source=""))  # the fingerprint identifies the data
        groups.setdefault((anywhere, run.data.fingerprint), []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.config.seed)
        for one, other in itertools.pairwise(group):
            if one.config.seed == other.config.seed:
                raise RunError(
                    f"{one.folder} and {other.folder} hold the same run, of seed {one.config.seed}. Name one."
                )
    tasks = list(dict.fromkeys(run.config.model.task for group in groups.values() for run in group))

    def rank(group: list[Run]) -> tuple[int, float]:
        validation = [run.validation for run in group if run.best_epoch is not None]
        return tasks.index(group[0].config.model.task), -statistics.fmean(validation) if validation else 0.0

    return sorted(groups.values(), key=rank)


def _recipe(config: Config) -> Config:
    """A config without its seed, and without what changes no result."""
    data = replace(config.data, data_dir=None)
    if Path(data.source).name == "fashion-mnist":  # Debian's, or a folder of this name: the command is the same
        data = replace(data, source="fashion-mnist")
    usual = usual_validation_examples(60_000, data.train_examples)  # which a run has in place of None
    if data.source in ("mnist", "fashion-mnist") and data.validation_examples == usual:
        data = replace(data, validation_examples=None)
    return replace(config, seed=0, tensorboard=Config.tensorboard, checkpoints=CheckpointConfig(), data=data)


def commands(group: list[Run]) -> list[str]:
    """The commands that train a group, those that diverged too: one for consecutive seeds, from the nearest preset."""
    recipe = _recipe(group[0].config)
    near = {name: differences(_recipe(preset), recipe) for name, preset in PRESETS.items()}
    preset = min(near, key=lambda name: len(near[name]))
    options = "".join(f" {_option(name.rsplit('.')[-1], value)}" for name, (_, value) in near[preset].items())
    seeds = [run.config.seed for run in group]
    starts = [n for n, seed in enumerate(seeds) if n == 0 or seed != seeds[n - 1] + 1]
    parts = [seeds[start:end] for start, end in zip(starts, [*starts[1:], len(seeds)], strict=True)]
    return [
        f"lstm-mnist train {preset}{options}"
        + (f" --seeds {len(part)}" if len(part) > 1 else "")
        + (f" --seed {part[0]}" if part[0] else "")
        for part in parts
    ]


def _option(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    if name == "source" and not value.startswith("tfds:"):
        value = shlex.quote(Path(value).name)  # a folder, wherever it is
    return f"--{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def row(group: list[Run]) -> tuple[str, ...]:
    """The cells of a group under `COLUMNS`. Test accuracies are those at each run's best epoch on validation."""
    first, sound = group[0], [run for run in group if run.best_epoch is not None]
    config, diverged = first.config, len(group) - len(sound)
    test = 100 * np.array([run.test for run in sound])
    steps, features = model.task_of(config.model).shape(first.data.image_shape)
    return (
        f"{config.model.task}, {steps} x {features}",
        {"mnist": "MNIST"}.get(source := config.data.source, source.removeprefix("tfds:").rsplit("/")[-1]),
        f"{_parameters(first):,}",
        f"{len(sound)}" + (f" ({diverged} more diverged)" if diverged else ""),
        f"{test.mean():.2f}" if sound else "-",
        f"{test.std(ddof=1):.2f}" if len(sound) > 1 else "-",
        f"{100 * statistics.fmean(run.validation for run in sound):.2f}" if sound else "-",
        f"{_span(run.best_epoch for run in sound)} of {config.epochs}",
        f"{statistics.fmean(run.seconds for run in sound) / 60:.1f}" if sound else "-",
        "; ".join(sorted({run.environment.get("machine", "?") for run in group})),
        _span(run.environment.get("date", "?") for run in group),
        " and ".join(f"`{command}`" for command in commands(group)),
    )


def _parameters(run: Run) -> int:
    shape, classes = run.data.image_shape, len(run.data.class_names)
    params = jax.eval_shape(lambda key: model.init(run.config.model, key, shape, classes), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _span(values: Iterable[Any]) -> str:
    """The least and the largest of some values."""
    known = sorted(values) or ["-"]
    return f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def to_markdown(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as a table, with the bars within cells escaped."""
    lines = ([cell.replace("|", "\\|") for cell in cells] for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def read_table(text: str) -> list[tuple[str, ...]]:
    """The rows of a table that `to_markdown` wrote.

    Raises:
      UserError: the table has other columns.
    """
    lines = [line.strip().removeprefix("|").removesuffix("|") for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    header, *rows = [tuple(cell.strip().replace("\\|", "|") for cell in BAR.split(line)) for line in lines]
    if header != COLUMNS or any(len(cells) != len(COLUMNS) for cells in rows):
        raise UserError(
            f"The text between the marks is no table of the columns {', '.join(COLUMNS)}. Delete it (the marks "
            "stay), and name all folders that it came from."
        )
    return rows[1:]


def merge(old: Iterable[tuple[str, ...]], new: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The old rows, each replaced where a new row differs from it in the seeds alone; then the other new rows."""

    def recipe(cells: tuple[str, ...]) -> tuple[str, ...]:
        named = dict(zip(COLUMNS, cells, strict=True))
        command = re.sub(r" --seeds? \d+", "", named["command"].split("` and `")[0].strip("`"))
        return named["task"], named["data"], command

    by_recipe: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for cells in new:
        by_recipe.setdefault(recipe(cells), []).append(cells)
    rows = []
    for cells in old:
        key = recipe(cells)
        rows += by_recipe.get(key, [cells])
        if key in by_recipe:
            by_recipe[key] = []  # they replace the first old row
    return [*rows, *(cells for rest in by_recipe.values() for cells in rest)]


@dataclass(frozen=True)
class Arguments:
    """Mean and standard deviation over seeds of the test accuracy, of each run at its best epoch on validation."""

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs and sweeps. Runs that differ in the seed alone make one row."""
    into: Path | None = None
    """A Markdown file with such a table between its two marks. Rows of the same runs, whatever their seeds, are
    replaced; the others stay."""


def main() -> None:
    arguments = tyro.cli(Arguments)
    try:
        if not arguments.run_dirs:
            raise UserError("Name the folders of runs or sweeps.")
        runs = [run for path in arguments.run_dirs for run in read_runs(path.expanduser())]
        rows = [row(group) for group in group_by_recipe(runs)]
        if arguments.into is None:
            print(to_markdown(rows), end="")
            return
        before, begin, rest = arguments.into.read_text("utf-8").partition(BEGIN)
        table, end, after = rest.partition(END)
        if not begin or not end:
            raise UserError(
                f"{arguments.into} has no place for the table: a line {BEGIN.strip()} and one {END.strip()}."
            )
        text = to_markdown(merge(read_table(table), rows))
        write_atomically(arguments.into, f"{before}{begin}\n{text}\n{end}{after}")
    except (UserError, OSError) as error:
        print(f"results.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
