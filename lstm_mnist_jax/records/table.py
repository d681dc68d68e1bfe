"""Records as a table in Markdown, which keeps its other rows when some are measured anew."""

import re
from collections.abc import Iterable
from typing import Any

from lstm_mnist_jax import model
from lstm_mnist_jax.config import DataConfig
from lstm_mnist_jax.errors import UserError
from lstm_mnist_jax.records.record import Record

COLUMNS = ("task", "data", "parameters", "seeds", "test %", "sd", "validation %", "best epoch", "minutes", "machine",
           "date", "command")  # fmt: skip
RULE = ("---",) * len(COLUMNS)
BAR = re.compile(r"(?<!\\)\|")


def row(record: Record) -> tuple[str, ...]:
    """A record as the cells of a table, under `COLUMNS`. Test accuracies are those at each run's best epoch."""
    first, sound = record.runs[0], record.sound
    config, test = first.config, 100 * record.values("test")
    steps, features = model.task_of(config.model).shape(first.data.image_shape)
    diverged = len(record.runs) - len(sound)
    return (
        f"{config.model.task}, {steps} x {features}",
        _data_name(config.data),
        f"{record.parameters:,}",
        f"{len(sound)}" + (f" ({diverged} more diverged)" if diverged else ""),
        f"{test.mean():.2f}" if sound else "-",
        f"{test.std(ddof=1):.2f}" if len(sound) > 1 else "-",
        f"{100 * record.values('validation').mean():.2f}" if sound else "-",
        f"{_span(run.best_epoch for run in sound)} of {config.epochs}",
        f"{record.values('seconds').mean() / 60:.1f}" if sound else "-",
        "; ".join(sorted({run.environment.get("machine", "?") for run in record.runs})),
        _span(run.environment.get("date", "?") for run in record.runs),
        " and ".join(f"`{command}`" for command in record.commands),
    )


def _span(values: Iterable[Any]) -> str:
    """The least and the greatest of some values."""
    known = sorted(values)
    if not known:
        return "-"
    return f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def _data_name(config: DataConfig) -> str:
    return "MNIST" if config.source == "mnist" else config.source.removeprefix("tfds:").rsplit("/")[-1]


def to_markdown(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as a table. A bar within a cell, of a folder's name say, is escaped, as Markdown wants it."""
    lines = ([cell.replace("|", "\\|") for cell in cells] for cells in (COLUMNS, RULE, *rows))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def read_table(text: str) -> list[tuple[str, ...]]:
    """The rows of a table that `to_markdown` wrote.

    Raises:
      UserError: it has other columns, so that its rows cannot be kept beside new ones.
    """
    lines = [line.strip().removeprefix("|").removesuffix("|") for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    header, *rows = [tuple(cell.strip().replace("\\|", "|") for cell in BAR.split(line)) for line in lines]
    if header != COLUMNS or any(len(cells) != len(COLUMNS) for cells in rows):
        raise UserError(
            f"What stands between the marks is no table of the columns {', '.join(COLUMNS)}. Delete it (the marks "
            "stay), and name all folders that it came from."
        )
    return rows[1:]


def merge(old: Iterable[tuple[str, ...]], new: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The old rows, each replaced in its place where a new one is of the same trainings but for the seeds."""
    anew: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for cells in new:
        anew.setdefault(_recipe(cells), []).append(cells)
    rows = []
    for cells in old:
        recipe = _recipe(cells)
        if recipe in anew:
            rows += anew[recipe]
            anew[recipe] = []
        else:
            rows.append(cells)
    return [*rows, *(cells for rest in anew.values() for cells in rest)]


def _recipe(cells: tuple[str, ...]) -> tuple[str, ...]:
    """What a row was trained with and on, but for the seeds."""
    named = dict(zip(COLUMNS, cells, strict=True))
    command = re.sub(r" --seeds? \d+", "", named["command"].split("` and `")[0].strip("`"))
    return named["task"], named["data"], command
