"""The LSTM recurrence over plain arrays, with a hand-written backward pass.

Knows arrays; knows no modules, no layers and no batch-major data. The equations are those of `flax.nnx.LSTMCell`
(Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000):

    i, f, o = sigmoid(x W + h U + b)    g = tanh(x W + h U + b)    c' = f c + i g    h' = o tanh(c')

Four things make it quick where a scan over a cell is not:

- All inputs are projected by one matrix product before the loop; the loop holds one product and one fused
  elementwise step.
- sigmoid(z) = (1 + tanh(z/2)) / 2, and the halves go into the weights once, so that one tanh runs over the four
  packed gates. (XLA's own sigmoid costs a CPU several times as much.)
- The backward loop carries only dc and dh and yields only the gradients at the gates. Whatever depends on neither
  is computed before it, over all time steps at once.
- The gradient of the recurrent weights is one matrix product after the loop. Differentiating the scan would
  add one, and a read and a write of the whole gradient, to every step.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from lstm_mnist_jax.rnn import native

AnyArray = jax.Array | np.ndarray
"""What may be passed in; what comes out is a `jax.Array`."""


class LSTMCarry(NamedTuple):
    """The state of an LSTM between two time steps: a tuple (c, h), as in Flax.

    Attributes:
      c: the cell (memory), [batch, hidden].
      h: the hidden state, which is also the output, [batch, hidden].
    """

    c: Array
    h: Array


class LSTMStates(NamedTuple):
    """All that the recurrence computes.

    Attributes:
      h: hidden states after each step, [time, batch, hidden].
      c: cells after each step, [time, batch, hidden].
      last: the carry after the last step that was computed.
    """

    h: Array
    c: Array
    last: LSTMCarry


def lstm(
    inputs: Float[AnyArray, "time batch features"],
    kernel: Float[AnyArray, "features gates"],
    recurrent_kernel: Float[AnyArray, "hidden gates"],
    bias: Float[AnyArray, " gates"],
    initial_carry: tuple[Float[AnyArray, "batch hidden"], Float[AnyArray, "batch hidden"]],
    *,
    reverse: bool = False,
    unroll: int = 1,
    backend: str = "auto",
) -> LSTMStates:
    """Runs an LSTM over a batch of sequences. Differentiable in every array, in reverse mode.

    Args:
      inputs: time-major inputs.
      kernel, recurrent_kernel, bias: parameters, columns in the gate order i, f, g, o.
      initial_carry: (c, h) before the first step.
      reverse: start at the last time step. Outputs stay at the time of their input.
      unroll: steps a loop iteration, where XLA runs the loop.
      backend: what runs the loop on a CPU: "native", the compiled kernel (float32); "xla"; or "auto", the
        kernel where it can be had and serves the sizes well. Every other platform runs XLA. A program that is to run
        elsewhere (`jax.export`) must not hold the kernel.

    Returns:
      The states; `last` is that after the first time step where `reverse` is set.

    Raises:
      ValueError: the weights are not those of four gates; the backend is unknown, or "native" cannot be had.
    """
    hidden, gates = recurrent_kernel.shape
    if gates != 4 * hidden:
        raise ValueError(
            f"recurrent_kernel is {hidden} x {gates}; with {hidden} hidden features, expected {4 * hidden} columns."
        )
    inputs, kernel, recurrent_kernel, bias, c, h = map(
        jnp.asarray, (inputs, kernel, recurrent_kernel, bias, *initial_carry)
    )
    native = _is_native(backend, (inputs, kernel, recurrent_kernel, bias, c, h))
    halves = _gate_scale(recurrent_kernel)
    # A shard_map may have some of these vary over its devices and others not; the loop needs one type for all.
    projected, recurrent_kernel, c, h = _vary_alike(
        _project(inputs, kernel * halves[None]) + (bias * halves)[None, None], recurrent_kernel * halves[None], c, h
    )
    hs, cs, last_h, last_c = _recurrence(projected, recurrent_kernel, h, c, reverse, unroll, native)
    return LSTMStates(hs, cs, LSTMCarry(last_c, last_h))


def _is_native(backend: str, arrays: tuple[Array, ...]) -> bool:
    """Whether the compiled kernel is to run the loop where the program runs on a CPU."""
    if backend not in ("auto", "native", "xla"):
        raise ValueError(f'backend is {backend!r}; expected "auto", "native" or "xla".')
    if backend == "xla":
        return False
    dtypes = {str(array.dtype) for array in arrays}
    (batch, hidden) = arrays[-1].shape
    if backend == "auto":
        return dtypes == {"float32"} and native.serves(batch, hidden, np.float32) and native.unavailable() is None
    reason = native.unavailable() if dtypes == {"float32"} else f"it takes float32, and was given {sorted(dtypes)}"
    if reason is not None:
        raise ValueError(f'backend="native" cannot be had: {reason}.')
    return True


def _gate_scale(recurrent_kernel: Array) -> Array:
    """1/2 for the columns of the sigmoid gates i, f, o and 1 for those of g, shaped [4 * hidden]."""
    hidden = recurrent_kernel.shape[0]
    return jnp.repeat(jnp.array([0.5, 0.5, 1.0, 0.5], recurrent_kernel.dtype), hidden)


def _project(inputs: Array, kernel: Array) -> Array:
    """inputs @ kernel, [time, batch, in] @ [in, out], as one product of matrices.

    Flattened, because the gradient of a product with three axes has XLA transpose the large operand.
    """
    time, batch, features = inputs.shape
    return (inputs.reshape(time * batch, features) @ kernel).reshape(time, batch, kernel.shape[1])


def _vary_alike(*arrays: Array) -> list[Array]:
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    everywhere = frozenset().union(*varying)
    return [
        jax.lax.pcast(array, tuple(everywhere - axes), to="varying") if everywhere - axes else array
        for array, axes in zip(arrays, varying, strict=True)
    ]


def _gates(activations: Array) -> tuple[Array, Array, Array, Array]:
    """The gates i, f, g, o from tanh of the scaled, packed pre-activations [..., 4 * hidden]."""
    i, f, g, o = jnp.split(activations, 4, axis=-1)
    return 0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _recurrence(
    projected: Array, recurrent_kernel: Array, h: Array, c: Array, reverse: bool, unroll: int, is_native: bool
) -> Any:
    """The loop: (hs, cs, last h, last c), from projected inputs and weights that `lstm` has scaled."""
    return _forward(projected, recurrent_kernel, h, c, reverse, unroll, is_native, False)[0]


def _forward(
    projected: Array,
    recurrent_kernel: Array,
    h: Array,
    c: Array,
    reverse: bool,
    unroll: int,
    is_native: bool,
    with_activations: bool,
) -> Any:
    def xla(*arrays: Any) -> Any:
        hs, cs, activations, last_h, last_c = _xla_forward(*arrays, reverse=reverse, unroll=unroll)
        return hs, cs, activations if with_activations else None, last_h, last_c

    loop = native.forward(xla, reverse=reverse, cells=True, activations=with_activations) if is_native else xla
    hs, cs, activations, last_h, last_c = loop(projected, recurrent_kernel, h, c)
    return (hs, cs, last_h, last_c), activations


def _xla_forward(projected: Array, recurrent_kernel: Array, h: Array, c: Array, *, reverse: bool, unroll: int) -> Any:
    def step(carry: tuple[Array, Array], projected: Array) -> Any:
        h, c = carry
        activations = jnp.tanh(projected + h @ recurrent_kernel)
        i, f, g, o = _gates(activations)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h, c, activations)

    (last_h, last_c), (hs, cs, activations) = jax.lax.scan(step, (h, c), projected, reverse=reverse, unroll=unroll)
    return hs, cs, activations, last_h, last_c


def _recurrence_fwd(
    projected: Any, recurrent_kernel: Any, h: Any, c: Any, reverse: bool, unroll: int, is_native: bool
) -> tuple[Any, Any]:
    # With symbolic zeros, JAX hands over each argument with a note of whether its gradient is wanted.
    arrays = projected.value, recurrent_kernel.value, h.value, c.value
    outputs, activations = _forward(*arrays, reverse, unroll, is_native, True)
    return outputs, (*arrays[1:], outputs[0], outputs[1], activations)


def _recurrence_bwd(reverse: bool, unroll: int, is_native: bool, residuals: Any, cotangents: Any) -> tuple[Array, ...]:
    recurrent_kernel, initial_h, initial_c, hs, cs, activations = residuals
    # Outputs that nobody used have no gradient to add: that is the rule, not the exception (a classifier
    # reads the last state alone), and saves reading an array of zeros in every step.
    used = [None if isinstance(d, SymbolicZero) else d for d in cotangents[:2]]
    last = [jnp.zeros_like(initial_h) if isinstance(d, SymbolicZero) else d for d in cotangents[2:]]
    varying = _vary_alike(activations, *last, *(d for d in used if d is not None))
    activations, *last = varying[:3]
    rest = iter(varying[3:])
    used = [None if d is None else next(rest) for d in used]
    xla = partial(_xla_backward, reverse=reverse, unroll=unroll)
    loop = native.backward(xla, reverse=reverse) if is_native else xla
    d_projected, d_initial_h, d_initial_c = loop(activations, cs, initial_c, recurrent_kernel, *used, *last)
    previous_h = _shift(initial_h, hs, reverse)
    d_recurrent_kernel = jnp.einsum("tbh,tbg->hg", previous_h, d_projected)
    return d_projected, d_recurrent_kernel, d_initial_h, d_initial_c


def _xla_backward(
    activations: Array,
    cs: Array,
    initial_c: Array,
    recurrent_kernel: Array,
    d_hs: Array | None,
    d_cs: Array | None,
    d_last_h: Array,
    d_last_c: Array,
    *,
    reverse: bool,
    unroll: int,
) -> Any:
    previous_c = _shift(initial_c, cs, reverse)
    i, f, g, o = _gates(activations)
    tanh_c = jnp.tanh(cs)
    # d sigma(z)/d(z/2) = 2 sigma (1 - sigma): the pre-activations are the scaled ones.
    d_gates = jnp.concatenate(
        [2 * g * i * (1 - i), 2 * previous_c * f * (1 - f), i * (1 - g * g), 2 * tanh_c * o * (1 - o)],
        axis=-1,
    )
    dc_by_dh = o * (1 - tanh_c * tanh_c)
    transposed_kernel = recurrent_kernel.T

    def step(carry: tuple[Array, Array], xs: Any) -> Any:
        dh, dc = carry
        d_gates, dc_by_dh, f, d_h, d_c = xs
        dh = dh if d_h is None else dh + d_h
        dc = dc + dh * dc_by_dh
        dc = dc if d_c is None else dc + d_c
        d_projected = jnp.concatenate([dc, dc, dc, dh], axis=-1) * d_gates
        return (d_projected @ transposed_kernel, dc * f), d_projected

    (d_initial_h, d_initial_c), d_projected = jax.lax.scan(
        step, (d_last_h, d_last_c), (d_gates, dc_by_dh, f, d_hs, d_cs), reverse=not reverse, unroll=unroll
    )
    return d_projected, d_initial_h, d_initial_c


def _shift(initial: Array, states: Array, reverse: bool) -> Array:
    """The state before each step, from the state after each: [time, batch, hidden]."""
    pieces = [states[1:], initial[None]] if reverse else [initial[None], states[:-1]]
    return jnp.concatenate(pieces)


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd, symbolic_zeros=True)
