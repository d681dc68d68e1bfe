"""Several runs at once, over seeds, hyperparameters and networks: `sweep` is the whole of it.

The settings of a sweep come from its space at once, or from Optuna round by round. Runs whose arrays have the same
shapes are a group, which one program trains, as far as it fits into memory.
"""

import json
import math
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from rich.console import Console

from lstm_mnist_jax.config import SWEEPABLE, Config, Execution, Processes
from lstm_mnist_jax.config.space import Interval, Setting, Space, describe, setting_of, space_of
from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.errors import ConfigError, RunError, how_to_install, os_errors_as
from lstm_mnist_jax.model import describe_layers
from lstm_mnist_jax.progress import print_table, say
from lstm_mnist_jax.statistics import FOR_AN_INTERVAL
from lstm_mnist_jax.training import checkpoint, loop, mesh, processes, results, run_folder
from lstm_mnist_jax.training.feed import GIB
from lstm_mnist_jax.training.metrics import Guessing, OnEpoch, likely_causes
from lstm_mnist_jax.training.program import TrainingProgram, make_program, refuse_streaming, shape_of
from lstm_mnist_jax.training.results import MemberResult, SettingResult
from lstm_mnist_jax.training.run import begin, load_same
from lstm_mnist_jax.training.run_folder import Member, RunFolder
from lstm_mnist_jax.training.step import count_steps

__all__ = ["SWEEPABLE", "MemberResult", "SettingResult", "Space", "SweepResult", "describe", "space_of", "sweep"]

ROUND = 8
"""Settings that Optuna proposes at a time: they are trained together, without the results of each other."""

TRIES = 100
"""How often Optuna is asked for a setting that was not tried before."""

