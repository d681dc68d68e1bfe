"""One run, from its config to its last checkpoint; and what it shares with the groups of a sweep."""

import signal
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.console import Console

from lstm_mnist_jax.config import Config, Execution, Processes
from lstm_mnist_jax.data import load
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.model import describe_layers, task_of
from lstm_mnist_jax.progress import ProgressDisplay, say
from lstm_mnist_jax.rnn import native
from lstm_mnist_jax.training import checkpoint, processes
from lstm_mnist_jax.training.checkpoint import Checkpoints, MemberStatus, Record
from lstm_mnist_jax.training.loop import TrainingLoop, newest_sound_step, too_few_epochs
from lstm_mnist_jax.training.member import make_run_of_member
from lstm_mnist_jax.training.mesh import describe
from lstm_mnist_jax.training.metrics import EpochMetrics, MetricsWriter, read_metrics
from lstm_mnist_jax.training.program import Stages, TrainingProgram, copy_of, make_program
from lstm_mnist_jax.training.run_folder import (
    RunFolder,
    create_run_folder,
    environment,
    environment_changes,
    lock,
    read_run,
    refuse_occupied,
    resume_run_folder,
    write_config,
)
from lstm_mnist_jax.training.signals import StopRequest
from lstm_mnist_jax.training.start import begun


@dataclass(frozen=True)
class TrainingResult:
    """How a training run ended.

    Attributes:
      run_dir: the run's folder.
      epochs: the metrics of every epoch of the run, those before a resume included.
      best: the epoch that is the best on validation, the earliest of equals; None before the first ends,
        and where it was no epoch of this run but the weights that the run began with.
      best_step: the step at which the best weights were reached.
      test_examples: how many the test accuracies are of.
      trained: whether any step was made; a resumed run may have been complete.
      stopped_by: the signal (SIGINT, SIGTERM, SIGHUP) that ended the run early, or None.
    """

    run_dir: Path
    epochs: list[EpochMetrics]
    best: EpochMetrics | None
    best_step: int | None
    test_examples: int
    trained: bool
    stopped_by: signal.Signals | None


