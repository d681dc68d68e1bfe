"""Trainings that differ in the seed alone, and the commands that make them."""

import itertools
import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lstm_mnist_jax import model
from lstm_mnist_jax.config import PRESETS, CheckpointConfig, Config
from lstm_mnist_jax.config.json import differences
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.records.runs import Run


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


def make_records(runs: Iterable[Run]) -> list[Record]:
    """The trainings, those of one config and one data set together, of each task the highest validation accuracy first.

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
    if Path(data.source).name == "fashion-mnist":  # Debian's, or a folder of this name: the command is the same
        data = replace(data, source="fashion-mnist")
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
        value = shlex.quote(Path(value).name)  # a folder, wherever it is
    return f"--{flag} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def _parameters(run: Run) -> int:
    shape, classes = run.data.image_shape, len(run.data.class_names)
    params = jax.eval_shape(lambda key: model.init(run.config.model, key, shape, classes), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
