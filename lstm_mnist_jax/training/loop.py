"""A training from its config to its last checkpoint: the loop that the host runs.

The devices run about a second of steps at a time; in between, the host shows progress, looks for signals and for
numbers that are not finite, and saves. At the end of an epoch it evaluates. Nothing of what happens here, and no
matter when, changes what is trained: that is a function of the config and the data alone.
"""

import math
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from rich.console import Console

from lstm_mnist_jax.config import Config, Execution
from lstm_mnist_jax.data import Dataset, load
from lstm_mnist_jax.data.sources import absolute_source
from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.model import Params
from lstm_mnist_jax.reporting.metrics import EpochMetrics, MetricsWriter, read_metrics
from lstm_mnist_jax.reporting.progress import ProgressDisplay, say
from lstm_mnist_jax.rnn import native
from lstm_mnist_jax.training import checkpoint
from lstm_mnist_jax.training.checkpoint import Checkpoints, Record
from lstm_mnist_jax.training.evaluation import Evaluation, make_evaluation
from lstm_mnist_jax.training.mesh import describe, make_mesh, prepare
from lstm_mnist_jax.training.run_folder import (
    RunFolder,
    create_run_folder,
    environment,
    lock,
    read_run_folder,
    refuse_occupied,
    resume_run_folder,
    write_config,
)
from lstm_mnist_jax.training.signals import StopRequest
from lstm_mnist_jax.training.step import EpochSums, Training, TrainState, make_training

CHUNK_SECONDS = 1.0
"""How long the devices run without the host."""

FIRST_CHUNK = 1
"""Steps in the first chunk, which finds out how long a step takes."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
      run_dir: the run's folder.
      epochs: the metrics of every epoch of the run, those before a resume included.
      best: the epoch with the highest validation accuracy, the earliest of equals; None before the first ends,
        and where it was no epoch of this run but the weights that the run began with.
      best_step: the step of the best checkpoint.
      trained: whether any step was made; a resumed run may have been complete.
      stopped_by: the signal (SIGINT, SIGTERM, SIGHUP) that ended the training early, or None.
    """

    run_dir: Path
    epochs: list[EpochMetrics]
    best: EpochMetrics | None
    best_step: int | None
    trained: bool
    stopped_by: signal.Signals | None


def train(
    config: Config,
    run_dir: Path | str,
    *,
    resume: bool = False,
    execution: Execution = Execution(),
    console: Console | None = None,
) -> TrainingResult:
    """Trains a run, new or resumed, to its last epoch or to the first Ctrl-C or SIGTERM.

    Args:
      config: what to train.
      run_dir: the run's folder: new or empty, or, to resume, one that a training made.
      resume: go on from the newest sound checkpoint of `run_dir`. The result is that of a run which never
        stopped, bit for bit on the same machine and number of devices.
      execution: on which devices.
      console: where to tell how it goes; None is nowhere.

    Raises:
      ConfigError: the config makes no sense, with this data or on these devices, or differs from the run's.
      DataError: the data cannot be loaded.
      RunError: the folder cannot be used, a checkpoint not written, or the loss was not finite any more.
    """
    run_dir = Path(run_dir).expanduser()
    config = replace(config, data=replace(config.data, source=absolute_source(config.data.source)))
    console = console or Console(quiet=True)
    former = read_run_folder(run_dir) if resume else None
    if former is None:
        refuse_occupied(run_dir)
    prepare(execution, config.batch_size)
    mesh = make_mesh(execution, config.batch_size)
    dataset = load(**vars(config.data))
    training = make_training(config, dataset, mesh)
    with lock(run_dir):
        if former is None:
            folder = create_run_folder(run_dir, config, dataset)
        else:
            folder = resume_run_folder(former, config, dataset)
        say(console, f"run {run_dir}: {_describe_data(dataset)}")
        began = time.perf_counter()
        state, record = _begin(training, folder, console)
        if former is None or folder.config != former.config:
            write_config(folder)
        training = training.compile()
        evaluations = {
            name: make_evaluation(config.model, dataset.splits[name], mesh) for name in ("validation", "test")
        }
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        seconds = time.perf_counter() - began
        say(
            console,
            f"{_describe_model(config, dataset)}, {parameters:,} parameters, on {describe(mesh)}; "
            f"ready in {seconds:.1f} s",
        )
        if jax.default_backend() == "cpu" and (reason := native.unavailable()):
            say(console, f"the recurrence is XLA's, not the quicker compiled one: {reason}")
        return _run(training, evaluations, folder, state, record, console)


def _begin(training: Training, folder: RunFolder, console: Console) -> tuple[TrainState, Record]:
    """The state from which to train: of the newest sound checkpoint, or the first one."""
    directory = folder.checkpoints
    step = checkpoint.newest_sound_step(directory)
    for line in checkpoint.set_aside(directory, newer_than=-1 if step is None else step):
        say(console, line)
    if step is None:
        if folder.initial_weights is not None:
            raise RunError(
                f"There is no sound checkpoint in {directory}, and the run began with weights that are not in its "
                f"folder any more ({folder.initial_weights}). Import them again, into a new folder."
            )
        if folder.metrics.exists():
            say(console, "There is no sound checkpoint: the run starts again from its first step.")
        return training.init(folder.config.seed), Record(0, None, None, None, 0.0)
    epochs_done = step // training.steps_per_epoch
    if step > folder.config.epochs * training.steps_per_epoch:
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
    then, now = folder.environment, environment()
    for name in ("jax", "jaxlib", "backend", "recurrence"):
        if then.get(name) != now[name]:
            say(console, f"{name} was {then.get(name)} and is {now[name]}: expect differences of rounding.")
    say(console, f"resumed at step {step:,}: {epochs_done} of {folder.config.epochs} epochs are done")
    return checkpoint.load_state(path, training.abstract_state), best


