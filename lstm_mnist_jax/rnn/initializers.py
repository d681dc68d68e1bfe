"""Initial biases of gates, for given time scales of the cell states."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import Initializer


def chrono(max_steps: int, gates: str = "ifgo") -> Initializer:
    """Chrono initialization (Tallec and Ollivier 2018): b_f = log U(1, T - 1), b_i = -b_f, and 0 for other gates.

    A forget gate with bias log(t) keeps a cell state for about t steps. The times t are spread from 1 to T.

    Args:
      max_steps: T, the longest dependency in time steps, above 2.
      gates: the cell's gates in their order, one letter each. f is the gate that keeps the state (z of a GRU), i the
        gate that adds to it.

    Returns:
      An initializer: (key, shape, dtype) -> biases [gates * hidden].

    Raises:
      ValueError: `max_steps` is no number above 2.

    Examples:
      >>> import jax
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import GRU, LSTM, chrono
      >>> lstm = LSTM(1, 32, bias_init=chrono(784), rngs=nnx.Rngs(0))
      >>> gru = GRU(1, 32, bias_init=chrono(784, "rfn"), rngs=nnx.Rngs(0))
      >>> i, f, g, o = jax.numpy.split(lstm.layers[0].cell.dense_h.bias[...], 4)
      >>> bool((i == -f).all()), bool((f.min() > 0) & (f.max() < jax.numpy.log(783))), bool((g == 0).all())
      (True, True, True)
    """
    try:
        right = np.ndim(max_steps) == 0 and 2 < max_steps < np.inf
    except (TypeError, ValueError):
        right = False
    if not right:
        raise ValueError(f"chrono expected max_steps to be a number above 2; got {max_steps!r}.")

    def forget_bias(key: Any, hidden: int) -> Array:
        return jnp.log(jax.random.uniform(key, (hidden,), minval=1.0, maxval=max_steps - 1.0))

    return _with_opposite(forget_bias, gates, "i")


def uniform_gates(gates: str) -> Initializer:
    """Uniform gate initialization (Gu et al. 2020): b_f = log(u / (1 - u)), u ~ U(1/H, 1 - 1/H), and b_r = -b_f.

    Then the forget gates f are uniformly distributed over (0, 1). Other biases are 0.

    Args:
      gates: the cell's gates in their order, one letter each; f is the forget gate, r the refine gate.

    Returns:
      An initializer: (key, shape, dtype) -> biases [gates * hidden].

    Examples:
      >>> import jax
      >>> from lstm_mnist_jax.rnn import uniform_gates
      >>> f, r, u, o = uniform_gates("fruo")(jax.random.key(0), (4 * 64,)).reshape(4, 64)
      >>> bool((r == -f).all()), bool((u == 0).all())
      (True, True)
    """

    def forget_bias(key: Any, hidden: int) -> Array:
        low = min(1 / hidden, 0.5 - 1e-6)
        u = jax.random.uniform(key, (hidden,), minval=low, maxval=1 - low)
        return jnp.log(u / (1 - u))

    return _with_opposite(forget_bias, gates, "r")


def _with_opposite(forget_bias: Callable[[Any, int], Array], gates: str, opposite: str) -> Initializer:
    """The initializer that draws the biases of gate f, negates them for the opposite gate, and is 0 for the others."""

    def draw(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        del out_sharding
        drawn = forget_bias(key, shape[0] // len(gates))
        parts = {"f": drawn, opposite: -drawn}
        return jnp.concatenate([parts.get(gate, jnp.zeros_like(drawn)) for gate in gates]).astype(dtype)

    return draw
