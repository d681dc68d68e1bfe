"""Which settings a sweep tries next: all of a grid at once, or round by round those that Optuna proposes."""

import math
from typing import Any

from lstm_mnist_jax.config.space import Interval, Setting, Space
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.sweeps.results import SettingResult

ROUND = 8
"""Settings that Optuna proposes at a time: they are trained together, so none of them knows of the others."""


TRIES = 100
"""How often Optuna is asked for one that was not tried before."""


def next_settings(space: Space, seed: int, results: list[SettingResult]) -> list[Setting]:
    """The settings to train next, given what came of the former ones; none when the sweep is complete.

    The same results give the same settings, so that a sweep which was interrupted goes on as if it had not been.

    Raises:
      ConfigError: Optuna is not installed.
    """
    if not space.optuna:
        return [] if results else space.settings(seed)
    assert space.samples is not None
    axes = space.axes().values()
    most = math.inf if any(isinstance(axis, Interval) for axis in axes) else math.prod(map(len, axes))  # type: ignore[arg-type]
    count = int(min(ROUND, space.samples - len(results), most - len(results)))
    return _propose(space, seed, results, count) if count > 0 else []


def _propose(space: Space, seed: int, results: list[SettingResult], count: int) -> list[Setting]:
    """Settings that were not tried before, each other than the others."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("Optuna is not installed: pip install -e '.[optuna]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Liar: trials of one round are taken to have gone badly, so that they are not all the same.
    sampler = optuna.samplers.TPESampler(seed=(seed + len(results)) % 2**32, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    axes = space.axes()
    distributions = {name: _distribution(axis) for name, axis in axes.items()}
    for result in results:
        # Of a setting that has always diverged the score is minus infinity: Optuna takes it for worse than all others.
        params = {name: _known(axes[name], value) for name, value in result.setting.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=result.score))
    tried, proposed = [result.setting for result in results], []
    for _ in range(TRIES * count):
        params = study.ask(distributions).params
        setting = {name: _value(axes[name], params[name]) for name in axes}
        if setting not in tried:
            tried.append(setting)
            proposed.append(setting)
        if len(proposed) == count:
            break
    return proposed


def _distribution(axis: Interval | tuple[Any, ...]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(axis, Interval):
        return FloatDistribution(axis.low, axis.high, log=axis.logarithmic)
    return CategoricalDistribution(range(len(axis)))  # their numbers: Optuna knows no tuples


def _known(axis: Interval | tuple[Any, ...], value: Any) -> Any:
    return value if isinstance(axis, Interval) else axis.index(value)


def _value(axis: Interval | tuple[Any, ...], proposed: Any) -> Any:
    if not isinstance(axis, Interval):
        return axis[proposed]
    return axis.rounded(proposed)
