"""The optimizer, as an optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import ScaleByAdamState

from lstm_mnist_jax.config import OptimizerConfig


class OptimizerNumbers(NamedTuple):
    """The numbers of an `OptimizerConfig`, as arrays where they differ between trainings in one program.

    Attributes:
      learning_rate, b1, b2, epsilon: see `OptimizerConfig`.
      b1_complement, b2_complement: 1 - b1 and 1 - b2, which float32 could not tell exactly from b1 and b2.
    """

    learning_rate: Any
    b1: Any
    b2: Any
    epsilon: Any
    b1_complement: Any
    b2_complement: Any

    @staticmethod
    def of(config: OptimizerConfig) -> "OptimizerNumbers":
        return OptimizerNumbers(
            config.learning_rate, config.b1, config.b2, config.epsilon, 1 - config.b1, 1 - config.b2
        )


def make_optimizer(numbers: OptimizerConfig | OptimizerNumbers) -> optax.GradientTransformation:
    """The optimizer of a run."""
    if isinstance(numbers, OptimizerConfig):
        numbers = OptimizerNumbers.of(numbers)
    complements = numbers.b1_complement, numbers.b2_complement
    return optax.chain(
        scale_by_adam_epsilon_hat(numbers.b1, numbers.b2, numbers.epsilon, complements),
        optax.scale_by_learning_rate(numbers.learning_rate),
    )


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
      complements: 1 - b1 and 1 - b2, where they are known more exactly than they follow from arrays.
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
