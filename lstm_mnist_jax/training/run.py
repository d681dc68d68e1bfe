"""Training of one run, from its config to its last checkpoint; and what it shares with the groups of a sweep."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from lstm_mnist_jax.config import Config, Execution, Processes
from lstm_mnist_jax.data import Dataset, load
from lstm_mnist_jax.data.sources import load_again
from lstm_mnist_jax.errors import ConfigError, DataError, RunError
from lstm_mnist_jax.model import SLOWER, describe_layers, runs_through_flax, task_of
from lstm_mnist_jax.progress import say
from lstm_mnist_jax.rnn import native
from lstm_mnist_jax.training import checkpoint, processes, run_folder
from lstm_mnist_jax.training.checkpoint import MemberStatus, Record
from lstm_mnist_jax.training.loop import (
    TrainingLoop,
    is_complete,
    newest_sound_step,
    noted_stop_request,
    refuse_fewer_epochs,
)
from lstm_mnist_jax.training.mesh import describe, hint, rounding
from lstm_mnist_jax.training.metrics import EpochMetrics, OnEpoch, read_metrics
from lstm_mnist_jax.training.new_run import make_run_of_member
from lstm_mnist_jax.training.program import LatestAndBest, TrainingProgram, copy_of, make_program
from lstm_mnist_jax.training.run_folder import RunFolder


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training run.

    Attributes:
      run_dir: the run's folder.
      epochs: the metrics of every epoch of the run, those before a resume included.
      best: the best epoch on validation, the earliest of equals; None before the first ends, and where no epoch was
        better than the imported weights that the run began with.
      best_step: the step of the best weights.
      test_examples: the number of test examples.
      trained: whether any step was made; a resumed run may have been complete.
      stopped_by: the signal (SIGINT, SIGTERM, SIGHUP) that ended the run early, or None.
      warning: a text where no epoch was much better than guessing, or None.
    """

    run_dir: Path
    epochs: list[EpochMetrics]
    best: EpochMetrics | None
    best_step: int | None
    test_examples: int
    trained: bool
    stopped_by: signal.Signals | None
    warning: str | None


def train(
    config: Config,
    run_dir: Path | str,
    *,
    resume: bool = False,
    execution: Execution = Execution(),
    together: Processes = Processes(),
    console: Console | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainingResult:
    """Trains a run, new or resumed, to its last epoch or to the first Ctrl-C or SIGTERM.

    Args:
      config: what to train.
      run_dir: the run's folder: new or empty, or, to resume, the folder of a run. A run of a sweep can be
        resumed by its path (SWEEP/3, SWEEP/best): it becomes a run in a folder of that name.
      resume: continue from the newest undamaged checkpoint of `run_dir`. The result is that of a run that was not
        stopped, bit for bit on the same machine and number of devices.
      execution: on which devices.
      together: the other processes of a distributed run, each of which calls this with the same config and folder.
      console: where to print progress; None is nowhere.
      on_epoch: called after each epoch that is trained now with its `EpochMetrics` and the run's folder, in process 0
        only: for an experiment tracker. The epoch's checkpoint may still be under way. An exception in it stops the
        run, with this epoch saved.

    Returns:
      The metrics of every epoch, the best epoch, and how the run ended.

    Raises:
      ConfigError: the config is impossible, with this data or on these devices, or differs from the run's.
      DataError: the data cannot be loaded.
      RunError: the folder cannot be used, a checkpoint cannot be written, the loss is not finite, another process
        is gone, or `on_epoch` raised an exception (the run is saved; the exception is its `__cause__`).

    Examples:
      >>> from dataclasses import replace
      >>> from lstm_mnist_jax import PRESETS, train
      >>> smoke = PRESETS["smoke"]
      >>> config = replace(smoke, epochs=1, tensorboard=False, data=replace(smoke.data, train_examples=640))
      >>> result = train(config, "runs/first")
      >>> len(result.epochs), result.best.step, result.test_examples
      (1, 10, 10000)
    """
    settings = ("one", config, run_dir, resume, execution, together, console)
    with processes.distributed_session(*settings) as (config, run_dir, mesh, console), ExitStack() as stack:
        first = processes.is_first()
        former = run_folder.read_run(run_dir) if resume else None
        if former is None and first:
            run_folder.refuse_occupied(run_dir)
        config, dataset = load_same(config, former)
        if former is not None:  # what cannot be resumed is refused before anything is written
            run_folder.resume_run_folder(former, config, dataset)
        program = make_program([config], dataset, mesh, execution.device_data_limit)
        if former is not None and former.member is not None:
            if jax.process_count() > 1:
                raise RunError(
                    f"{former.path} is a run of a sweep. Resume it once with --num-processes 1, which makes its run "
                    "folder; several processes can go on from there."
                )
            former = make_run_of_member(former, config.epochs, program.steps_per_epoch, stack)
        elif first:
            path = run_dir if former is None else former.path  # of SWEEP/best, that of SWEEP/3
            stack.enter_context(run_folder.lock(path))
        if former is None:
            folder = run_folder.create_run_folder(run_dir, config, dataset, mesh.size)
        else:
            folder = run_folder.resume_run_folder(former, config, dataset)
        say(console, f"run {folder.path}")
        say(console, folder.data.describe(dataset))
        began = time.perf_counter()
        environment = run_folder.environment(mesh.size)
        changes = run_folder.environment_changes(folder.environment, environment)
        for change in changes:
            say(console, change)
        states, record = begin(folder, 0, program, newest_sound_step(folder.checkpoints, console), console)
        trains = not is_complete(config, record.step, record.members, program.steps_per_epoch)
        if first and (former is None or folder.config != former.config or (changes and trains)):
            run_folder.write_config(replace(folder, environment=environment) if trains else folder)
        processes.wait_for_file(folder.path / "config.json")
        # While XLA compiles, and where that is quick, beside the first steps.
        background = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="novelty"))
        writing = background.submit(run_folder.write_novelty, folder, dataset) if first else None
        program = program.compile()
        parameters = sum(leaf.size for leaf in jax.tree.leaves(states.newest.params))
        task, layers = task_of(config.model).describe(dataset.image_shape), describe_layers(config.model)
        seconds = time.perf_counter() - began
        say(console, f"{task} -> {layers} -> {len(dataset.class_names)} classes")
        say(console, f"{parameters:,} parameters, on {describe(mesh)}; ready in {seconds:.1f} s")
        for line in (hint(mesh, execution, config.batch_size), rounding(jax.default_backend(), config.model.precision)):
            if line:
                say(console, line)
        if jax.default_backend() == "cpu" and (reason := native.unavailable()):
            say(console, f"the recurrence runs in XLA, not in the faster C++ kernel: {reason}")
        if runs_through_flax(config.model):
            say(console, SLOWER)
        stop = stack.enter_context(noted_stop_request())  # outermost: a save under way is completed before it ends
        loop = TrainingLoop(folder, 0, program, states, record, console, on_epoch)
        noted = loop.run(stop)
        try:
            if writing is not None:
                writing.result()
        except RunError as error:  # the run itself is complete
            say(console, f"{error} Its predictions have no warnings of unusual images; --resume tries it again.")

    epochs, best_step = read_metrics(folder.metrics), loop.members[0].best_step
    return TrainingResult(
        run_dir=folder.path,
        epochs=epochs,
        best=next((metrics for metrics in epochs if metrics.step == best_step), None),
        best_step=best_step,
        test_examples=len(dataset.test),
        trained=loop.step > record.step,
        stopped_by=None if loop.is_complete else noted,
        warning=run_folder.learned_nothing(folder, np.bincount(dataset.validation.labels), dataset.train.images),
    )