def _run(
    training: Training,
    evaluations: dict[str, Callable[[Params], Evaluation]],
    folder: RunFolder,
    state: TrainState,
    record: Record,
    console: Console,
) -> TrainingResult:
    config, per_epoch, step = folder.config, training.steps_per_epoch, record.step
    first_step = step
    epoch_seconds, chunk, last_save = record.epoch_seconds, FIRST_CHUNK, time.monotonic()
    with (
        StopRequest() as stop,
        closing(Checkpoints(folder.checkpoints, config.checkpoints.keep_checkpoints)) as checkpoints,
        closing(MetricsWriter(folder.metrics, folder.tensorboard if config.tensorboard else None, step)) as writer,
        ProgressDisplay(console, config.epochs, per_epoch, step) as display,
    ):
        stopped_by = None
        while step < config.epochs * per_epoch and stopped_by is None:
            steps = min(chunk, per_epoch - step % per_epoch)
            began = time.perf_counter()
            state = training.run_steps(state, steps)
            step, sums, first_bad_step = jax.device_get((state.step, state.epoch_sums, state.first_bad_step))
            seconds = time.perf_counter() - began

            step, stopped_by = int(step), stop.signal
            if first_bad_step >= 0:
                checkpoints.wait()
                raise _not_finite(int(first_bad_step), per_epoch, folder)
            epoch_seconds += seconds
            chunk = max(1, round(steps * CHUNK_SECONDS / seconds))
            steps_in_epoch = step % per_epoch or per_epoch
            display.advance(step, float(sums.loss) / int(sums.steps), steps * config.batch_size / seconds)
            checkpoints.raise_failure()

            if steps_in_epoch == per_epoch:
                validation, test = evaluations["validation"](state.params), evaluations["test"](state.params)
                if not math.isfinite(validation.loss):
                    checkpoints.wait()
                    raise _not_finite(step - 1, per_epoch, folder)
                metrics = _epoch_metrics(config, step, per_epoch, sums, validation, test, epoch_seconds)
                writer.write(metrics)
                display.epoch(metrics)
                epoch_seconds = 0.0
                record = record.after_epoch(step, validation.accuracy)
            elif stopped_by or time.monotonic() - last_save > 60 * config.checkpoints.checkpoint_minutes:
                record = record.within_epoch(step, epoch_seconds)
            if record.step == step:
                checkpoints.save(state, record)
                last_save = time.monotonic()

    epochs = read_metrics(folder.metrics)
    return TrainingResult(
        run_dir=folder.path,
        epochs=epochs,
        best=next((metrics for metrics in epochs if metrics.step == record.best_step), None),
        best_step=record.best_step,
        trained=step > first_step,
        stopped_by=signal.Signals(stopped_by) if stopped_by and step < config.epochs * per_epoch else None,
    )


def _epoch_metrics(
    config: Config,
    step: int,
    steps_per_epoch: int,
    sums: EpochSums,
    validation: Evaluation,
    test: Evaluation,
    seconds: float,
) -> EpochMetrics:
    examples = int(sums.steps) * config.batch_size
    return EpochMetrics(
        epoch=step // steps_per_epoch,
        step=step,
        train_loss=float(sums.loss) / int(sums.steps),
        train_accuracy=int(sums.correct) / examples,
        validation_loss=validation.loss,
        validation_accuracy=validation.accuracy,
        test_loss=test.loss,
        test_accuracy=test.accuracy,
        learning_rate=config.optimizer.learning_rate,
        seconds=seconds,
        examples_per_second=examples / seconds,
    )


def _not_finite(step: int, steps_per_epoch: int, folder: RunFolder) -> RunError:
    finished = checkpoint.finished_steps(folder.checkpoints)
    kept = (
        f"The last good checkpoint is that of step {finished[-1]:,}, kept in {folder.path}."
        if finished
        else "There is no checkpoint before it."
    )
    return RunError(
        f"The loss or its gradient is not a finite number any more at step {step:,} "
        f"(epoch {step // steps_per_epoch + 1}). {kept} A new run with a lower --learning-rate usually helps; here it "
        f"was {folder.config.optimizer.learning_rate:g}."
    )


def _describe_data(dataset: Dataset) -> str:
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    return f"{dataset.origin} ({sizes})"


def _describe_model(config: Config, dataset: Dataset) -> str:
    height, *width = dataset.image_shape
    layers = " -> ".join(f"LSTM {features}" for features in config.model.hidden_features)
    return f"{height} rows of {math.prod(width)} -> {layers} -> {len(dataset.class_names)} classes"
