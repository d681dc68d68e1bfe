"""One training, from its config to its last checkpoint."""

import math
import signal
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from lstm_mnist_jax.config import Config, Execution, Processes
from lstm_mnist_jax.data import load
from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.model import describe_layers, task_of
from lstm_mnist_jax.reporting.metrics import EpochMetrics, MetricsWriter, read_metrics
from lstm_mnist_jax.reporting.progress import ProgressDisplay, say
from lstm_mnist_jax.rnn import native
from lstm_mnist_jax.training import checkpoint, processes
from lstm_mnist_jax.training.checkpoint import Checkpoints, Record
from lstm_mnist_jax.training.loop import Course, drive, epoch_metrics, is_stale, newest_sound_step
from lstm_mnist_jax.training.mesh import describe
from lstm_mnist_jax.training.program import TrainingProgram, make_program, member_state
from lstm_mnist_jax.training.run_folder import (
    RunFolder,
    create_run_folder,
    environment,
    environment_changes,
    lock,
    read_run_folder,
    refuse_occupied,
    resume_run_folder,
    write_config,
)
from lstm_mnist_jax.training.selection import score
from lstm_mnist_jax.training.signals import StopRequest
from lstm_mnist_jax.training.start import begun
from lstm_mnist_jax.training.step import TrainState


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
      run_dir: the run's folder.
      epochs: the metrics of every epoch of the run, those before a resume included.
      best: the epoch that is the best on validation, the earliest of equals; None before the first ends,
        and where it was no epoch of this run but the weights that the run began with.
      best_step: the step of the best checkpoint.
      test_examples: how many the test accuracies are of.
      trained: whether any step was made; a resumed run may have been complete.
      stopped_by: the signal (SIGINT, SIGTERM, SIGHUP) that ended the training early, or None.
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
      run_dir: the run's folder: new or empty, or, to resume, one that a training made.
      resume: go on from the newest sound checkpoint of `run_dir`. The result is that of a run which never
        stopped, bit for bit on the same machine and number of devices.
      execution: on which devices.
      together: with which other processes, each of which calls this with the same config and folder.
      console: where to tell how it goes; None is nowhere.

    Raises:
      ConfigError: the config makes no sense, with this data or on these devices, or differs from the run's.
      DataError: the data cannot be loaded.
      RunError: the folder cannot be used, a checkpoint not written, the loss was not finite any more, or
        another process is gone.
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
    former = read_run_folder(run_dir) if resume else None
    if former is None and first:
        refuse_occupied(run_dir)
    dataset = load(**vars(config.data))
    processes.require_same(dataset.fingerprint(), f"The processes have different data at {config.data.source!r}.")
    program = make_program([config], dataset, mesh, device_data_limit)
    with ExitStack() as stack:
        if first:
            stack.enter_context(lock(run_dir))
        if former is None:
            folder = create_run_folder(run_dir, config, dataset)
        else:
            folder = resume_run_folder(former, config, dataset)
        say(console, f"run {run_dir}: {dataset.describe()}")
        began = time.perf_counter()
        state, record = _begin(program, folder, console)
        if first and (former is None or folder.config != former.config):
            write_config(replace(folder, environment=environment()))
        processes.wait_for_file(run_dir / "config.json")
        program = program.compile()
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        task, layers = task_of(config.model).describe(dataset.image_shape), describe_layers(config.model)
        seconds = time.perf_counter() - began
        say(
            console,
            f"{task} -> {layers} -> {len(dataset.class_names)} classes, {parameters:,} parameters, "
            f"on {describe(mesh)}; ready in {seconds:.1f} s",
        )
        if jax.default_backend() == "cpu" and (reason := native.unavailable()):
            say(console, f"the recurrence is XLA's, not the quicker compiled one: {reason}")
        first_step = record.step
        stop = stack.enter_context(StopRequest())  # outermost: what is under way is saved before it ends
        checkpoints = stack.enter_context(closing(Checkpoints(folder.checkpoints, config.checkpoints.keep_checkpoints)))
        writer = None
        if first:
            events = folder.tensorboard if config.tensorboard else None
            writer = stack.enter_context(closing(MetricsWriter(folder.metrics, events, first_step)))
        display = stack.enter_context(ProgressDisplay(console, config.epochs, program.steps_per_epoch, first_step))
        course = _Run(program, folder, state, record, checkpoints, writer, display)
        noted = drive(course, stop)

    epochs = read_metrics(folder.metrics)
    return TrainingResult(
        run_dir=folder.path,
        epochs=epochs,
        best=next((metrics for metrics in epochs if metrics.step == course.record.best_step), None),
        best_step=course.record.best_step,
        test_examples=len(dataset.test),
        trained=course.step > first_step,
        stopped_by=None if course.is_complete else noted,
    )


