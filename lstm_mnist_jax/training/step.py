"""One training step as a pure function of a training state, and many of them in one compiled loop.

The images come to the loop as uint8, and everything that happens to them (the view as a sequence, scaling) happens
inside it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from lstm_mnist_jax import model
from lstm_mnist_jax.config import AugmentationConfig, Config
from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.data.augment import augment, mix
from lstm_mnist_jax.data.shuffle import MAX_POSITION
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.training.feed import BatchOf
from lstm_mnist_jax.training.mesh import DATA_AXIS
from lstm_mnist_jax.training.optimizer import OptimizerNumbers, make_optimizer, schedule, steps_an_update


class EpochSums(NamedTuple):
    """Sums over the training steps of the epoch so far, zero at its start.

    Attributes:
      steps: the number of steps; fewer than in an epoch where imported weights began within one.
      loss, correct: of the steps' mean losses, and of the correctly classified examples.
      gradient_norm: of the norms of the steps' gradients, over all parameters, before any clipping.
    """

    steps: jax.Array
    loss: jax.Array
    correct: jax.Array
    gradient_norm: jax.Array


class TrainState(NamedTuple):
    """The whole state of training: a run is resumed from this alone.

    Attributes:
      step: int32, the number of steps made.
      params: the model's parameters.
      opt_state: the optimizer's state.
      key: of the random numbers at every step: augmentation and dropout.
      epoch_sums: over the current epoch, or the one just completed.
      first_bad_step: the first step whose loss or gradient was not finite; -1 if there was none.
      average: the EMA of the weights, if there is one.
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
        """The parameters that are evaluated and used: the EMA of the weights if there is one."""
        return self.params if self.average is None else self.average


def init_state(
    config: Config,
    image_shape: tuple[int, ...],
    num_classes: int,
    seed: jax.Array | int,
    params: model.Params | None = None,
) -> TrainState:
    """The state before the first step: a function of the arguments. `params` take the place of drawn parameters."""
    params_key, key = jax.random.split(jax.random.key(seed))
    if params is None:
        params = model.init(config.model, params_key, image_shape, num_classes)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=make_optimizer(config.optimizer, every=steps_an_update(config, 1)).init(params),
        key=key,
        epoch_sums=EpochSums(jnp.int32(0), jnp.float32(0), jnp.int32(0), jnp.float32(0)),
        first_bad_step=jnp.int32(-1),
        average=params if config.optimizer.ema_decay else None,
    )


def count_steps(config: Config, dataset: Dataset) -> int:
    """The number of steps in an epoch: of whole batches in the training examples.

    Raises:
      ConfigError: the images cannot be cut into so many time steps, or be shifted so far; the batch is larger than the
        training set, or the run too long for int32 positions in the data.
    """
    examples, batch_size = len(dataset.train), config.batch_size
    model.task_of(config.model).shape(dataset.image_shape)
    height, width, *_ = dataset.image_shape
    if config.augmentation.shift_pixels >= min(height, width):
        raise ConfigError(
            f"shift_pixels is {config.augmentation.shift_pixels:g}, but images are {height} x {width}: some would be "
            "shifted out of view. A few pixels are usual."
        )
    if batch_size > examples:
        held_out, advice = len(dataset.validation), f"Use --batch-size {examples} or less."
        if held_out > examples:
            advice += f" The validation split has {held_out:,}: if it was cut from them, reduce --validation-examples."
        raise ConfigError(
            f"batch_size is {batch_size:,}, but there are only {examples:,} training examples "
            f"({dataset.origin}). {advice}"
        )
    steps_per_epoch = examples // batch_size
    if config.epochs > (most := MAX_POSITION // (steps_per_epoch * batch_size)):
        raise ConfigError(f"epochs is {config.epochs:,}, but data of this size can be trained on for {most:,}.")
    return steps_per_epoch


def make_train_step(
    config: Config, steps_per_epoch: int, shares: int, batch_of: BatchOf
) -> Callable[[TrainState, OptimizerNumbers, Any, Any], TrainState]:
    """One step of a training run, as a function of (state, hyperparameters of the optimizer, shared, own).

    It runs on one device, within a `shard_map` over `DATA_AXIS`, on its share of the batch.

    Args:
      config: the config of the run.
      steps_per_epoch: the number of steps in an epoch.
      shares: the number of devices that share a batch.
      batch_of: (step, shared, own) -> this device's share of the step's images and labels, see `feed.Batches`.
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

    def train_step(state: TrainState, numbers: OptimizerNumbers, shared: Any, own: Any) -> TrainState:
        images, labels = batch_of(state.step, shared, own)
        targets, dropout_keys = labels, None
        if draws:
            # A key for each place in the batch: the result does not depend on the number of devices.
            step_key = jax.random.fold_in(state.key, state.step)
            places = jax.lax.axis_index(DATA_AXIS) * share + jnp.arange(share)
            keys = jax.vmap(lambda place: jax.random.split(jax.random.fold_in(step_key, place), 3))(places)
            augment_keys, mix_keys, dropout_keys = jnp.moveaxis(keys, 1, 0)
            images = augment(images, augment_keys, config.augmentation)
        if config.label_smoothing or config.augmentation.mixup_alpha:
            targets = optax.smooth_labels(
                jax.nn.one_hot(labels, state.params["dense"]["bias"].size), config.label_smoothing
            )
        if config.augmentation.mixup_alpha:
            # Mixes the batch with itself in reverse order: device d holds the partners of device shares - 1 - d.
            mirrored = [(device, shares - 1 - device) for device in range(shares)]
            others = [jnp.flip(jax.lax.ppermute(part, DATA_AXIS, mirrored), axis=0) for part in (images, targets)]
            images, targets = mix(images, targets, others[0], others[1], mix_keys, config.augmentation)
        (loss, correct), gradient = loss_and_gradient(state.params, images, labels, targets, dropout_keys)
        # One vector, for one all-reduce a step.
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
    """The EMA of the weights after a step; its decay grows at first, as TensorFlow's does with `num_updates`."""
    share = jnp.maximum(numbers.ema_complement, 9 / (10.0 + step))
    return optax.incremental_update(params, average, share)