def load_same(config: Config, former: RunFolder | None) -> tuple[Config, Dataset]:
    """Loads the data of a run, or of one that is resumed, which must be the same in all processes.

    Returns:
      The config, with the number of validation examples to cut also where it was not asked for; the data.

    Raises:
      ConfigError: the run has finished more epochs than it is to have, which is found before anything is loaded.
    """
    if former is not None and former.member is None:  # a run of a sweep may go on from its best epoch
        done = max((metrics.epoch for metrics in read_metrics(former.metrics)), default=0)
        refuse_fewer_epochs(former, config.epochs, done, steps_per_epoch=1)
    asked = config.data.validation_examples or (former.config.data.validation_examples if former else None)
    data = replace(config.data, validation_examples=asked)
    try:
        dataset = load(**vars(data)) if former is None else load_again(data, former.config.data)
    except DataError as error:
        may_have_moved = former is not None and data.source == former.config.data.source
        raise DataError(f"{error}{' If it has moved, give its new place with --source.' * may_have_moved}") from error
    if len(set(processes.gather_text(dataset.fingerprint()))) > 1:
        raise ConfigError(f"The processes have different data at {config.data.source!r}.")
    return replace(config, data=replace(data, validation_examples=asked or dataset.validation_examples)), dataset


def begin(
    folder: RunFolder, group: int, program: TrainingProgram, step: int | None, console: Console
) -> tuple[LatestAndBest, Record]:
    """The states to train a group from: those of the checkpoint of `step`, or the initial ones. Places the data."""
    program.place()
    directory = folder.checkpoints_of(group)
    if step is None:
        if folder.initial_weights is not None:
            raise RunError(
                f"There is no sound checkpoint in {directory}, and the run began with weights that are not in its "
                f"folder any more ({folder.initial_weights}). Import them again, into a new folder."
            )
        if directory.exists():  # the first save makes it
            say(console, "There is no sound checkpoint: training starts at the first step.")
        state = program.init()
        # Two copies: the newest is donated to the next step.
        states = LatestAndBest(state, copy_of(state))
        return states, Record(0, program.places, 0.0, (MemberStatus(),) * len(folder.groups[group]))
    epochs_done, epochs = step // program.steps_per_epoch, program.configs[0].epochs
    refuse_fewer_epochs(folder, epochs, step, program.steps_per_epoch)
    say(console, f"resumed at step {step:,}: {epochs_done} of {epochs} epochs are done")
    path = checkpoint.checkpoint_path(directory, step)
    record = checkpoint.read_record(path)
    state = program.abstract_saved(record.places)
    saved = checkpoint.load_state(path, LatestAndBest(state, state))
    return LatestAndBest(*program.from_saved(tuple(saved))), record