SPARE = 0.8
"""The fraction of free memory that a program may take: peaks up to a sixth above the estimate were measured."""


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
      run_dir: its folder.
      members: the result of every run so far.
      settings: the result of every setting over its seeds, the best on validation first.
      best: the number of the best run on validation, if any.
      learned: whether any run is better than guessing.
      trained: whether any step was made; a resumed sweep may have been complete.
      stopped_by: the signal (SIGINT, SIGTERM, SIGHUP) that ended it early, or None.
    """

    run_dir: Path
    members: list[MemberResult]
    settings: list[SettingResult]
    best: int | None
    learned: bool
    trained: bool
    stopped_by: signal.Signals | None


def sweep(
    config: Config,
    space: Space,
    run_dir: Path | str,
    *,
    resume: bool = False,
    execution: Execution = Execution(),
    together: Processes = Processes(),
    console: Console | None = None,
    on_epoch: OnEpoch | None = None,
) -> SweepResult:
    """Trains every setting of a space with every seed, as many as fit in one compiled program.

    Args:
      config: the config that every setting changes; its seed is the first one.
      space: the settings and the number of seeds, see `space_of`. Without a setting, the seeds only.
      run_dir: the folder: new or empty, or, to resume, the folder of a sweep.
      resume: continue where the sweep in `run_dir` was stopped. `config` may have more epochs.
      execution: on which devices, and with how much of their memory.
      together: the other processes of a distributed sweep, each of which calls this with the same arguments.
      console: where to print progress; None is nowhere.
      on_epoch: called after each epoch that is trained now, once for each run, with its `EpochMetrics` and the path of
        the run (SWEEP/NUMBER), in process 0 only: for an experiment tracker. An exception in it stops the sweep, with
        this epoch saved.

    Returns:
      The result of every run and of every setting over its seeds, the best run, and how the sweep ended.

    Raises:
      ConfigError: a config is impossible, differs from the resumed one in more than epochs, or has fewer epochs; a
        single run does not fit into memory; Optuna is not installed.
      DataError: the data cannot be loaded.
      RunError: the folder cannot be used, a checkpoint cannot be written, another process is gone, or `on_epoch` raised
        an exception (the sweep is saved; the exception is its `__cause__`).

    Examples:
      >>> from dataclasses import replace
      >>> from lstm_mnist_jax import PRESETS, space_of, sweep
      >>> smoke = PRESETS["smoke"]
      >>> config = replace(smoke, epochs=1, data=replace(smoke.data, train_examples=640))
      >>> result = sweep(config, space_of({"learning_rate": [0.003, 0.01]}, seeds=2), "runs/grid")
      >>> len(result.members), len(result.settings), result.best in range(4)
      (4, 2, True)
    """
    if not isinstance(space, Space):
        raise ConfigError(f"The space is {space!r}, expected that of space_of({{'learning_rate': [0.003, 0.01]}}).")
    # Each group makes its own mesh; the session's is made because there may be no device, or not so many.
    settings = (space.describe(), config, run_dir, resume, execution, together, console)
    with processes.distributed_session(*settings) as (config, run_dir, devices, console):
        environment = run_folder.environment(devices.size)
        for line in (mesh.too_many(devices), mesh.rounding(jax.default_backend(), config.model.precision)):
            if line:
                say(console, line)
        return _sweep(config, space, run_dir, resume, execution, environment, console, on_epoch)


def _sweep(
    config: Config,
    space: Space,
    run_dir: Path,
    resume: bool,
    execution: Execution,
    environment: dict[str, str],
    console: Console,
    on_epoch: OnEpoch | None,
) -> SweepResult:
    first = processes.is_first()
    folder = run_folder.read_run_folder(run_dir) if resume else None
    if folder is not None and not folder.is_sweep:
        raise RunError(f"{run_dir} is a single run, not a sweep. Continue with: lstm-mnist train --resume {run_dir}")
    if folder is None:
        space.refuse_without_effect(config)
        if first:
            run_folder.refuse_occupied(run_dir)
    config, dataset = load_same(config, folder)
    if folder is not None:
        folder = run_folder.resume_run_folder(folder, config, dataset)
    refuse_streaming(dataset, execution.device_data_limit)
    began, program = time.perf_counter(), None
    if folder is None:
        folder = RunFolder(run_dir, config, run_folder.DataFacts.of(dataset), environment, space=space)
        folder = with_next_members(folder, dataset)
        folder, program = fit(folder, 0, dataset, execution, console)  # before anything is written
    with ExitStack() as stack:
        if first:
            stack.enter_context(run_folder.lock(run_dir))
            if not resume:
                run_folder.refuse_occupied(run_dir)  # another process may have made a run in it meanwhile
            run_folder.write_novelty(folder, dataset)
        stop = stack.enter_context(loop.noted_stop_request())
        say(console, f"sweep {run_dir}")
        say(console, folder.data.describe(dataset))
        for line in run_folder.environment_changes(folder.environment, environment):
            say(console, line)
        folder = replace(folder, environment=environment)
        trained, stopped_by, group = False, None, 0
        while True:
            if group == len(folder.groups):
                folder = with_next_members(folder, dataset)
                if group == len(folder.groups):
                    break
            stopped_by = loop.noted_signal(stop)  # a signal at the end of a group ends the sweep, unless it is the last
            if stopped_by is not None:
                break
            folder, steps, complete = _train_group(folder, group, program, dataset, execution, console, stop, on_epoch)
            trained |= steps > 0
            if not complete:
                stopped_by = loop.noted_signal(stop)
                break
            group, program = group + 1, None
    members = results.member_results(folder)
    guessing = Guessing.of(np.bincount(dataset.validation.labels))
    useless = [each for each in members if each.history and guessing.is_as_good_as(each.history)]
    learned = len(useless) < sum(each.best is not None for each in members)
    if first:
        results.write_csv(folder, members)
        draw_results(folder, members, dataset)
        done = sum(results.is_done(folder.member_config(member.member), member) for member in members)
        say(console, f"{done} of {runs(len(members))} done, {time.perf_counter() - began:.0f} s")
        assert folder.space is not None
        intervals = f" ({FOR_AN_INTERVAL})" if folder.space.seeds < 3 else " with 95 % confidence intervals"
        say(console, f"means{intervals}, each seed at its best epoch on validation:")
        print_table(console, results.table(folder.config, members))
        if useless and stopped_by is None:
            listed = ", ".join(str(each.member) for each in useless[:20]) + " ..." * (len(useless) > 20)
            say(console, f"no epoch is much better than guessing on validation in {runs(len(useless))}: {listed}")
            rates = [folder.member_config(each.member).optimizer.learning_rate for each in useless]
            say(console, likely_causes(rates, max(each.epochs for each in useless), dataset.train.images))
        if not learned and stopped_by is None:
            diverged = sum(each.diverged for each in members)
            say(
                console, f"no run has learned anything{f' ({diverged} diverged)' if diverged else ''}: none is the best"
            )
            say(console, "  sweep other learning rates, or with --clip-norm 1, or train for more epochs")
        for number in range(len(folder.members)):
            if (own := run_dir / str(number) / "config.json").is_file():
                say(console, f"run {number} was resumed in {own.parent}: that path names the longer run now")
    return SweepResult(
        run_dir=run_dir,
        members=members,
        settings=results.setting_results(members),
        best=results.best_member(members),
        learned=learned,
        trained=trained,
        stopped_by=stopped_by,
    )


def draw_results(folder: RunFolder, members: list[MemberResult], dataset: Dataset) -> None:
    """Draws results.png and results-curves.png. Raises RunError where they cannot be written."""
    from lstm_mnist_jax.report import comparison, style  # only for those who use it: half a second

    examples = {split: len(dataset.splits[split]) for split in comparison.SPLITS}
    settings = results.setting_results(members)
    entries = [comparison.entry_of(folder, setting, examples) for setting in settings]
    with os_errors_as(RunError, folder.path, "written to"):
        for picture in comparison.comparison_pictures(entries):
            name = picture.name.replace("comparison", "results")
            (folder.path / f"{name}.png").write_bytes(style.file_bytes(picture.figure, "png"))


def _train_group(
    folder: RunFolder,
    group: int,
    program: TrainingProgram | None,
    dataset: Dataset,
    execution: Execution,
    console: Console,
    stop: loop.StopRequest,
    on_epoch: OnEpoch | None,
) -> tuple[RunFolder, int, bool]:
    """Trains a group to its end, or until a signal; `program` is its program, if that is compiled already.

    Returns:
      The folder, where the group may have been split; the number of steps made; whether the group is complete.
    """
    directory = folder.checkpoints_of(group)
    began = time.perf_counter()
    step = loop.newest_sound_step(directory, console)
    if step is not None:
        record = checkpoint.read_record(checkpoint.checkpoint_path(directory, step))
        config = folder.member_config(folder.groups[group][0])
        per_epoch = count_steps(config, dataset)
        loop.refuse_fewer_epochs(folder, config.epochs, step, per_epoch)
        if loop.is_complete(config, step, record.members, per_epoch):
            return folder, 0, True
    if program is None:
        later = range(group, len(folder.groups))
        # Checkpoints are found by the numbers of their groups, which a split shifts.
        started = np.array(any(folder.checkpoints_of(number).exists() for number in later))
        folder, program = fit(folder, group, dataset, execution, console, not processes.gather(started)[0])
    if processes.is_first():
        run_folder.write_config(folder)
    processes.wait_for_file(folder.path / "config.json")
    states, record = begin(folder, group, program, step, console)
    _print_group(folder, group, program, time.perf_counter() - began, console)
    training = loop.TrainingLoop(folder, group, program, states, record, console, on_epoch)
    training.run(stop)
    return folder, training.step - record.step, training.is_complete


def _print_group(folder: RunFolder, group: int, program: TrainingProgram, seconds: float, console: Console) -> None:
    members = [folder.members[member] for member in folder.groups[group]]
    settings = {repr(member.setting) for member in members}
    of = f" of {len(settings)} settings" if len(settings) > 1 else ""
    part = f"group {group + 1} of {len(folder.groups)}: " if len(folder.groups) > 1 else ""
    layers = describe_layers(program.configs[0].model)
    names = folder.space.names if folder.space is not None else ()
    fixed = [name for name in names if len({repr(member.setting[name]) for member in members}) == 1]
    fixed_values = f", {describe({name: members[0].setting[name] for name in fixed})}" if part and fixed else ""
    shares = program.mesh.shape[mesh.DATA_AXIS]
    shared = f", {shares} for each" if shares > 1 else ""
    say(console, f"{part}{runs(len(members))} at once{of}{fixed_values}")
    say(
        console,
        f"{layers}, on {mesh.describe(program.mesh)}{shared}, {size_of(program.device_bytes())} of each device; "
        f"ready in {seconds:.1f} s",
    )


def with_next_members(folder: RunFolder, dataset: Dataset) -> RunFolder:
    """The folder with the members to train next, if any, in groups of one shape."""
    assert folder.space is not None
    known = results.setting_results(results.member_results(folder)) if folder.members else []
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


def next_settings(space: Space, seed: int, known: list[SettingResult]) -> list[Setting]:
    """The settings to train next, given the results `known` so far; none when the sweep is complete.

    The same results give the same settings, so an interrupted sweep continues with the same ones.

    Raises:
      ConfigError: Optuna is not installed.
    """
    if not space.optuna:
        return [] if known else space.settings(seed)
    assert space.samples is not None
    axes = space.axes()
    lengths = (math.inf if isinstance(axis, Interval) else len(axis) for axis in axes.values())
    count = int(min(ROUND, space.samples - len(known), math.prod(lengths) - len(known)))
    if count <= 0:
        return []
    try:
        import optuna
    except ImportError:
        raise ConfigError(f"Optuna is not installed: {how_to_install('optuna')}.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Constant liar: pending trials of a round count as bad ones, so that they are not all the same.
    sampler = optuna.samplers.TPESampler(seed=(seed + len(known)) % 2**32, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions: dict[str, Any] = {}
    for name, axis in axes.items():
        if isinstance(axis, Interval):
            distributions[name] = optuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.logarithmic)
        else:  # the indices of its values: Optuna takes no tuples
            distributions[name] = optuna.distributions.CategoricalDistribution(range(len(axis)))
    for result in known:
        params = {
            name: value if isinstance(axis := axes[name], Interval) else axis.index(value)
            for name, value in result.setting.items()
        }
        # A setting that has always diverged has a score of minus infinity, the worst for Optuna.
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=result.score))
    tried, proposed = [result.setting for result in known], []
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
        devices = mesh.make_mesh(execution, configs[0].batch_size, len(configs))
        program = make_program(configs, dataset, devices, execution.device_data_limit).compile()
        needed, axis = program.device_bytes(), devices.shape[mesh.MEMBER_AXIS]
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
