"""The GRU recurrence over plain arrays in the CPU kernel, with a hand-written backward pass: as `recurrence` the LSTM.

Depends on arrays; not on modules or layers. Data is time-major. The equations are those of cuDNN, PyTorch and Keras,
whose reset gate stands after the product (Cho et al. 2014 have it before):

    r, z = sigmoid(x W + b + h U + d)    n = tanh(x W + b + r (h U + d))    h' = (1 - z) n + z h

For float32 only, and where there is a kernel: elsewhere `gated` computes the same.
"""

from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lstm_mnist_jax.rnn import native
from lstm_mnist_jax.rnn.derivatives import Function
from lstm_mnist_jax.rnn.products import project, vary_alike
from lstm_mnist_jax.rnn.recurrence import AnyArray, chosen_backend, entering, hidden_features, loop_of, states_after
from lstm_mnist_jax.rnn.sharding import with_automatic_axes


def gru(
    inputs: Annotated[AnyArray, "time batch features"],
    kernel: Annotated[AnyArray, "features gates"],
    recurrent_kernel: Annotated[AnyArray, "hidden gates"],
    bias: Annotated[AnyArray, "gates"],
    recurrent_bias: Annotated[AnyArray, "gates"] | None,
    initial_h: Annotated[AnyArray, "batch hidden"],
    *,
    reverse: bool = False,
    unroll: int = 1,
    resets: Annotated[AnyArray, "time batch"] | None = None,
    reset_h: Annotated[AnyArray, "batch hidden"] | None = None,
) -> tuple[Array, Array]:
    """Runs a GRU over a batch of sequences in the CPU kernel. Differentiable in every array.

    All arrays are converted to float32. On other platforms than the CPU, XLA runs the same loops.

    Args:
      inputs: x, floats [time, batch, features].
      kernel: W, floats [features, 3 hidden], with the columns of the gates in the order r, z, n.
      recurrent_kernel: U, floats [hidden, 3 hidden], in the same order.
      bias: b, floats [3 hidden], in the same order.
      recurrent_bias: d, floats [3 hidden], in the same order; None is zero.
      initial_h: h before the first step, floats [batch, hidden].
      reverse: start at the last time step. Each output has the time index of its input.
      unroll: time steps per iteration of the loop, where XLA runs the loop.
      resets: booleans [time, batch]: where True, h is `reset_h` before this step. None is never.
      reset_h: floats [batch, hidden]; None is `initial_h`.

    Returns:
      h after each step, [time, batch, hidden], and after the last: with `reverse`, after the step of time 0.

    Raises:
      ValueError: `recurrent_kernel` is not [hidden, 3 hidden].
      RuntimeError: there is no kernel on this machine: see `native.unavailable`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from lstm_mnist_jax.rnn import native
      >>> from lstm_mnist_jax.rnn.gru import gru
      >>> weights = jnp.ones((28, 96)), jnp.ones((32, 96)), jnp.zeros(96), None
      >>> if native.unavailable() is None:
      ...     hs, last_h = gru(jnp.ones((10, 5, 28)), *weights, jnp.zeros((5, 32)))
      ...     assert hs.shape == (10, 5, 32) and bool((hs[-1] == last_h).all())
    """
    inputs, kernel, recurrent_kernel, bias, initial_h = (
        jnp.asarray(array, jnp.float32) for array in (inputs, kernel, recurrent_kernel, bias, initial_h)
    )
    hidden = hidden_features(recurrent_kernel, gates=3)
    recurrent_bias = jnp.zeros(3 * hidden) if recurrent_bias is None else jnp.asarray(recurrent_bias)
    after_reset = states_after(resets, (initial_h if reset_h is None else reset_h,), jnp.float32)
    # The biases of r and z are added up once; the recurrent bias of n is multiplied by r.
    of_sigmoids, of_n = jnp.split(recurrent_bias.astype(jnp.float32), [2 * hidden])
    biases = jnp.concatenate([bias + jnp.pad(of_sigmoids, (0, hidden)), of_n])
    # A shard_map may have some of these vary over its devices and others not; the loop needs one type for all.
    arrays = vary_alike((inputs, kernel, biases, recurrent_kernel, initial_h, after_reset))
    run = with_automatic_axes(partial(_compiled_recurrence, Loops(reverse, unroll)), inputs, 0, 1, (0, -1))
    hs, last_h = run(*arrays)
    return hs, last_h


def runs_gru_native(backend: str, shape: tuple[Any, ...], dtype: Any) -> bool:
    """Whether `gru` runs a recurrence of shape (time, batch, hidden), and not `gated`: see `chosen_backend`."""
    if chosen_backend(backend, shape[1:], dtype) != "native":
        return False
    time, batch, hidden = shape
    # The kernel packs the weights at each call, which takes too long for a few steps of one sequence.
    return backend != "auto" or batch > 1 or hidden < 512 or not isinstance(time, int) or time >= 64


class Loops(NamedTuple):
    """Options of `gru`."""

    reverse: bool
    unroll: int


def _recurrence(loops: Loops, *arrays: Any) -> Any:
    """(hs, last h) of (inputs, kernel, biases, recurrent kernel, h, resets).

    `biases` [4 hidden] are those of r, z, n, and that of the recurrent product which r multiplies; `resets` is None or
    (booleans [time, batch, 1], h).
    """
    hs, _, _, last_h = native.gru_forward(*arrays, activations=False, **loops._asdict())
    return hs, last_h


def _forward(loops: Loops, *arrays: Any) -> Any:
    hs, *kept, last_h = native.gru_forward(*arrays, activations=True, **loops._asdict())
    return (hs, last_h), (hs, *kept)


def _backward(loops: Loops, arguments: Any, kept: Any, gradients: Any) -> tuple[Any, ...]:
    inputs, kernel, _, recurrent_kernel, initial_h, resets = arguments
    hs, activations, recurrents = kept
    d_hs, d_last_h = gradients
    d_last_h = jnp.zeros_like(initial_h) if d_last_h is None else d_last_h
    activations, d_hs, d_last_h = vary_alike((activations, d_hs, d_last_h))
    arrays = activations, recurrents, hs, initial_h, recurrent_kernel, d_hs, d_last_h, resets
    d_projected, d_recurrents, d_h, *d_reset = native.gru_backward(*arrays, **loops._asdict())
    weight_gradient = partial(loop_of("weight_gradient", "native"), reverse=loops.reverse)
    d_kernel, d_bias = weight_gradient(inputs, d_projected, bias=True)
    entered, initial = entering(initial_h, hs, resets, loops.reverse)
    # The product with n's part of `d_projected` is not used, but a copy of the other parts would take longer.
    of_sigmoids, _ = weight_gradient(entered, d_projected, initial, bias=False)
    of_n, d_recurrent_bias = weight_gradient(entered, d_recurrents, initial, bias=True)
    d_recurrent_kernel = jnp.concatenate([of_sigmoids[:, : 2 * initial_h.shape[-1]], of_n], axis=-1)
    d_biases = jnp.concatenate([d_bias, d_recurrent_bias])
    d_inputs = project(d_projected, kernel.T)
    return d_inputs, d_kernel, d_biases, d_recurrent_kernel, d_h, resets and (None, *d_reset)


# Compiled here, so that calls outside `jit` compile once and not each time.
_compiled_recurrence = jax.jit(Function(_recurrence, _forward, _backward), static_argnums=0)
