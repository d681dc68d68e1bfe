"""The optimizer, as an optax transformation."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import ScaleByAdamState

from lstm_mnist_jax.config import Config, OptimizerConfig


class OptimizerNumbers(NamedTuple):
    """The hyperparameters of an `OptimizerConfig`, as arrays where they differ between runs in one program.

    Attributes:
      learning_rate, b1, b2, epsilon, weight_decay, ema_decay: see `OptimizerConfig`.
      clip_norm: the same; infinite for None.
      b1_complement, b2_complement, ema_complement: 1 - b1 and so on, more exact than computed from b1 in float32.
    """

    learning_rate: Any
    b1: Any
    b2: Any
    epsilon: Any
    weight_decay: Any
    ema_decay: Any
    clip_norm: Any
    b1_complement: Any
    b2_complement: Any
    ema_complement: Any

    @staticmethod
    def of(config: OptimizerConfig) -> "OptimizerNumbers":
        clip_norm = jnp.inf if config.clip_norm is None else config.clip_norm
        return OptimizerNumbers(
            **{name: getattr(config, name) for name in OptimizerNumbers._fields[:6]},
            clip_norm=clip_norm,
            b1_complement=1 - config.b1,
            b2_complement=1 - config.b2,
            ema_complement=1 - config.ema_decay,
        )


NUMBERS = OptimizerNumbers._fields[:7]
"""The fields of an `OptimizerConfig` in which runs in one program may differ."""


def shape_of(config: OptimizerConfig) -> OptimizerConfig:
    """The part that must be the same for runs in one program: the optimizer's transformations, and its schedule."""
    used: dict[str, Any] = {"weight_decay": 1.0, "ema_decay": 0.5, "clip_norm": 1.0}
    kept = {name: value for name, value in used.items() if getattr(config, name)}
    free = {name: getattr(OptimizerConfig, name) for name in NUMBERS if name not in used}
    return replace(config, **kept, **free)


def make_optimizer(
    config: OptimizerConfig,
    numbers: OptimizerNumbers | None = None,
    rate: Any = 1.0,
    every: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """The optimizer of a run.

    Args:
      config: which transformations it has.
      numbers: its hyperparameters; None is those of `config`.
      rate: the current learning rate as a fraction of the peak, see `schedule`.
      every: the number of steps whose mean gradient makes an update, see `steps_an_update`; None is one.
    """
    numbers = OptimizerNumbers.of(config) if numbers is None else numbers
    complements = numbers.b1_complement, numbers.b2_complement
    are_matrices = partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    steps = [
        scale_by_adam_epsilon_hat(numbers.b1, numbers.b2, numbers.epsilon, complements),
        optax.scale_by_learning_rate(numbers.learning_rate * rate),
    ]
    if config.clip_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(numbers.clip_norm))
    if config.weight_decay:
        steps.insert(-1, optax.add_decayed_weights(numbers.weight_decay, mask=are_matrices))
    if every is None:
        return optax.chain(*steps)
    return optax.MultiSteps(optax.chain(*steps), every).gradient_transformation()


def steps_an_update(config: Config, steps_per_epoch: int) -> Callable[[Any], Any] | None:
    """The number of steps in an update, as a function of the number of updates made; None where it is always one."""
    if not config.batch_doubling_epochs:
        return None
    starts, updates = [], 0
    for doublings, (before, epoch) in enumerate(itertools.pairwise((0, *config.batch_doubling_epochs))):
        updates += (epoch - before) * steps_per_epoch >> doublings
        starts.append(updates)
    return lambda made: 2 ** jnp.searchsorted(jnp.array(starts), made, side="right")


def schedule(config: OptimizerConfig, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """The learning rate at each step (from 0), as a fraction of the peak."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    falling = max(1, epochs * steps_per_epoch - warmup)
    after: optax.Schedule
    match config.schedule:
        case "linear":
            after = optax.linear_schedule(1.0, config.final_fraction, falling)
        case "cosine":
            after = optax.cosine_decay_schedule(1.0, falling, config.final_fraction)
        case _:
            after = optax.constant_schedule(1.0)
    if not warmup:
        return after
    # The first step's rate is not 0 but one warm-up step, and the last one's is the peak.
    rising = optax.linear_schedule(1 / warmup, 1.0, warmup - 1) if warmup > 1 else optax.constant_schedule(1.0)
    return optax.join_schedules([rising, after], [warmup])


def scale_by_adam_epsilon_hat(
    b1: Any = 0.9, b2: Any = 0.999, epsilon_hat: Any = 1e-8, complements: tuple[Any, Any] | None = None
) -> optax.GradientTransformation:
    """Adam in the "epsilon hat" form, which TensorFlow's Adam computes.

    With m and v the running means of the gradient and of its square after t steps, the update is

        sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + epsilon_hat)

    (Kingma and Ba 2015, the remark that ends section 2). `optax.scale_by_adam` corrects v before it adds epsilon;
    the two differ by the size of epsilon, most in the first steps, where sqrt(v) is small.

    Args:
      b1, b2, epsilon_hat: numbers, or arrays of them.
      complements: 1 - b1 and 1 - b2, where these are known more exactly than computed in float32.
    """
    c1, c2 = (1 - b1, 1 - b2) if complements is None else complements

    def init(params: optax.Params) -> ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(
        gradients: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda g, m: c1 * g + b1 * m, gradients, state.mu)
        nu = jax.tree.map(lambda g, v: c2 * g**2 + b2 * v, gradients, state.nu)
        correction = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + epsilon_hat), mu, nu)
        return updates, ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)
