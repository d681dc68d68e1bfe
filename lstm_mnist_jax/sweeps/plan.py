"""What a sweep trains next: its settings (a grid, or Optuna's proposals), and how many runs fit into memory at once."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from rich.console import Console

from lstm_mnist_jax.config import Config, Execution
from lstm_mnist_jax.config.space import Interval, Setting, Space, setting_of
from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.progress import say
from lstm_mnist_jax.sweeps.results import SettingResult, member_results, setting_results
from lstm_mnist_jax.training import processes
from lstm_mnist_jax.training.feed import GIB
from lstm_mnist_jax.training.mesh import MEMBER_AXIS, make_mesh
from lstm_mnist_jax.training.program import TrainingProgram, make_program, shape_of
from lstm_mnist_jax.training.run_folder import Member, RunFolder
from lstm_mnist_jax.training.step import count_steps

ROUND = 8
"""Settings that Optuna proposes at a time: they are trained together, without the results of each other."""

TRIES = 100
"""How often Optuna is asked for a setting that was not tried before."""

SPARE = 0.8
"""The fraction of free memory that a program may take: peaks up to a sixth above the estimate were measured."""


def with_next_members(folder: RunFolder, dataset: Dataset) -> RunFolder:
    """The folder with the members to train next, if any, in groups of one shape."""
    assert folder.space is not None
    known = setting_results(member_results(folder)) if folder.members else []
    in_order = sorted(known, key=lambda result: result.members[0].member)
    proposed = next_settings(folder.space, folder.config.seed, in_order)
    settings = json.loads(processes.gather_text(json.dumps(proposed))[0])
    seeds = [(folder.config.seed + n) % 2**32 for n in range(folder.space.seeds)]
    start = len(folder.members)
    members = [Member(seed, setting_of(setting)) for setting in settings for seed in seeds]
    folder = replace(folder, members=folder.members + tuple(members))
    by_shape: dict[Config, list[int]] = {}
    for member in range(start, len(folder.members)):
        config = folder.member_config(member)
        count_steps(config, dataset)  # refuses impossible configs before anything is trained
        by_shape.setdefault(shape_of(config), []).append(member)
    return replace(folder, groups=folder.groups + tuple(map(tuple, by_shape.values())))


def next_settings(space: Space, seed: int, results: list[SettingResult]) -> list[Setting]:
    """The settings to train next, given the results so far; none when the sweep is complete.

    The same results give the same settings, so an interrupted sweep continues with the same ones.

    Raises:
      ConfigError: Optuna is not installed.
    """
    if not space.optuna:
        return [] if results else space.settings(seed)
    assert space.samples is not None
    axes = space.axes()
    lengths = (math.inf if isinstance(axis, Interval) else len(axis) for axis in axes.values())
    count = int(min(ROUND, space.samples - len(results), math.prod(lengths) - len(results)))
    if count <= 0:
        return []
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "Optuna is not installed: pip install 'lstm-mnist-jax[optuna]', or pip install -e '.[optuna]' in a "
            "checkout."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Constant liar: pending trials of a round count as bad ones, so that they are not all the same.
    sampler = optuna.samplers.TPESampler(seed=(seed + len(results)) % 2**32, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions: dict[str, Any] = {}
    for name, axis in axes.items():
        if isinstance(axis, Interval):
            distributions[name] = optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.logarithmic)
        else:  # the indices of its values: Optuna takes no tuples
            distributions[name] = optuna.distributions.CategoricalDistribution(range(len(axis)))
    for result in results:
        params = {
            name: value if isinstance(axis := axes[name], Interval) else axis.index(value)
            for name, value in result.setting.items()
        }
        # A setting that has always diverged has a score of minus infinity, the worst for Optuna.
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=result.score))
    tried, proposed = [result.setting for result in results], []
    for _ in range(TRIES * count):
        params = study.ask(distributions).params
        setting = {
            name: axis.rounded(params[name]) if isinstance(axis, Interval) else axis[params[name]]
            for name, axis in axes.items()
        }
        if setting not in tried:
            tried.append(setting)
            proposed.append(setting)
        if len(proposed) == count:
            break
    return proposed


def fit(
    folder: RunFolder,
    group: int,
    dataset: Dataset,
    execution: Execution,
    console: Console,
    may_split: bool = True,
) -> tuple[RunFolder, TrainingProgram]:
    """A group's compiled program, for as many of its members as fit into memory; the others follow as further groups.

    Raises:
      ConfigError: not even one member for each device fits.
    """
    members, free = folder.groups[group], _free_bytes(execution)
    size = len(members)
    while True:
        configs = [folder.member_config(member) for member in members[:size]]
        mesh = make_mesh(execution, configs[0].batch_size, len(configs))
        program = make_program(configs, dataset, mesh, execution.device_data_limit).compile()
        needed, axis = program.device_bytes(), mesh.shape[MEMBER_AXIS]
        if needed <= free:
            break
        if size <= axis or not may_split:
            raise ConfigError(
                f"{runs(size)} at once would take {size_of(needed)} of each device's memory, but only "
                f"{size_of(free)} may be used. Use --memory-limit if more is free than was found, or "
                + ("a smaller --batch-size or narrower layers." if may_split else "devices with more.")
            )
        # As many for each device as fit, if all that is needed grows with them.
        size = max(axis, min(size - 1, int(size * free / needed)) // axis * axis)
        del program
    parts = tuple(members[start : start + size] for start in range(0, len(members), size))
    if len(parts) > 1:
        say(console, f"{len(members)} runs do not fit into memory at once: they are trained in {len(parts)} parts")
    return replace(folder, groups=(*folder.groups[:group], *parts, *folder.groups[group + 1 :])), program


def runs(count: int) -> str:
    """A number of runs in words."""
    return "1 run" if count == 1 else f"{count} runs"


def _free_bytes(execution: Execution) -> float:
    """Bytes of each device's memory that may be used, the least of all processes."""
    if execution.memory_limit is not None:
        return execution.memory_limit * GIB
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        free = min(psutil.virtual_memory().available, _free_in_container()) / len(devices)
    else:
        stats = [device.memory_stats() or {} for device in devices]
        free = min(s["bytes_limit"] - s["bytes_in_use"] if "bytes_limit" in s else float("inf") for s in stats)
    return float(processes.gather(np.array(SPARE * free)).min())


def _free_in_container() -> float:
    """Bytes that Linux's control group (a container, a SLURM job) leaves to its processes."""
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # none, "max", or another system
        return math.inf


def size_of(count: int | float) -> str:
    """A number of bytes in words."""
    return f"{count / GIB:.3g} GiB" if count >= GIB else f"{count / 2**20:.3g} MiB"
