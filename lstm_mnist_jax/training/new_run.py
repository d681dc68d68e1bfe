"""Run folders that begin later than at the first step: of imported weights, and of a run of a sweep."""

import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_mnist_jax.config import Config, Execution, ModelConfig
from lstm_mnist_jax.data import Dataset, load
from lstm_mnist_jax.data.sources import absolute_source
from lstm_mnist_jax.errors import ConfigError, RunError, WeightsError
from lstm_mnist_jax.model import Params, bind, task_of
from lstm_mnist_jax.training import checkpoint
from lstm_mnist_jax.training.checkpoint import Checkpoints, MemberStatus, Record
from lstm_mnist_jax.training.evaluation import Evaluation, evaluate_one
from lstm_mnist_jax.training.loop import refuse_fewer_epochs
from lstm_mnist_jax.training.mesh import make_mesh
from lstm_mnist_jax.training.metrics import EpochMetrics, MetricsWriter, read_metrics, score
from lstm_mnist_jax.training.program import LatestAndBest, run_once
from lstm_mnist_jax.training.run_folder import (
    Member,
    RunFolder,
    create_run_folder,
    lock,
    read_run,
    refuse_occupied,
    write_config,
)
from lstm_mnist_jax.training.step import TrainState, count_steps, init_state

OF_WEIGHTS = (
    *("task", "pooling", "hidden_features", "forget_bias", "activation", "recurrent_activation"),
    *("dense_features", "dense_activation"),
)
"""The fields of a `ModelConfig` that weights from elsewhere may set."""


@dataclass(frozen=True)
class ImportedRun:
    """A run before its first training step.

    Attributes:
      folder: the run's folder.
      epochs_done: the number of whole epochs in the steps that were already made.
      evaluations: of the weights on "validation" and "test".
      dataset: its data.
    """

    folder: RunFolder
    epochs_done: int
    evaluations: dict[str, Evaluation]
    dataset: Dataset


