"""The space of a sweep: values of a config's fields, listed or drawn.

A setting maps names of fields to values: {"learning_rate": 0.003, "hidden_features": (32, 64)}.
"""

import itertools
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from lstm_mnist_jax.config.json import described, from_text, from_value
from lstm_mnist_jax.config.options import SWEEPABLE, Checked, Config, refuse_without_effect
from lstm_mnist_jax.errors import ConfigError, did_you_mean

Setting = dict[str, Any]

SECTIONS = ("optimizer", "model", "augmentation")
"""The parts of a config with fields that can be swept."""

LONG = Config(epochs=1_000_000)
"""A config that takes every value that any other config takes; each run's own config checks the rest."""

DIGITS = 4
"""Significant digits of a number drawn from a wide interval."""


@dataclass(frozen=True)
class Interval:
    """A uniform distribution over an interval, of numbers or of their logarithms.

    Attributes:
      low, high: the ends.
      logarithmic: whether the logarithms are uniformly distributed.
    """

    low: float
    high: float
    logarithmic: bool

    def draw(self, rng: np.random.Generator) -> float:
        """Draws a number."""
        if self.logarithmic:
            return self.rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.rounded(rng.uniform(self.low, self.high))

    def rounded(self, number: float) -> float:
        """A number of the interval, rounded to few digits; thousands of rounded numbers lie between its ends."""
        narrow = max(abs(self.low), abs(self.high)) / (self.high - self.low)
        digits = DIGITS + math.ceil(math.log10(max(1.0, narrow)))
        return min(max(float(f"{number:.{digits}g}"), self.low), self.high)


@dataclass(frozen=True)
class Space(Checked):
    """The settings and seeds of a sweep. `space_of` makes one from Python values and describes them.

    Attributes:
      names, values: the fields that vary, and for each its values or one interval, as `lstm-mnist sweep` takes them.
      seeds, samples, optuna: see `space_of`.
    """

    names: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ()
    seeds: int = 1
    samples: int | None = None
    optuna: bool = False

    def check(self) -> None:
        self.require_positive("seeds", "samples")
        intervals = [name for name, axis in self.axes().items() if isinstance(axis, Interval)]
        if intervals and self.samples is None:
            raise ConfigError(f"{intervals[0]} is an interval: set samples, the number of settings to draw.")
        if self.optuna and (self.samples is None or not self.names):
            raise ConfigError("Optuna needs something to vary, and samples, the number of settings to try.")
        if self.samples is not None and not intervals and not self.optuna:
            raise ConfigError("samples is for intervals (uniform:LOW:HIGH or loguniform:LOW:HIGH), but there is none.")

    def axes(self) -> dict[str, Interval | tuple[Any, ...]]:
        """The values or the interval of each field. Raises ConfigError where one is impossible."""
        return {name: _parse(name, words) for name, words in zip(self.names, self.values, strict=True)}

    def refuse_without_effect(self, config: Config) -> None:
        """Raises ConfigError where no run of a sweep of `config` depends on a field that varies."""
        axes = {name: (axis.high,) if isinstance(axis, Interval) else axis for name, axis in self.axes().items()}
        refuse_without_effect(axes, config, axes)

    def describe(self) -> str:
        """The space in words: "learning_rate 0.003 0.01, 4 seeds"."""
        options = [f"{self.samples} samples"] * (self.samples is not None) + ["by Optuna"] * self.optuna
        axes = [f"{name} {' '.join(words)}" for name, words in zip(self.names, self.values, strict=True)]
        return ", ".join([*axes, *options, f"{self.seeds} seeds"])

    def settings(self, seed: int) -> list[Setting]:
        """All settings of a sweep without Optuna: every combination of listed values, with every drawn one."""
        rng = np.random.default_rng(seed)
        axes = self.axes()
        intervals = {name: axis for name, axis in axes.items() if isinstance(axis, Interval)}
        draws = [{name: axis.draw(rng) for name, axis in intervals.items()} for _ in range(self.samples or 1)]
        lists = {name: axis for name, axis in axes.items() if not isinstance(axis, Interval)}
        combined = (dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))
        return [{name: (values | draw)[name] for name in axes} for values in combined for draw in draws]


