"""The optimizer, as an optax transformation."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import ScaleByAdamState

from lstm_mnist_jax.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer of a run."""
    return optax.chain(
        scale_by_adam_epsilon_hat(config.b1, config.b2, config.epsilon),
        optax.scale_by_learning_rate(config.learning_rate),
    )


def scale_by_adam_epsilon_hat(
    b1: float = 0.9, b2: float = 0.999, epsilon_hat: float = 1e-8
) -> optax.GradientTransformation:
    """Adam in the "epsilon hat" form, which TensorFlow's Adam computes.

    With m and v the running means of the gradient and of its square after t steps, the update is

        sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + epsilon_hat)

    (Kingma and Ba 2015, the remark that ends section 2). `optax.scale_by_adam` corrects v before it adds epsilon;
    the two differ by the size of epsilon, most in the first steps, where sqrt(v) is small.
    """

    def init(params: optax.Params) -> ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(
        gradients: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(gradients, state.mu, b1, 1)
        nu = optax.tree.update_moment(gradients, state.nu, b2, 2)
        correction = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + epsilon_hat), mu, nu)
        return updates, ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)
