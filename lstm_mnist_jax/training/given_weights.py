"""A run that begins with imported weights rather than with drawn ones, perhaps with the state of Adam."""

import math
import shutil
from contextlib import closing
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
from lstm_mnist_jax.model import Params
from lstm_mnist_jax.training.checkpoint import Checkpoints, MemberStatus, Record
from lstm_mnist_jax.training.evaluation import Evaluation, evaluate_one
from lstm_mnist_jax.training.mesh import make_mesh
from lstm_mnist_jax.training.metrics import score
from lstm_mnist_jax.training.program import LatestAndBest, run_once
from lstm_mnist_jax.training.run_folder import RunFolder, create_run_folder, lock, refuse_occupied, write_config
from lstm_mnist_jax.training.step import count_steps, init_state


@dataclass(frozen=True)
class GivenWeights:
    """Imported weights.

    Attributes:
      params: the parameters.
      adam: the state of Adam; None starts it afresh.
      step: the number of training steps already made.
      origin: where they were imported from, for messages.
      image_rows: the number of rows of an image; None where it is not known.
    """

    params: Params
    adam: optax.ScaleByAdamState | None
    step: int
    origin: str
    image_rows: int | None = None


@dataclass(frozen=True)
class ImportedRun:
    """A run before its first training step.

    Attributes:
      folder: the run's folder.
      epochs_done: the number of whole epochs in the given steps.
      evaluations: of the weights on "validation" and "test".
    """

    folder: RunFolder
    epochs_done: int
    evaluations: dict[str, Evaluation]


def begin_run(
    given: GivenWeights, config: Config, run_dir: Path | str, execution: Execution = Execution()
) -> ImportedRun:
    """Makes a run folder of imported weights, which can be evaluated, used and trained on.

    Args:
      given: the weights.
      config: the config to train with. The layers' widths are taken from the weights; where they were trained for more
        epochs already, so is the number of epochs.
      run_dir: a new or empty folder.
      execution: on which devices to evaluate.

    Raises:
      WeightsError: the weights do not fit the data's images, or have another number of classes.
      DataError, ConfigError: the data cannot be loaded, or is too few for a batch.
      RunError: the folder is not empty, or cannot be written to.
    """
    run_dir = Path(run_dir).expanduser()
    refuse_occupied(run_dir)
    others = replace(config.model, hidden_features=ModelConfig.hidden_features, forget_bias=ModelConfig.forget_bias)
    if config.batch_doubling_epochs or others != ModelConfig():
        raise ConfigError("Weights from elsewhere are those of LSTM layers over rows, with one batch size throughout.")
    dataset = load(**vars(config.data))
    config = _fitting(config, given, dataset)
    mesh = make_mesh(execution, config.batch_size)
    init = partial(init_state, config, dataset.image_shape, len(dataset.class_names))
    state = jax.jit(init, compiler_options=run_once(mesh))(np.uint32(config.seed))
    opt_state: Any = state.opt_state
    if given.adam is not None:
        opt_state = optax.tree.set(opt_state, **given.adam._asdict())
    average = None if state.average is None else given.params
    first = state._replace(step=jnp.int32(given.step), params=given.params, opt_state=opt_state, average=average)
    state = jax.tree.map(lambda leaf, new: jnp.asarray(new, leaf.dtype), state, first)
    with lock(run_dir):
        folder = create_run_folder(run_dir, config, dataset, given.origin)
        splits = {name: dataset.splits[name] for name in ("validation", "test")}
        evaluations = evaluate_one(state.trained, config.model, splits, execution)
        validation = evaluations["validation"]
        value = score(config, validation.loss, validation.accuracy)
        status = MemberStatus()
        if math.isfinite(value):  # else any epoch is better
            status = MemberStatus(value, given.step, value)
        members = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[None], tree))(state)
        try:
            with closing(Checkpoints(folder.checkpoints, config.checkpoints.keep_checkpoints)) as checkpoints:
                checkpoints.save(LatestAndBest(members, members), Record(given.step, 1, 0.0, (status,)))
            write_config(folder)  # last: a folder without it is no run
        except BaseException as error:
            shutil.rmtree(folder.checkpoints, ignore_errors=True)
            if isinstance(error, RunError):
                reason = error.__cause__ or error
                raise RunError(
                    f"{run_dir} cannot be written to: {reason}. Nothing is left of it; try again."
                ) from error
            raise
    return ImportedRun(folder, given.step // count_steps(config, dataset), evaluations)


def _fitting(config: Config, given: GivenWeights, dataset: Dataset) -> Config:
    """The config with the widths and epochs of the weights. Raises WeightsError where they do not fit the data."""
    cells = [layer["cell"] for layer in given.params["rnn"]["layers"].values()]
    in_features, classes = len(cells[0]["dense_i"]["kernel"]), len(given.params["dense"]["bias"])
    row, class_names = math.prod(dataset.image_shape[1:]), dataset.class_names
    if (in_features, classes) != (row, len(class_names)):
        raise WeightsError(
            f"The weights take rows of {in_features} numbers and have {classes} classes, but {dataset.origin} "
            f"has rows of {row} and {len(class_names)} classes. Each row of an image is a time step here; name "
            "the data that they were trained on with --source."
        )
    if given.image_rows not in (None, dataset.image_shape[0]):
        raise WeightsError(
            f"The model reads sequences of {given.image_rows} rows, but the images of {dataset.origin} have "
            f"{dataset.image_shape[0]} rows; name the data that it was trained on with --source."
        )
    config = replace(
        config,
        epochs=max(config.epochs, -(-given.step // count_steps(config, dataset))),
        data=replace(config.data, source=absolute_source(config.data.source)),
        model=replace(config.model, hidden_features=tuple(len(cell["dense_h"]["kernel"]) for cell in cells)),
    )
    count_steps(config, dataset)  # it may be too many steps for this program
    return config
