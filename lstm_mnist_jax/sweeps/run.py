"""A sweep from its space of settings to its table of results."""

import json
import signal
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.measure import Measurement

from lstm_mnist_jax.config import Config, Execution, Processes
from lstm_mnist_jax.data import Dataset, load
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.model import describe_layers
from lstm_mnist_jax.reporting.progress import ProgressDisplay, say
from lstm_mnist_jax.sweeps import results
from lstm_mnist_jax.sweeps.folder import (
    FILE,
    Member,
    PopulationFolder,
    read_population_folder,
    write_population_folder,
)
from lstm_mnist_jax.sweeps.group import GroupCourse, GroupRecord, Standing, has_ended, read_group
from lstm_mnist_jax.sweeps.memory import fit, size_of, trainings
from lstm_mnist_jax.sweeps.metrics import GroupMetricsWriter
from lstm_mnist_jax.sweeps.plot import plot
from lstm_mnist_jax.sweeps.results import MemberResult, SettingResult
from lstm_mnist_jax.sweeps.search import next_settings
from lstm_mnist_jax.sweeps.space import Space, setting_of
from lstm_mnist_jax.sweeps.space import describe as describe_setting
from lstm_mnist_jax.training import checkpoint, processes
from lstm_mnist_jax.training.checkpoint import Checkpoints
from lstm_mnist_jax.training.loop import drive, newest_sound_step, noted_signal
from lstm_mnist_jax.training.mesh import DATA_AXIS, describe
from lstm_mnist_jax.training.program import Stages, TrainingProgram, shape_of
from lstm_mnist_jax.training.run_folder import (
    DataFacts,
    environment,
    environment_changes,
    lock,
    refuse_changes,
    refuse_occupied,
)
from lstm_mnist_jax.training.signals import StopRequest
from lstm_mnist_jax.training.start import begun
from lstm_mnist_jax.training.step import count_steps


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended.

    Attributes:
      run_dir: its folder.
      members: what came of every training so far.
      settings: of every setting over its seeds, the best on validation first.
      best: the number of the best training on validation, if any.
      trained: whether any step was made; a resumed sweep may have been complete.
      stopped_by: the signal (SIGINT, SIGTERM, SIGHUP) that ended it early, or None.
    """

    run_dir: Path
    members: list[MemberResult]
    settings: list[SettingResult]
    best: int | None
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
) -> SweepResult:
    """Trains every setting of a space with every seed, as many as fit in one compiled program.

    Args:
      config: what all start from; its seed is the first one.
      space: the settings and how many seeds. Without any name in it, the seeds alone.
      run_dir: the folder: new or empty, or, to resume, one that a sweep made.
      resume: go on where the sweep in `run_dir` was stopped. `config` may have more epochs.
      execution: on which devices, and with how much of their memory.
      together: with which other processes, each of which calls this with the same arguments.
      console: where to tell how it goes; None is nowhere.

    Raises:
      ConfigError: a config makes no sense, differs from the resumed one in more than epochs, or has fewer; one
        training alone does not fit into memory; Optuna is asked for and not installed.
      DataError: the data cannot be loaded.
      RunError: the folder cannot be used, a checkpoint not written, or another process is gone.
    """
    what = space.describe()
    # The mesh is each group's own; this one is made because there may be no device, or not so many.
    with begun(what, config, run_dir, resume, execution, together, console, None) as (config, run_dir, _):
        return _sweep(config, space, run_dir, resume, execution, console or Console(quiet=True))


def _sweep(
    config: Config, space: Space, run_dir: Path, resume: bool, execution: Execution, console: Console
) -> SweepResult:
    first = processes.is_first()
    console = console if first else Console(quiet=True)
    folder = read_population_folder(run_dir) if resume else None
    if folder is None and first:
        refuse_occupied(run_dir)
    dataset = load(**vars(config.data))
    processes.require_same(dataset.fingerprint(), f"The processes have different data at {config.data.source!r}.")
    began, population = time.perf_counter(), None
    if folder is not None:
        folder = _resume(folder, config, dataset)
    else:
        folder = PopulationFolder(run_dir, config, space, (), (), DataFacts.of(dataset), environment())
        folder = _with_next_members(folder, dataset)
        folder, population = fit(folder, 0, dataset, execution, console)  # before anything is written
    with ExitStack() as stack:
        if first:
            stack.enter_context(lock(run_dir))
            if not resume:
                refuse_occupied(run_dir)  # somebody may have been here meanwhile
        stop = stack.enter_context(StopRequest())
        say(console, f"sweep {run_dir}: {dataset.describe()}")
        for line in environment_changes(folder.environment):
            say(console, line)
        trained, stopped_by, group = False, None, 0
        while True:
            if group == len(folder.groups):
                folder = _with_next_members(folder, dataset)
                if group == len(folder.groups):
                    break
            stopped_by = noted_signal(stop)  # a signal at the end of a group ends the sweep, unless it is the last
            if stopped_by is not None:
                break
            folder, steps, complete = _train_group(folder, group, population, dataset, execution, console, stop)
            trained |= steps > 0
            if not complete:
                stopped_by = noted_signal(stop)
                break
            group, population = group + 1, None
    members = results.member_results(folder)
    if first:
        results.write_csv(folder, members)
        plot(folder, members)
        done = sum(results.is_done(folder.member_config(member.member), member) for member in members)
        title = f"{done} of {trainings(len(members))} done, {time.perf_counter() - began:.0f} s"
        title += "; means with 95 % intervals, each seed at its best epoch on validation"
        say(console, title)
        found = results.table(folder.config, members)
        # As wide as it is, however narrow the terminal.
        width = Measurement.get(console, console.options.update(max_width=1000), found).maximum
        console.print(found, width=width, crop=False)
    return SweepResult(
        run_dir=run_dir,
        members=members,
        settings=results.setting_results(members),
        best=results.best_member(members),
        trained=trained,
        stopped_by=stopped_by,
    )


def _resume(folder: PopulationFolder, config: Config, dataset: Dataset) -> PopulationFolder:
    """The folder of a sweep that goes on with `config`."""
    changed = replace(folder, config=config)
    refuse_changes(folder.config, config)
    for member in range(len(folder.members)):  # whose learning rate may fall though the config's does not
        refuse_changes(folder.member_config(member), changed.member_config(member))
    if config.early_stop_epochs != folder.config.early_stop_epochs:
        raise ConfigError(
            f"early_stop_epochs is {folder.config.early_stop_epochs} in the sweep, {config.early_stop_epochs} was "
            "asked for. Trainings of it may have stopped already; leave it out, or start a new sweep."
        )
    folder.data.require_same(dataset, folder.path)
    return changed


def _with_next_members(folder: PopulationFolder, dataset: Dataset) -> PopulationFolder:
    """The folder with the members that come next, if any, in groups of one shape."""
    known = results.setting_results(results.member_results(folder)) if folder.members else []
    in_order = sorted(known, key=lambda result: result.members[0].member)
    proposed = next_settings(folder.space, folder.config.seed, in_order)
    settings = json.loads(processes.told_by_first(json.dumps(proposed)))
    seeds = [(folder.config.seed + n) % 2**32 for n in range(folder.space.seeds)]
    start = len(folder.members)
    members = [Member(seed, setting_of(setting)) for setting in settings for seed in seeds]
    folder = replace(folder, members=folder.members + tuple(members))
    by_shape: dict[Config, list[int]] = {}
    for member in range(start, len(folder.members)):
        config = folder.member_config(member)
        count_steps(config, dataset)  # what cannot be trained is refused before anything is
        by_shape.setdefault(shape_of(config), []).append(member)
    return replace(folder, groups=folder.groups + tuple(map(tuple, by_shape.values())))


def _train_group(
    folder: PopulationFolder,
    group: int,
    population: TrainingProgram | None,
    dataset: Dataset,
    execution: Execution,
    console: Console,
    stop: StopRequest,
) -> tuple[PopulationFolder, int, bool]:
    """Trains a group to its end, or until a signal.

    Args:
      folder, group: which group.
      population: its program, if that is compiled already.
      dataset, execution, console: as for `sweep`.
      stop: notes signals.

    Returns:
      The folder, where the group may have been split; how many steps were made; whether the group is complete.
    """
    first, directory = processes.is_first(), folder.checkpoints(group)
    began = time.perf_counter()
    step = newest_sound_step(directory, console)
    if step is not None:
        record = checkpoint.read_record(checkpoint.checkpoint_path(directory, step), GroupRecord)
        if is_over(record, folder, group, dataset):
            return folder, 0, True
    if population is None:
        later = range(group, len(folder.groups))
        # Checkpoints are found by the numbers of their groups, which a split shifts.
        begun = np.array(any(folder.checkpoints(number).exists() for number in later))
        may_split = not processes.gather(begun)[0]
        folder, population = fit(folder, group, dataset, execution, console, may_split)
    if first:
        write_population_folder(folder)
    processes.wait_for_file(folder.path / FILE)
    if step is None:
        state = population.init()
        # Two buffers: the newest is used up by the next step.
        stages = Stages(state, jax.tree.map(jnp.copy, state))
        record = GroupRecord(0, population.places, 0.0, (Standing(),) * len(folder.groups[group]))
    else:
        stages, record = read_group(directory, step, population, console)
    _introduce(folder, group, population, time.perf_counter() - began, console)
    epochs, per_epoch = folder.config.epochs, population.steps_per_epoch
    with ExitStack() as stack:
        keep = folder.config.checkpoints.keep_checkpoints
        checkpoints = stack.enter_context(closing(Checkpoints(directory, keep)))
        writer = None
        if first:
            settings = [member.setting for member in folder.members]
            writer = GroupMetricsWriter(folder.metrics, group, record.step, settings.__getitem__)
            stack.enter_context(closing(writer))
        display = stack.enter_context(ProgressDisplay(console, epochs, per_epoch, record.step))
        course = GroupCourse(folder, group, population, stages, record, checkpoints, writer, display)
        drive(course, stop)
    return folder, course.step - record.step, course.is_complete


def is_over(record: GroupRecord, folder: PopulationFolder, group: int, dataset: Dataset) -> bool:
    """Whether there is nothing more to train in a group."""
    config = folder.member_config(folder.groups[group][0])
    total = config.epochs * count_steps(config, dataset)
    if record.step > total:
        raise ConfigError(f"epochs is {config.epochs}, but {folder.path} was trained for more already.")
    per_epoch = count_steps(config, dataset)
    return record.step == total or all(has_ended(config, record.step, s, per_epoch) for s in record.members)


def _introduce(
    folder: PopulationFolder, group: int, population: TrainingProgram, seconds: float, console: Console
) -> None:
    members = [folder.members[member] for member in folder.groups[group]]
    settings = {repr(member.setting) for member in members}
    of = f" of {len(settings)} settings" if len(settings) > 1 else ""
    part = f"group {group + 1} of {len(folder.groups)}: " if len(folder.groups) > 1 else ""
    layers = describe_layers(population.configs[0].model)
    fixed = [name for name in folder.space.names if len({repr(member.setting[name]) for member in members}) == 1]
    told = f", {describe_setting({name: members[0].setting[name] for name in fixed})}" if part and fixed else ""
    shares = population.mesh.shape[DATA_AXIS]
    shared = f", {shares} for each" if shares > 1 else ""
    say(
        console,
        f"{part}{trainings(len(members))} at once{of}{told}, {layers}, on {describe(population.mesh)}{shared}, "
        f"{size_of(population.device_bytes())} of each device; ready in {seconds:.1f} s",
    )