def _begin(program: TrainingProgram, folder: RunFolder, console: Console) -> tuple[TrainState, Record]:
    """The state from which to train: of the newest sound checkpoint, or the first one."""
    directory = folder.checkpoints
    step = newest_sound_step(directory, console)
    if step is None:
        if folder.initial_weights is not None:
            raise RunError(
                f"There is no sound checkpoint in {directory}, and the run began with weights that are not in its "
                f"folder any more ({folder.initial_weights}). Import them again, into a new folder."
            )
        if folder.metrics.exists():
            say(console, "There is no sound checkpoint: the run starts again from its first step.")
        return program.init(), Record(0, None, None, None, 0.0)
    epochs_done = step // program.steps_per_epoch
    if step > folder.config.epochs * program.steps_per_epoch:
        raise ConfigError(
            f"epochs is {folder.config.epochs}, but {folder.path} was trained for {epochs_done} already. "
            "Ask for as many or more."
        )
    path = checkpoint.checkpoint_path(directory, step)
    record = checkpoint.read_record(path)
    best = checkpoint.best_record(directory, record)
    if best.best_step != record.best_step:
        say(
            console,
            f"The best checkpoint, of step {record.best_step}, is damaged or gone; "
            f"the best of the others is that of step {best.best_step}.",
        )
    for line in environment_changes(folder.environment):
        say(console, line)
    say(console, f"resumed at step {step:,}: {epochs_done} of {folder.config.epochs} epochs are done")
    saved = checkpoint.load_state(path, member_shapes(program))
    return program.from_saved(jax.tree.map(lambda leaf: leaf[None], saved)), best


def member_shapes(program: TrainingProgram) -> TrainState:
    """Shapes, dtypes and placement of the state of the only member of a program, as it is saved."""
    sharding = NamedSharding(program.mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=sharding), program.abstract_state
    )


class _Run(Course):
    """One training, as the loop drives it."""

    def __init__(
        self,
        program: TrainingProgram,
        folder: RunFolder,
        state: TrainState,
        record: Record,
        checkpoints: Checkpoints,
        writer: MetricsWriter | None,
        display: ProgressDisplay,
    ) -> None:
        self.config, self.steps_per_epoch = folder.config, program.steps_per_epoch
        self.step, self.epoch_seconds, self.record = record.step, record.epoch_seconds, record
        self._program, self._folder, self._state = program, folder, state
        self._checkpoints, self._writer, self._display = checkpoints, writer, display

    @property
    def is_complete(self) -> bool:
        stale = is_stale(self.config, self.step, self.record.best_step, self.steps_per_epoch)
        return super().is_complete or stale

    def advance(self, steps: int) -> None:
        self._state = self._program.run_steps(self._state, steps)
        self._seen = self._program.summarize(self._state)
        self.step = self._seen.step

    def show(self, seconds_per_step: float) -> None:
        seen = self._seen
        if seen.first_bad_step[0] >= 0:
            self._fail(int(seen.first_bad_step[0]))
        rate = self.config.batch_size / seconds_per_step
        self._display.advance(self.step, float(seen.loss[0]) / seen.epoch_steps, rate)
        self._checkpoints.raise_failure()

    def end_epoch(self) -> None:
        validation, test = (self._program.evaluate(split, self._state.trained)[0] for split in ("validation", "test"))
        if not math.isfinite(validation.loss):
            self._fail(self.step - 1)
        metrics = epoch_metrics(self.config, self._seen, 0, validation, test, self.epoch_seconds, self.steps_per_epoch)
        if self._writer is not None:
            self._writer.write(metrics)
        self._display.epoch(metrics)
        self.record = self.record.after_epoch(self.step, score(self.config, validation.loss, validation.accuracy))

    def save(self) -> None:
        if self.record.step != self.step:
            self.record = self.record.within_epoch(self.step, self.epoch_seconds)
        # A copy: the training goes on in the memory of the original while it is written.
        self._checkpoints.save(member_state(self._state, 0), self.record)

    def _fail(self, step: int) -> None:
        self._checkpoints.wait()
        finished = checkpoint.finished_steps(self._folder.checkpoints)
        kept = (
            f"The last good checkpoint is that of step {finished[-1]:,}, kept in {self._folder.path}."
            if finished
            else "There is no checkpoint before it."
        )
        raise RunError(
            f"The loss or its gradient is not a finite number any more at step {step:,} "
            f"(epoch {step // self.steps_per_epoch + 1}). {kept} A new run with a lower --learning-rate usually helps; "
            f"here it was {self.config.optimizer.learning_rate:g}."
        )