def train(
    config: Config,
    run_dir: Path | str,
    *,
    resume: bool = False,
    execution: Execution = Execution(),
    together: Processes = Processes(),
    console: Console | None = None,
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

    Returns:
      The metrics of every epoch, the best epoch, and how the run ended.

    Raises:
      ConfigError: the config is impossible, with this data or on these devices, or differs from the run's.
      DataError: the data cannot be loaded.
      RunError: the folder cannot be used, a checkpoint cannot be written, the loss is not finite, or another process
        is gone.

    Examples:
      >>> from dataclasses import replace
      >>> from lstm_mnist_jax import PRESETS, train
      >>> smoke = PRESETS["smoke"]
      >>> config = replace(smoke, epochs=1, tensorboard=False, data=replace(smoke.data, train_examples=640))
      >>> result = train(config, "runs/first")
      >>> len(result.epochs), result.best.step, result.test_examples
      (1, 10, 10000)
    """
    batch_size = config.batch_size
    with begun("one", config, run_dir, resume, execution, together, console, batch_size) as (config, run_dir, mesh):
        return _train(config, run_dir, resume, mesh, execution.device_data_limit, console or Console(quiet=True))


def _train(
    config: Config, run_dir: Path, resume: bool, mesh: Mesh, device_data_limit: float, console: Console
) -> TrainingResult:
    first = processes.is_first()
    if not first:
        console = Console(quiet=True)
    former = read_run(run_dir) if resume else None
    if former is None and first:
        refuse_occupied(run_dir)
    dataset = load(**vars(config.data))
    processes.require_same(dataset.fingerprint(), f"The processes have different data at {config.data.source!r}.")
    program = make_program([config], dataset, mesh, device_data_limit)
    with ExitStack() as stack:
        if former is not None and former.member is not None:
            resume_run_folder(former, config, dataset)  # refuses what cannot go on, before anything is written
            if jax.process_count() > 1:
                raise RunError(
                    f"{former.path} is a run of a sweep, of which one process has to make a run of its own. Resume it "
                    "once with --num-processes 1; several processes can go on from there."
                )
            make_run_of_member(former, config.epochs, program.steps_per_epoch)
            former = read_run(former.path)
        if first:
            stack.enter_context(lock(run_dir if former is None else former.path))  # of SWEEP/best, that of SWEEP/3
        if former is None:
            folder = create_run_folder(run_dir, config, dataset)
        else:
            folder = resume_run_folder(former, config, dataset)
        say(console, f"run {folder.path}: {dataset.describe()}")
        began = time.perf_counter()
        stages, record = begin(folder, 0, program, newest_sound_step(folder.checkpoints, console), console)
        if first and (former is None or folder.config != former.config):
            write_config(replace(folder, environment=environment()))
        processes.wait_for_file(folder.path / "config.json")
        program = program.compile()
        parameters = sum(leaf.size for leaf in jax.tree.leaves(stages.newest.params))
        task, layers = task_of(config.model).describe(dataset.image_shape), describe_layers(config.model)
        seconds = time.perf_counter() - began
        say(
            console,
            f"{task} -> {layers} -> {len(dataset.class_names)} classes, {parameters:,} parameters, "
            f"on {describe(mesh)}; ready in {seconds:.1f} s",
        )
        if jax.default_backend() == "cpu" and (reason := native.unavailable()):
            say(console, f"the recurrence is XLA's, not the quicker compiled one: {reason}")
        stop = stack.enter_context(StopRequest())  # outermost: what is under way is saved before it ends
        loop, noted = train_group(folder, 0, program, stages, record, console, stop)

    epochs, best_step = read_metrics(folder.metrics), loop.members[0].best_step
    return TrainingResult(
        run_dir=folder.path,
        epochs=epochs,
        best=next((metrics for metrics in epochs if metrics.step == best_step), None),
        best_step=best_step,
        test_examples=len(dataset.test),
        trained=loop.step > record.step,
        stopped_by=None if loop.is_complete else noted,
    )


def begin(
    folder: RunFolder, group: int, program: TrainingProgram, step: int | None, console: Console
) -> tuple[Stages, Record]:
    """The states from which to train a group: those of the checkpoint of `step`, or the first ones."""
    directory = folder.checkpoints_of(group)
    if step is None:
        if folder.initial_weights is not None:
            raise RunError(
                f"There is no sound checkpoint in {directory}, and the run began with weights that are not in its "
                f"folder any more ({folder.initial_weights}). Import them again, into a new folder."
            )
        if any(metrics.member in folder.groups[group] for metrics in read_metrics(folder.metrics)):
            say(console, "There is no sound checkpoint: training starts at the first step.")
        state = program.init()
        # Two buffers: the newest is donated to the next step.
        stages = Stages(state, copy_of(state))
        return stages, Record(0, program.places, 0.0, (MemberStatus(),) * len(folder.groups[group]))
    epochs_done, epochs = step // program.steps_per_epoch, program.configs[0].epochs
    if step > epochs * program.steps_per_epoch:
        raise too_few_epochs(folder, epochs, step, program.steps_per_epoch)
    for line in environment_changes(folder.environment) if not folder.is_sweep else ():
        say(console, line)
    say(console, f"resumed at step {step:,}: {epochs_done} of {epochs} epochs are done")
    path = checkpoint.checkpoint_path(directory, step)
    record = checkpoint.read_record(path)
    state = program.abstract_saved(record.places)
    saved = checkpoint.load_state(path, Stages(state, state))
    return Stages(*program.from_saved(tuple(saved))), record


def train_group(
    folder: RunFolder,
    group: int,
    program: TrainingProgram,
    stages: Stages,
    record: Record,
    console: Console,
    stop: StopRequest,
) -> tuple[TrainingLoop, signal.Signals | None]:
    """Trains a group of members, or the one run of a folder, to its end or to a signal. Returns both."""
    config, members = folder.config, folder.groups[group]
    with ExitStack() as stack:
        keep = config.checkpoints.keep_checkpoints
        checkpoints = stack.enter_context(closing(Checkpoints(folder.checkpoints_of(group), keep)))
        writer = None
        if processes.is_first():
            events = folder.tensorboard if config.tensorboard and not folder.is_sweep else None
            writer = stack.enter_context(closing(MetricsWriter(folder.metrics, events, record.step, members)))
        epochs, per_epoch = program.configs[0].epochs, program.steps_per_epoch
        display = stack.enter_context(ProgressDisplay(console, epochs, per_epoch, record.step))
        loop = TrainingLoop(folder, group, program, stages, record, checkpoints, writer, display)
        return loop, loop.run(stop)