def space_of(axes: Mapping[str, Any], *, seeds: int = 1, samples: int | None = None, optuna: bool = False) -> Space:
    """The space of a sweep, from Python values.

    Args:
      axes: for each field that varies, by its name, a list of values, or an interval: "uniform:LOW:HIGH" or
        "loguniform:LOW:HIGH". `lstm_mnist_jax.config.SWEEPABLE` lists the fields.
      seeds: the number of seeds of each setting: the config's own and those after it.
      samples: the number of settings to draw, if there is an interval; with Optuna the number of settings in all.
      optuna: let Optuna choose the settings, round by round, by the validation results so far.

    Returns:
      The space, for `sweep`: every value with every other.

    Raises:
      ConfigError: a field cannot be swept, a value is impossible, or `samples` is missing or not needed.

    Examples:
      >>> from lstm_mnist_jax import space_of
      >>> space_of({"learning_rate": [0.003, 0.01], "cell": ["lstm", "gru"]}, seeds=4).describe()
      'learning_rate 0.003 0.01, cell lstm gru, 4 seeds'
      >>> len(space_of({"learning_rate": "loguniform:0.001:0.1"}, samples=8).settings(seed=0))
      8
    """
    words = dict[str, tuple[str, ...]]()
    if not isinstance(axes, Mapping):
        raise ConfigError(f"The fields that vary are {axes!r}, expected a dict, such as {{'learning_rate': [0.003]}}.")
    for name, axis in axes.items():
        if not isinstance(axis, Iterable):
            raise ConfigError(f"{name} is {axis!r}, expected a list of values, or an interval as text.")
        words[name] = (axis,) if isinstance(axis, str) else tuple(map(_word, axis))
    return Space(tuple(words), tuple(words.values()), seeds, samples, optuna)


def _not_sweepable(name: str) -> ConfigError:
    if name in ("seed", "seeds"):
        return ConfigError(f"{name} is no field of a setting: seeds=4 trains each setting with four seeds.")
    nearest = did_you_mean(name.rpartition(".")[2], SWEEPABLE)
    return ConfigError(f"{name} cannot be swept; expected one of {', '.join(SWEEPABLE)}{nearest}")


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _parse(name: str, words: tuple[str, ...]) -> Interval | tuple[Any, ...]:
    if name not in SWEEPABLE:
        raise _not_sweepable(name)
    if not words:
        raise ConfigError(f"{name} has no value to try, expected {values_in_words(name)}.")
    hint = _hint_of(name)
    if any(":" in word for word in words):
        if len(words) > 1:
            raise ConfigError(f"{name} is {' '.join(words)}, expected values, or one interval.")
        return _parse_interval(name, words[0], hint)
    values = tuple(from_text(hint, "None" if word.lower() == "none" else word, name) for word in words)
    if len(set(values)) < len(values):
        raise ConfigError(f"{name} names a value twice: {' '.join(words)}. More --seeds try one again.")
    for value in values:
        with_setting(LONG, {name: value})  # a value out of range is refused here
    return values


def _parse_interval(name: str, word: str, hint: Any) -> Interval:
    kind, *ends = word.split(":")
    if kind not in ("uniform", "loguniform") or len(ends) != 2:
        raise ConfigError(f"{name} is {word!r}, expected values, uniform:LOW:HIGH or loguniform:LOW:HIGH.")
    if not _takes_interval(hint):
        raise ConfigError(f"{name} is {word!r}, but an interval is for numbers with decimals: list its values.")
    low, high = (from_text(float, end, name) for end in ends)
    if low >= high or (kind == "loguniform" and low <= 0):
        positive = ", both above 0" if kind == "loguniform" else ""
        raise ConfigError(f"{name} is {word!r}, expected LOW < HIGH{positive}.")
    for end in (low, high):
        with_setting(LONG, {name: end})
    return Interval(low, high, kind == "loguniform")


def with_setting(config: Config, setting: Mapping[str, Any]) -> Config:
    """The config with some fields set, by their names. Raises ConfigError where a value is impossible."""
    parts = {}
    for part in SECTIONS:
        values = getattr(config, part)
        parts[part] = replace(values, **{name: setting[name] for name in vars(values) if name in setting})
    own = {name: setting[name] for name in vars(config) if name in setting}
    return replace(config, **parts, **own)


def setting_of(values: Mapping[str, Any]) -> Setting:
    """A setting read from JSON. Raises ConfigError where a field cannot be swept, or has an impossible value."""
    if unknown := sorted(values.keys() - set(SWEEPABLE)):
        raise _not_sweepable(unknown[0])
    return {name: from_value(_hint_of(name), value, name) for name, value in values.items()}


@cache
def _hint_of(name: str) -> Any:
    """The type of a field, by its name, in whichever part of a config it is."""
    hints = typing.get_type_hints(Config)
    return next(hint for kind in (Config, *map(hints.get, SECTIONS)) if (hint := typing.get_type_hints(kind).get(name)))


def values_in_words(name: str) -> str:
    """What a sweep takes for a field, on the command line."""
    hint = _hint_of(name)
    interval = ", or one interval uniform:LOW:HIGH or loguniform:LOW:HIGH" if _takes_interval(hint) else ""
    return f"{described(hint)}; several with blanks between{interval}"


def _takes_interval(hint: Any) -> bool:
    return float in (hint, *typing.get_args(hint))


def describe(setting: Mapping[str, Any]) -> str:
    """A setting in words: "learning_rate 0.003, hidden_features 32,64"."""
    return ", ".join(f"{name} {show(value)}" for name, value in setting.items())


def show(value: Any) -> str:
    """A value as it is typed on the command line."""
    return _word(value).removesuffix(".0")
