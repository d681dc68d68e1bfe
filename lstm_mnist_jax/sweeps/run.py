"""Training of a sweep, from its space of settings to its table of results."""

import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.measure import Measurement

from lstm_mnist_jax.config import Config, Execution, Processes
from lstm_mnist_jax.config.space import Space
from lstm_mnist_jax.config.space import describe as describe_setting
from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.model import describe_layers
from lstm_mnist_jax.progress import say
from lstm_mnist_jax.sweeps import results
from lstm_mnist_jax.sweeps.plan import fit, runs, size_of, with_next_members
from lstm_mnist_jax.sweeps.results import MemberResult, SettingResult
from lstm_mnist_jax.training import checkpoint, processes
from lstm_mnist_jax.training.loop import (
    StopRequest,
    TrainingLoop,
    is_complete,
    newest_sound_step,
    noted_signal,
    noted_stop_request,
    refuse_fewer_epochs,
)
from lstm_mnist_jax.training.mesh import DATA_AXIS, describe
from lstm_mnist_jax.training.program import TrainingProgram, refuse_streaming
from lstm_mnist_jax.training.run import begin, load_same
from lstm_mnist_jax.training.run_folder import (
    DataFacts,
    RunFolder,
    environment,
    environment_changes,
    lock,
    read_run_folder,
    refuse_occupied,
    resume_run_folder,
    write_config,
)
from lstm_mnist_jax.training.step import count_steps


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
      run_dir: its folder.
      members: the result of every run so far.
      settings: the result of every setting over its seeds, the best on validation first.
      best: the number of the best run on validation, if any.
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
      config: the config that every setting changes; its seed is the first one.
      space: the settings and the number of seeds, see `space_of`. Without a setting, the seeds only.
      run_dir: the folder: new or empty, or, to resume, the folder of a sweep.
      resume: continue where the sweep in `run_dir` was stopped. `config` may have more epochs.
      execution: on which devices, and with how much of their memory.
      together: the other processes of a distributed sweep, each of which calls this with the same arguments.
      console: where to print progress; None is nowhere.

    Returns:
      The result of every run and of every setting over its seeds, the best run, and how the sweep ended.

    Raises:
      ConfigError: a config is impossible, differs from the resumed one in more than epochs, or has fewer epochs; a
        single run does not fit into memory; Optuna is not installed.
      DataError: the data cannot be loaded.
      RunError: the folder cannot be used, a checkpoint cannot be written, or another process is gone.

    Examples:
      >>> from dataclasses import replace
      >>> from lstm_mnist_jax import PRESETS, space_of, sweep
      >>> smoke = PRESETS["smoke"]
      >>> config = replace(smoke, epochs=1, data=replace(smoke.data, train_examples=640))
      >>> result = sweep(config, space_of({"learning_rate": [0.003, 0.01]}, seeds=2), "runs/grid")
      >>> len(result.members), len(result.settings), result.best in range(4)
      (4, 2, True)
    """
    # Each group makes its own mesh; the session's is made because there may be no device, or not so many.
    settings = (space.describe(), config, run_dir, resume, execution, together, console)
    with processes.distributed_session(*settings) as (config, run_dir, _, console):
        return _sweep(config, space, run_dir, resume, execution, console)


def _sweep(
    config: Config, space: Space, run_dir: Path, resume: bool, execution: Execution, console: Console
) -> SweepResult:
    first = processes.is_first()
    folder = read_run_folder(run_dir) if resume else None
    if folder is not None and not folder.is_sweep:
        raise RunError(f"{run_dir} is a single run, not a sweep. Continue with: lstm-mnist train --resume {run_dir}")
    if folder is None and first:
        refuse_occupied(run_dir)
    dataset = load_same(config)
    refuse_streaming(dataset, execution.device_data_limit)
    began, program = time.perf_counter(), None
    if folder is not None:
        folder = resume_run_folder(folder, config, dataset)
    else:
        folder = RunFolder(run_dir, config, DataFacts.of(dataset), environment(), space=space)
        folder = with_next_members(folder, dataset)
        folder, program = fit(folder, 0, dataset, execution, console)  # before anything is written
    with ExitStack() as stack:
        if first:
            stack.enter_context(lock(run_dir))
            if not resume:
                refuse_occupied(run_dir)  # another process may have made a run in it meanwhile
        stop = stack.enter_context(noted_stop_request())
        say(console, f"sweep {run_dir}: {dataset.describe()}")
        for line in environment_changes(folder.environment):
            say(console, line)
        trained, stopped_by, group = False, None, 0
        while True:
            if group == len(folder.groups):
                folder = with_next_members(folder, dataset)
                if group == len(folder.groups):
                    break
            stopped_by = noted_signal(stop)  # a signal at the end of a group ends the sweep, unless it is the last
            if stopped_by is not None:
                break
            folder, steps, complete = _train_group(folder, group, program, dataset, execution, console, stop)
            trained |= steps > 0
            if not complete:
                stopped_by = noted_signal(stop)
                break
            group, program = group + 1, None
    members = results.member_results(folder)
    if first:
        results.write_csv(folder, members)
        results.plot(folder, members)
        done = sum(results.is_done(folder.member_config(member.member), member) for member in members)
        title = f"{done} of {runs(len(members))} done, {time.perf_counter() - began:.0f} s"
        title += "; means with 95 % confidence intervals, each seed at its best epoch on validation"
        say(console, title)
        found = results.table(folder.config, members)
        # As wide as it is, however narrow the terminal.
        width = Measurement.get(console, console.options.update(max_width=1000), found).maximum
        console.print(found, width=width, crop=False)
        for number in range(len(folder.members)):
            if (own := run_dir / str(number) / "config.json").is_file():
                say(console, f"run {number} was resumed in {own.parent}: that path names the longer run now")
    return SweepResult(
        run_dir=run_dir,
        members=members,
        settings=results.setting_results(members),
        best=results.best_member(members),
        trained=trained,
        stopped_by=stopped_by,
    )


def _train_group(
    folder: RunFolder,
    group: int,
    program: TrainingProgram | None,
    dataset: Dataset,
    execution: Execution,
    console: Console,
    stop: StopRequest,
) -> tuple[RunFolder, int, bool]:
    """Trains a group to its end, or until a signal; `program` is its program, if that is compiled already.

    Returns:
      The folder, where the group may have been split; the number of steps made; whether the group is complete.
    """
    directory = folder.checkpoints_of(group)
    began = time.perf_counter()
    step = newest_sound_step(directory, console)
    if step is not None:
        record = checkpoint.read_record(checkpoint.checkpoint_path(directory, step))
        config = folder.member_config(folder.groups[group][0])
        per_epoch = count_steps(config, dataset)
        refuse_fewer_epochs(folder, config.epochs, step, per_epoch)
        if is_complete(config, step, record.members, per_epoch):
            return folder, 0, True
    if program is None:
        later = range(group, len(folder.groups))
        # Checkpoints are found by the numbers of their groups, which a split shifts.
        started = np.array(any(folder.checkpoints_of(number).exists() for number in later))
        folder, program = fit(folder, group, dataset, execution, console, not processes.gather(started)[0])
    if processes.is_first():
        write_config(folder)
    processes.wait_for_file(folder.path / "config.json")
    states, record = begin(folder, group, program, step, console)
    _print_group(folder, group, program, time.perf_counter() - began, console)
    loop = TrainingLoop(folder, group, program, states, record, console)
    loop.run(stop)
    return folder, loop.step - record.step, loop.is_complete


def _print_group(folder: RunFolder, group: int, program: TrainingProgram, seconds: float, console: Console) -> None:
    members = [folder.members[member] for member in folder.groups[group]]
    settings = {repr(member.setting) for member in members}
    of = f" of {len(settings)} settings" if len(settings) > 1 else ""
    part = f"group {group + 1} of {len(folder.groups)}: " if len(folder.groups) > 1 else ""
    layers = describe_layers(program.configs[0].model)
    names = folder.space.names if folder.space is not None else ()
    fixed = [name for name in names if len({repr(member.setting[name]) for member in members}) == 1]
    fixed_values = f", {describe_setting({name: members[0].setting[name] for name in fixed})}" if part and fixed else ""
    shares = program.mesh.shape[DATA_AXIS]
    shared = f", {shares} for each" if shares > 1 else ""
    say(
        console,
        f"{part}{runs(len(members))} at once{of}{fixed_values}, {layers}, on {describe(program.mesh)}{shared}, "
        f"{size_of(program.device_bytes())} of each device; ready in {seconds:.1f} s",
    )
