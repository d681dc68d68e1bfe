"""Training as pure functions over one state: start, and many steps in one compiled loop.

The images come to the loop as uint8, and everything that happens to them (the view as a sequence, scaling) happens
inside it; where they live on the devices, as they do unless they are too many, so does shuffling. The host says how
many steps, and looks at the state afterwards.
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
from lstm_mnist_jax.config import AugmentationConfig, Config, Execution
from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.data.augment import augment, mix
from lstm_mnist_jax.data.order import MAX_POSITION, Order, order_of
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.training.feed import BatchOf, Feed, Streamed, make_feed
from lstm_mnist_jax.training.mesh import DATA_AXIS
from lstm_mnist_jax.training.optimizer import OptimizerNumbers, make_optimizer, schedule, steps_an_update

DRAWS = 0xD4A3
"""Tells the keys of what is drawn for a step from the order of the data, which is drawn of the same key."""


class EpochSums(NamedTuple):
    """Sums over the training steps of the epoch so far, zero at its start.

    Attributes:
      steps: how many they are; fewer than the epoch has where a run began within one, with weights given to it.
      loss, correct: of the steps' mean losses, and of the examples that were classified rightly.
      gradient_norm: of the lengths of the steps' gradients, over all parameters, before any clipping.
    """

    steps: jax.Array
    loss: jax.Array
    correct: jax.Array
    gradient_norm: jax.Array


class TrainState(NamedTuple):
    """Everything that training changes: a run is resumed from this alone.

    Attributes:
      step: int32, how many steps were made.
      params: the model's parameters.
      opt_state: the optimizer's state.
      key: decides the order of the data, and all else that is drawn, at every step.
      epoch_sums: over the current epoch, or the one just completed.
      first_bad_step: the first step whose loss or gradient was not finite; -1 if there was none.
      average: the running mean of the parameters, if there is one.
    """

    step: jax.Array
    params: model.Params
    opt_state: optax.OptState
    key: jax.Array
    epoch_sums: EpochSums
    first_bad_step: jax.Array
    average: model.Params | None = None

    @property
    def trained(self) -> model.Params:
        """What is evaluated and used: the mean of the parameters, or themselves."""
        return self.params if self.average is None else self.average


class Look(NamedTuple):
    """What the host sees of one or many trainings in one program, after some steps.

    Attributes:
      step: how many steps were made.
      epoch_steps: how many of them the sums are over.
      loss, correct, gradient_norm: [trainings], see `EpochSums`.
      first_bad_step: [trainings], see `TrainState`.
    """

    step: int
    epoch_steps: int
    loss: np.ndarray
    correct: np.ndarray
    gradient_norm: np.ndarray
    first_bad_step: np.ndarray


def look_at(state: TrainState) -> Look:
    """Waits for a state, of one training or of many along a leading axis, and fetches what the host needs of it."""
    fetched = jax.device_get((state.step, *state.epoch_sums, state.first_bad_step))
    step, epoch_steps, *of_each = (np.atleast_1d(array) for array in fetched)
    return Look(int(step[0]), int(epoch_steps[0]), *of_each)


def init_state(config: Config, image_shape: tuple[int, ...], num_classes: int, seed: jax.Array | int) -> TrainState:
    """The state before the first step: everything in it follows from the arguments."""
    params_key, order_key = jax.random.split(jax.random.key(seed))
    params = model.init(config.model, params_key, image_shape, num_classes)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=make_optimizer(config.optimizer, every=steps_an_update(config, 1)).init(params),
        key=order_key,
        epoch_sums=EpochSums(jnp.int32(0), jnp.float32(0), jnp.int32(0), jnp.float32(0)),
        first_bad_step=jnp.int32(-1),
        average=params if config.optimizer.ema_decay else None,
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
    _feed: Feed
    _waits: bool

    def run_steps(self, state: TrainState, n: int) -> TrainState:
        """The state `n` steps later. `state` is used up: its memory is reused."""
        for steps, batches in self._feed.take(state, n):
            if self._waits:  # the next batches are on their way meanwhile
                jax.block_until_ready(state)
            state = self._run_steps(state, np.int32(steps), batches)
        return state

    def compile(self) -> "Training":
        """The same training, with `run_steps` compiled now rather than at its first call."""
        compiled = self._run_steps.lower(self.abstract_state, np.int32(0), self._feed.abstract_batches).compile()
        return replace(self, _run_steps=compiled)


def count_steps(config: Config, dataset: Dataset) -> int:
    """How many steps an epoch has: the whole batches that the training examples fill.

    Raises:
      ConfigError: the images cannot be cut into so many time steps, or be shifted so far; the batch is larger than the
        training set, or the run longer than positions can count.
    """
    examples, batch_size = len(dataset.train), config.batch_size
    model.task_of(config.model).shape(dataset.image_shape)
    height, width, *_ = dataset.image_shape
    if config.augmentation.shift_pixels >= min(height, width):
        raise ConfigError(
            f"shift_pixels is {config.augmentation.shift_pixels:g}, but images are {height} x {width}: nothing would "
            "be left in some. A few pixels are usual."
        )
    if batch_size > examples:
        raise ConfigError(
            f"batch_size is {batch_size:,}, but there are only {examples:,} training examples "
            f"({dataset.origin}). Use --batch-size {examples} or less."
        )
    steps_per_epoch = examples // batch_size
    if config.epochs > (most := MAX_POSITION // (steps_per_epoch * batch_size)):
        raise ConfigError(f"epochs is {config.epochs:,}, but data of this size can be trained on for {most:,}.")
    return steps_per_epoch


def make_training(
    config: Config, dataset: Dataset, mesh: Mesh, device_data_limit: float = Execution.device_data_limit
) -> Training:
    """Builds the functions that train on the devices, and puts the training examples there.

    Args:
      config: what is trained.
      dataset: what it is trained on.
      mesh: the devices.
      device_data_limit: GiB. Training images that take more stay with the host, and stream to the devices.

    Raises:
      ConfigError: the batch is larger than the training set, or the run longer than positions can count.
    """
    steps_per_epoch = count_steps(config, dataset)
    feed = make_feed(config, dataset.train, mesh, device_data_limit)
    train_step = make_train_step(config, steps_per_epoch, mesh.shape[DATA_AXIS], feed.batch_of)

    def run_steps(state: TrainState, n: jax.Array, batches: Any) -> TrainState:
        return repeat(train_step, state, n, OptimizerNumbers.of(config.optimizer), batches)

    replicated = NamedSharding(mesh, P())
    # The gradient is averaged by hand, once and flattened, so JAX need not track what varies over devices.
    sharded = jax.shard_map(run_steps, mesh=mesh, in_specs=(P(), P(), feed.specs), out_specs=P(), check_vma=False)
    first_state = partial(init_state, config, dataset.image_shape, len(dataset.class_names))
    init = jax.jit(first_state, out_shardings=replicated, compiler_options=run_once(mesh))
    return Training(
        init=lambda seed: init(np.uint32(seed)),
        abstract_state=abstract(jax.eval_shape(first_state, np.uint32(0)), replicated),
        steps_per_epoch=steps_per_epoch,
        _run_steps=jax.jit(sharded, donate_argnums=0, out_shardings=replicated),
        _feed=feed,
        # Of a stream no more than two pieces are to be on the devices: one in use, one on its way.
        _waits=must_wait(mesh) or isinstance(feed, Streamed),
    )


def run_once(mesh: Mesh) -> dict[str, Any]:
    """Compiler options for a program that runs once: on CPUs, XLA would optimize it for longer than it runs."""
    return {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else {}


def must_wait(mesh: Mesh) -> bool:
    """Whether one program must end before the next is started.

    Programs in which CPU devices meet share one pool of threads: two at once can each wait for the other's.
    """
    return mesh.shape[DATA_AXIS] > 1 and mesh.devices.flat[0].platform == "cpu"


def make_train_step(
    config: Config, steps_per_epoch: int, shares: int, batch_of: BatchOf
) -> Callable[[TrainState, OptimizerNumbers, Order, Any], TrainState]:
    """One step of a training, as a function of (state, numbers of the optimizer, order, batches).

    It runs on one device, within a `shard_map` over `DATA_AXIS`, on its share of the batch.

    Args:
      config: what is trained.
      steps_per_epoch: how many steps its epochs have.
      shares: how many devices share a batch.
      batch_of: (order, step, batches) -> this device's share of the step's images and labels.
    """
    rate_at = schedule(config.optimizer, steps_per_epoch, config.epochs)
    draws = config.augmentation != AugmentationConfig() or config.model.dropout_rate > 0
    every, share = steps_an_update(config, steps_per_epoch), config.batch_size // shares

    def loss_and_correct(
        params: model.Params, images: jax.Array, labels: jax.Array, targets: jax.Array, dropout_keys: Any
    ) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, images, config.model, dropout_keys=dropout_keys)
        correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)
        return model.softmax_cross_entropy(logits, targets).mean(), correct

    loss_and_gradient = jax.value_and_grad(loss_and_correct, has_aux=True)

    def train_step(state: TrainState, numbers: OptimizerNumbers, order: Order, batches: Any) -> TrainState:
        images, labels = batch_of(order, state.step, batches)
        targets, dropout_keys = labels, None
        if draws:
            # Of each place in the batch, so that nothing depends on the number of devices.
            step_key = jax.random.fold_in(jax.random.fold_in(state.key, DRAWS), state.step)
            places = jax.lax.axis_index(DATA_AXIS) * share + jnp.arange(share)
            keys = jax.vmap(lambda place: jax.random.split(jax.random.fold_in(step_key, place), 3))(places)
            augment_keys, mix_keys, dropout_keys = jnp.moveaxis(keys, 1, 0)
            images = augment(images, augment_keys, config.augmentation)
        if config.label_smoothing or config.augmentation.mixup_alpha:
            targets = optax.smooth_labels(
                jax.nn.one_hot(labels, state.params["dense"]["bias"].size), config.label_smoothing
            )
        if config.augmentation.mixup_alpha:
            # With the batch from its other end: what is there lies on the device that is as far from the last.
            mirrored = [(device, shares - 1 - device) for device in range(shares)]
            others = [jnp.flip(jax.lax.ppermute(part, DATA_AXIS, mirrored), axis=0) for part in (images, targets)]
            images, targets = mix(images, targets, others[0], others[1], mix_keys, config.augmentation)
        (loss, correct), gradient = loss_and_gradient(state.params, images, labels, targets, dropout_keys)
        # One vector, so that the devices meet once a step.
        flat, unflatten = ravel_pytree((loss, correct.astype(jnp.float32), gradient))
        flat = jax.lax.pmean(flat, DATA_AXIS)
        loss, correct, gradient = unflatten(flat)
        optimizer = make_optimizer(config.optimizer, numbers, rate_at(state.step), every)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        fresh = state.step % steps_per_epoch == 0
        sums = jax.tree.map(lambda total: jnp.where(fresh, 0, total), state.epoch_sums)
        gradient_norm = optax.tree.norm(gradient)  # not finite where the gradient is not, or too long
        bad = (state.first_bad_step < 0) & ~(jnp.isfinite(loss) & jnp.isfinite(gradient_norm))
        return TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            key=state.key,
            epoch_sums=EpochSums(
                steps=sums.steps + 1,
                loss=sums.loss + loss,
                correct=sums.correct + jnp.round(correct * shares).astype(jnp.int32),
                gradient_norm=sums.gradient_norm + gradient_norm,
            ),
            first_bad_step=jnp.where(bad, state.step, state.first_bad_step),
            average=None if state.average is None else averaged(state.average, params, state.step, numbers),
        )

    return train_step


def averaged(average: model.Params, params: model.Params, step: Any, numbers: OptimizerNumbers) -> model.Params:
    """The running mean with new parameters, which weigh more at first, as in TensorFlow's with `num_updates`."""
    share = jnp.maximum(numbers.ema_complement, 9 / (10.0 + step))
    return optax.incremental_update(params, average, share)


def repeat(
    train_step: Callable[..., TrainState],
    state: TrainState,
    n: jax.Array,
    numbers: OptimizerNumbers,
    batches: Any,
) -> TrainState:
    """The state `n` steps later, in one loop."""
    order = order_of(state.key)
    return jax.lax.fori_loop(0, n, lambda _, state: train_step(state, numbers, order, batches), state)


def abstract(tree: Any, sharding: NamedSharding) -> Any:
    """Shapes and dtypes of a tree, and that it lies on the devices so."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
