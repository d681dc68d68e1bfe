"""Training as pure functions over one state: start, and many steps in one compiled loop.

The data set lives on the devices as uint8, and everything that happens to it (shuffling, the view as a sequence,
scaling) happens inside the compiled loop. The host says how many steps, and looks at the state afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_mnist_jax import model
from lstm_mnist_jax.config import Config
from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.data.order import MAX_POSITION, Order, batch_indices, order_of
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.training.mesh import DATA_AXIS
from lstm_mnist_jax.training.optimizer import make_optimizer


class EpochSums(NamedTuple):
    """Sums over the training steps of the epoch so far, zero at its start.

    Attributes:
      steps: how many they are; fewer than the epoch has where a run began within one, with weights given to it.
      loss, correct: of the steps' mean losses, and of the examples that were classified rightly.
    """

    steps: jax.Array
    loss: jax.Array
    correct: jax.Array


class TrainState(NamedTuple):
    """Everything that training changes: a run is resumed from this alone.

    Attributes:
      step: int32, how many steps were made.
      params: the model's parameters.
      opt_state: the optimizer's state.
      key: decides the order of the data, at every step.
      epoch_sums: over the current epoch, or the one just completed.
      first_bad_step: the first step whose loss or gradient was not finite; -1 if there was none.
    """

    step: jax.Array
    params: model.Params
    opt_state: optax.OptState
    key: jax.Array
    epoch_sums: EpochSums
    first_bad_step: jax.Array


def init_state(config: Config, image_shape: tuple[int, ...], num_classes: int, seed: jax.Array | int) -> TrainState:
    """The state before the first step: everything in it follows from the arguments."""
    params_key, order_key = jax.random.split(jax.random.key(seed))
    params = model.init(config.model, params_key, image_shape, num_classes)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=make_optimizer(config.optimizer).init(params),
        key=order_key,
        epoch_sums=EpochSums(steps=jnp.int32(0), loss=jnp.float32(0), correct=jnp.int32(0)),
        first_bad_step=jnp.int32(-1),
    )


@dataclass(frozen=True)
class Training:
    """The functions of one run, for one data set on one mesh.

    Attributes:
      init: (seed) -> the state before the first step, on every device.
      abstract_state: shapes, dtypes and placement of the state, for reading a saved one.
      steps_per_epoch: how many whole batches the training examples fill.
    """

    init: Callable[[int], TrainState]
    abstract_state: TrainState
    steps_per_epoch: int
    _run_steps: Any
    _data: tuple[jax.Array, jax.Array]
    _waits: bool

    def run_steps(self, state: TrainState, n: int) -> TrainState:
        """The state `n` steps later. `state` is used up: its memory is reused."""
        if self._waits:
            jax.block_until_ready(state)
        return self._run_steps(state, np.int32(n), *self._data)

    def compile(self) -> "Training":
        """The same training, with `run_steps` compiled now rather than at its first call."""
        compiled = self._run_steps.lower(self.abstract_state, np.int32(0), *self._data).compile()
        return replace(self, _run_steps=compiled)


def count_steps(config: Config, dataset: Dataset) -> int:
    """How many steps an epoch has: the whole batches that the training examples fill.

    Raises:
      ConfigError: the batch is larger than the training set, or the run longer than positions can count.
    """
    examples, batch_size = len(dataset.train), config.batch_size
    if batch_size > examples:
        raise ConfigError(
            f"batch_size is {batch_size:,}, but there are only {examples:,} training examples "
            f"({dataset.origin}). Use --batch-size {examples} or less."
        )
    steps_per_epoch = examples // batch_size
    if config.epochs > (most := MAX_POSITION // (steps_per_epoch * batch_size)):
        raise ConfigError(f"epochs is {config.epochs:,}, but data of this size can be trained on for {most:,}.")
    return steps_per_epoch


def make_training(config: Config, dataset: Dataset, mesh: Mesh) -> Training:
    """Puts the training examples on the devices and builds the functions that train on them.

    Raises:
      ConfigError: the batch is larger than the training set, or the run longer than positions can count.
    """
    examples, batch_size = len(dataset.train), config.batch_size
    steps_per_epoch = count_steps(config, dataset)
    optimizer = make_optimizer(config.optimizer)

    def loss_and_correct(params: model.Params, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, images, config.model)
        correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
        return model.softmax_cross_entropy(logits, labels).mean(), correct

    loss_and_gradient = jax.value_and_grad(loss_and_correct, has_aux=True)
    local_batch = batch_size // mesh.size

    def train_step(state: TrainState, order: Order, images: jax.Array, labels: jax.Array) -> TrainState:
        """One step, on one device's share of the batch."""
        share = jax.lax.axis_index(DATA_AXIS) * local_batch
        batch = batch_indices(order, state.step, batch_size, examples, share, local_batch)
        (loss, correct), gradient = loss_and_gradient(state.params, images[batch], labels[batch])
        # One vector, so that the devices meet once a step.
        flat, unflatten = ravel_pytree((loss, correct.astype(jnp.float32), gradient))
        flat = jax.lax.pmean(flat, DATA_AXIS)
        loss, correct, gradient = unflatten(flat)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        fresh = state.step % steps_per_epoch == 0
        sums = jax.tree.map(lambda total: jnp.where(fresh, 0, total), state.epoch_sums)
        bad = (state.first_bad_step < 0) & ~jnp.isfinite(flat).all()
        return TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            key=state.key,
            epoch_sums=EpochSums(
                steps=sums.steps + 1,
                loss=sums.loss + loss,
                correct=sums.correct + jnp.round(correct * mesh.size).astype(jnp.int32),
            ),
            first_bad_step=jnp.where(bad, state.step, state.first_bad_step),
        )

    def run_steps(state: TrainState, n: jax.Array, images: jax.Array, labels: jax.Array) -> TrainState:
        order = order_of(state.key)
        return jax.lax.fori_loop(0, n, lambda _, state: train_step(state, order, images, labels), state)

    replicated = NamedSharding(mesh, P())
    # The gradient is averaged by hand above, once and flattened, so JAX need not track what varies over devices.
    sharded = jax.shard_map(run_steps, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    init = jax.jit(partial(init_state, config, dataset.image_shape, len(dataset.class_names)), out_shardings=replicated)
    return Training(
        init=lambda seed: init(np.uint32(seed)),
        abstract_state=jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
            jax.eval_shape(init, np.uint32(0)),
        ),
        steps_per_epoch=steps_per_epoch,
        _run_steps=jax.jit(sharded, donate_argnums=0, in_shardings=replicated, out_shardings=replicated),
        _data=jax.device_put((dataset.train.images, dataset.train.labels), replicated),
        # Programs in which CPU devices meet share one pool of threads: two at once can each wait for the other's.
        _waits=mesh.size > 1 and mesh.devices.flat[0].platform == "cpu",
    )