def begin_run(
    params: Params,
    config: Config,
    run_dir: Path | str,
    execution: Execution = Execution(),
    *,
    origin: str,
    adam: optax.ScaleByAdamState | None = None,
    step: int = 0,
    network: ModelConfig | None = None,
    time_steps: int | None = None,
    image_shape: tuple[int, ...] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> ImportedRun:
    """Makes a run folder of imported weights, which can be evaluated, used and trained on.

    Args:
      params: the weights.
      config: the config to train with. The layers' widths are taken from the weights; where they were trained for more
        epochs already, so is the number of epochs. What weights do not show, such as activations, is its `model`'s.
      run_dir: a new or empty folder.
      execution: on which devices to evaluate.
      origin: where the weights were imported from, for messages.
      adam: the state of Adam; None starts it afresh.
      step: the number of training steps already made.
      network: the network, where the file of the weights holds it; None takes it from the weights and `config.model`.
      time_steps: the number of steps that `network` reads; None is what its task gives for the data's images.
      image_shape: the shape of the images that the weights were trained on; None where it is not known.
      class_names: the names of their classes in order; None where they are not known.

    Raises:
      WeightsError: the weights do not fit the data's images, or have other classes.
      ValueError: they are those of another network than the config's.
      DataError, ConfigError: the data cannot be loaded, or is too few for a batch.
      RunError: the folder is not empty, or cannot be written to.
    """
    run_dir = Path(run_dir).expanduser()
    refuse_occupied(run_dir)
    others = replace(config.model, **{name: getattr(ModelConfig, name) for name in OF_WEIGHTS})
    if config.batch_doubling_epochs or (network is None and others != ModelConfig()):
        raise ConfigError(
            "Weights from elsewhere are those of LSTM layers in one direction, with one batch size throughout."
        )
    dataset = load(**vars(config.data))
    if image_shape not in (None, dataset.image_shape):
        own, theirs = ("x".join(map(str, shape)) for shape in (image_shape or (), dataset.image_shape))
        raise WeightsError(
            f"The model was trained on images of {own} pixels, but those of {dataset.origin} have {theirs}; name the "
            "data that it was trained on with --source."
        )
    config = _fitting(config, params, step, dataset, network, time_steps)
    for number, (own, theirs) in enumerate(zip(class_names or (), dataset.class_names, strict=False)):
        if own != theirs:
            raise WeightsError(
                f"Class {number} of the model is {own[:100]!r}, but that of {dataset.origin} is {theirs!r}; name the "
                "data that it was trained on with --source, or correct the names in the model's file."
            )
    mesh = make_mesh(execution, config.batch_size)
    init = partial(init_state, config, dataset.image_shape, len(dataset.class_names))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    bind(params, config.model, dataset.image_shape)  # raises where they are those of another network
    state = jax.jit(init, compiler_options=run_once(mesh))(np.uint32(config.seed), params)
    opt_state: Any = state.opt_state
    if adam is not None:
        opt_state = optax.tree.set(opt_state, **adam._asdict())
    first = state._replace(step=jnp.int32(step), opt_state=opt_state)
    state = jax.tree.map(lambda leaf, new: jnp.asarray(new, leaf.dtype), state, first)
    with lock(run_dir):
        folder = create_run_folder(run_dir, config, dataset, mesh.size, origin)
        splits = {name: dataset.splits[name] for name in ("validation", "test")}
        evaluations = evaluate_one(state.trained, config.model, splits, execution)
        value = score(config, evaluations["validation"].loss, evaluations["validation"].accuracy)
        # Where it is not finite, any epoch is better.
        status = MemberStatus(value, step, value) if math.isfinite(value) else MemberStatus()
        _write(folder, [state, state], Record(step, 1, 0.0, (status,)))
    return ImportedRun(folder, step // count_steps(config, dataset), evaluations, dataset)


def _fitting(
    config: Config, params: Params, step: int, dataset: Dataset, network: ModelConfig | None, time_steps: int | None
) -> Config:
    """The config with the network and epochs of the weights. Raises WeightsError where they do not fit the data."""
    cells = [layer.get("forward_rnn", layer)["cell"] for layer in params["rnn"]["layers"].values()]
    in_features, classes = len(cells[0]["dense_i"]["kernel"]), len(params["dense"]["bias"])
    hidden = [layer["bias"] for layer in params.get("dense_hidden", {}).values()]
    if network is None:
        network = replace(
            config.model,
            hidden_features=tuple(len(cell["dense_h"]["kernel"]) for cell in cells),
            dense_features=tuple(map(len, hidden)),
        )
    shape, class_names, task = dataset.image_shape, dataset.class_names, network.task
    steps, row = task_of(network).shape(shape)
    if time_steps not in (None, steps) and math.prod(shape) == time_steps * in_features:
        network = replace(network, sequence_length=time_steps)
        steps, row = time_steps, in_features
    if (in_features, classes) != (row, len(class_names)) or time_steps not in (None, steps):
        own, theirs = (f"{time_steps} ", f"{steps} ") if time_steps not in (None, steps) else ("", "")
        raise WeightsError(
            f"The weights take {own}{task} of {in_features} numbers and have {classes} class{'es' * (classes != 1)}, "
            f"but {dataset.origin} has {theirs}{task} of {row} and {len(class_names)} classes. Each of the {task} of "
            "an image is a time step here; name the data that they were trained on with --source."
        )
    dense_in = len((params["dense_hidden"][0] if hidden else params["dense"])["kernel"])
    width = len(cells[-1]["dense_h"]["kernel"]) * (2 if network.bidirectional else 1)
    if network.pooling == "all" and dense_in != steps * width:
        raise WeightsError(
            f"The weights take the outputs of {dense_in // width} steps, but an image of {dataset.origin} has {steps} "
            "rows."
        )
    config = replace(
        config,
        epochs=max(config.epochs, -(-step // count_steps(config, dataset))),
        data=replace(
            config.data,
            source=absolute_source(config.data.source),
            validation_examples=config.data.validation_examples or dataset.validation_examples,
        ),
        model=network,
    )
    count_steps(config, dataset)  # it may be too many steps for this program
    return config


def make_run_of_member(folder: RunFolder, epochs: int, steps_per_epoch: int, stack: ExitStack) -> RunFolder:
    """Makes a folder at the path of a run of a sweep, which can then be resumed. The sweep stays as it is.

    A run that diverged or stopped early goes on from its best epoch.

    Args:
      folder: the run of a sweep.
      epochs: the number of epochs to train for in all. If it has them already, nothing is made.
      steps_per_epoch: steps in an epoch.
      stack: keeps the lock of the new folder.

    Raises:
      ConfigError: it was trained for as many epochs, or more.
      RunError: there is no sound checkpoint of it, or it diverged before its first epoch ended, or the folder holds
        files of a run, is in use, or cannot be written. (Pictures of a report may be in it.)
    """
    _refuse_remains(folder)
    saved_step = checkpoint.newest_sound_step(folder.checkpoints)
    if saved_step is None:
        raise RunError(
            f"Run {folder.path} was not trained yet, or is damaged: there is no sound checkpoint in "
            f"{folder.checkpoints}. Continue with: lstm-mnist sweep --resume {folder.home}"
        )
    step, (status, seconds) = saved_step, checkpoint.read_status(folder, saved_step)
    known = [metrics for metrics in read_metrics(folder.metrics, folder.member) if not metrics.diverged]
    stopped = status.best_step is not None and bool(known) and known[-1].step < step - step % steps_per_epoch
    names = ["newest", "best"]
    if status.diverged_at is not None or stopped:
        if status.best_step is None:
            raise RunError(
                f"Run {folder.path} diverged at step {status.diverged_at:,}, before its first epoch was complete."
            )
        names, step, seconds = ["best", "best"], status.best_step, 0.0
        status = MemberStatus(status.best_score, status.best_step, status.best_score)
    refuse_fewer_epochs(folder, epochs, step, steps_per_epoch)
    if step == epochs * steps_per_epoch:
        raise ConfigError(f"{folder.path} is complete after {epochs} epochs. Ask for more with --epochs.")
    states = checkpoint.load_member(folder, saved_step, *names)
    run = replace(folder, space=None, member=None, members=(Member(folder.config.seed, {}),), groups=((0,),))
    stack.enter_context(lock(run.path))
    if (run.path / "config.json").exists():
        return read_run(run.path)  # another process has made it since
    _refuse_remains(folder)
    epochs_before = [replace(metrics, member=0) for metrics in known if metrics.step <= step]
    _write(run, states, Record(step, 1, seconds, (status,)), epochs_before)
    return run


def _refuse_remains(folder: RunFolder) -> None:
    remains = [name for name in ("checkpoints", "metrics.jsonl", "tensorboard") if (folder.path / name).exists()]
    if remains:
        raise RunError(
            f"{folder.path} holds {', '.join(remains)} but no config.json: it was not made completely, or is damaged. "
            "Rename or remove it, then resume again."
        )


def _write(
    folder: RunFolder, states: Sequence[TrainState], record: Record, epochs: Sequence[EpochMetrics] = ()
) -> None:
    """Writes the files of a new run, or none: its latest and its best state, and the epochs before them."""
    stacked = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[None], tree))(LatestAndBest(*states))
    try:
        if epochs:
            events = folder.tensorboard if folder.config.tensorboard else None
            with closing(MetricsWriter(folder.metrics, events, 0)) as writer:
                writer.write(epochs)
        with closing(Checkpoints(folder.checkpoints, folder.config.checkpoints.keep_checkpoints)) as checkpoints:
            checkpoints.save(stacked, record)
        write_config(folder)  # last: a folder without it is no run
    except BaseException as error:
        for left in (folder.checkpoints, folder.tensorboard):
            shutil.rmtree(left, ignore_errors=True)
        folder.metrics.unlink(missing_ok=True)
        if isinstance(error, RunError):
            reason = error.__cause__ or error
            raise RunError(
                f"{folder.path} cannot be written to: {reason}. Nothing is left of it; try again."
            ) from error
        raise
