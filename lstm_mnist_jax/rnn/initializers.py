"""Initial biases of gates, after the lengths of time that a network is to remember."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer


def chrono(max_steps: int, gates: str = "ifgo") -> Initializer:
    """Chrono initialisation (Tallec and Ollivier 2018): b_f = log U(1, T - 1), b_i = -b_f, and 0 for other gates.

    A forget gate of bias log(t) keeps a memory for about t steps: these are spread from 1 to T.

    Args:
      max_steps: T, the longest time to remember, above 2.
      gates: the cell's gates in their order; f is what keeps the memory (z of a GRU), i what lets new things in.

    Returns:
      (key, shape, dtype) to the biases [gates * hidden].
    """

    def draw(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        del out_sharding
        keep = jnp.log(jax.random.uniform(key, (shape[0] // len(gates),), minval=1.0, maxval=max_steps - 1.0))
        zero = jnp.zeros_like(keep)
        return jnp.concatenate([{"f": keep, "i": -keep}.get(gate, zero) for gate in gates]).astype(dtype)

    return draw


def uniform_gates(gates: str) -> Initializer:
    """Uniform gate initialisation (Gu et al. 2020): b_f = log(u / (1 - u)), u ~ U(1/H, 1 - 1/H), and b_r = -b_f.

    The forget gates f then are spread evenly over (0, 1). Other biases are 0.

    Args:
      gates: the cell's gates in their order, with f and the refine gate r.

    Returns:
      (key, shape, dtype) to the biases [gates * hidden].
    """

    def draw(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        del out_sharding
        hidden = shape[0] // len(gates)
        low = min(1 / hidden, 0.5 - 1e-6)
        u = jax.random.uniform(key, (hidden,), minval=low, maxval=1 - low)
        forget = jnp.log(u / (1 - u))
        zero = jnp.zeros_like(forget)
        return jnp.concatenate([{"f": forget, "r": -forget}.get(gate, zero) for gate in gates]).astype(dtype)

    return draw
