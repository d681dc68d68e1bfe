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
from jaxtyping import Array, DTypeLike, Float

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
) -> LSTMStates:
    """Runs an LSTM over a batch of sequences. Differentiable in every array, in reverse mode.

    Args:
      inputs: time-major inputs.
      kernel, recurrent_kernel, bias: parameters, columns in the gate order i, f, g, o. The products are computed in
        the dtype of `recurrent_kernel`; with one below float32 (bfloat16), sums, gates and carries are float32, and
        what is kept of every step for the gradient, and the outputs, are of that dtype.
      initial_carry: (c, h) before the first step.
      reverse: start at the last time step. Outputs stay at the time of their input.
      unroll: steps a loop iteration.

    Returns:
      The states; `last` is that after the first time step where `reverse` is set.

    Raises:
      ValueError: the weights are not those of four gates.
    """
    hidden, gates = recurrent_kernel.shape
    if gates != 4 * hidden:
        raise ValueError(
            f"recurrent_kernel is {hidden} x {gates}; with {hidden} hidden features, expected {4 * hidden} columns."
        )
    dtype = recurrent_kernel.dtype
    inputs, kernel, recurrent_kernel, bias = (
        jnp.asarray(array, dtype) for array in (inputs, kernel, recurrent_kernel, bias)
    )
    c, h = (jnp.asarray(part, state_dtype(dtype)) for part in initial_carry)
    halves = _gate_scale(recurrent_kernel)
    # A shard_map may have some of these vary over its devices and others not; the loop needs one type for all.
    projected, recurrent_kernel, c, h = vary_alike(
        (project(inputs, kernel * halves[None]) + (bias * halves)[None, None], recurrent_kernel * halves[None], c, h)
    )
    hs, cs, last_h, last_c = _recurrence(projected, recurrent_kernel, h, c, reverse, unroll)
    return LSTMStates(hs, cs, LSTMCarry(last_c, last_h))


def state_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which a recurrence with weights of `dtype` keeps its states: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def _gate_scale(recurrent_kernel: Array) -> Array:
    """1/2 for the columns of the sigmoid gates i, f, o and 1 for those of g, shaped [4 * hidden]."""
    hidden = recurrent_kernel.shape[0]
    return jnp.repeat(jnp.array([0.5, 0.5, 1.0, 0.5], recurrent_kernel.dtype), hidden)


def project(inputs: Array, kernel: Array) -> Array:
    """inputs @ kernel, [time, batch, in] @ [in, out], as one product of matrices.

    Flattened, because the gradient of a product with three axes has XLA transpose the large operand.
    """
    time, batch, features = inputs.shape
    return (inputs.reshape(time * batch, features) @ kernel).reshape(time, batch, kernel.shape[1])


def vary_alike(tree: Any) -> Any:
    """Arrays that vary over the same axes of a surrounding shard_map: all those that any of them varies over."""
    structure: Any
    leaves, structure = jax.tree.flatten(tree)
    varying = [jax.typeof(leaf).manual_axis_type.varying for leaf in leaves]
    everywhere = frozenset().union(*varying)
    return structure.unflatten(
        jax.lax.pcast(leaf, tuple(everywhere - axes), to="varying") if everywhere - axes else leaf
        for leaf, axes in zip(leaves, varying, strict=True)
    )


def product(rows: Array, kernel: Array) -> Array:
    """rows @ kernel, multiplied in the kernel's dtype, added up and given in that of the states."""
    return jnp.matmul(rows.astype(kernel.dtype), kernel, preferred_element_type=state_dtype(kernel.dtype))


def outer(inputs: Array, outputs: Array) -> Array:
    """The gradient of a matrix, [in, out], from what entered it and the gradient of what came out, at all steps.

    Flattened for the same reason as in `project`.
    """
    dtype = outputs.dtype
    entered, came_out = (array.astype(dtype).reshape(-1, array.shape[-1]) for array in (inputs, outputs))
    by_rows = (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(entered, came_out, by_rows, preferred_element_type=state_dtype(dtype)).astype(dtype)


def shift(initial: Array, states: Array, reverse: bool) -> Array:
    """The state before each step, from the state after each: [time, batch, hidden]."""
    first = initial[None].astype(states.dtype)
    return jnp.concatenate([states[1:], first] if reverse else [first, states[:-1]])


def _gates(activations: Array) -> tuple[Array, Array, Array, Array]:
    """The gates i, f, g, o from tanh of the scaled, packed pre-activations [..., 4 * hidden]."""
    i, f, g, o = jnp.split(activations.astype(state_dtype(activations.dtype)), 4, axis=-1)
    return 0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _recurrence(projected: Array, recurrent_kernel: Array, h: Array, c: Array, reverse: bool, unroll: int) -> Any:
    """The loop: (hs, cs, last h, last c), from projected inputs and weights that `lstm` has scaled."""
    return _forward(projected, recurrent_kernel, h, c, reverse, unroll)[0]


def _forward(projected: Array, recurrent_kernel: Array, h: Array, c: Array, reverse: bool, unroll: int) -> Any:
    dtype = recurrent_kernel.dtype

    def step(carry: tuple[Array, Array], projected: Array) -> Any:
        h, c = carry
        activations = jnp.tanh(projected + product(h, recurrent_kernel))
        i, f, g, o = _gates(activations)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h.astype(dtype), c, activations.astype(dtype))

    (last_h, last_c), (hs, cs, activations) = jax.lax.scan(step, (h, c), projected, reverse=reverse, unroll=unroll)
    return (hs, cs, last_h, last_c), activations


def _recurrence_fwd(
    projected: Any, recurrent_kernel: Any, h: Any, c: Any, reverse: bool, unroll: int
) -> tuple[Any, Any]:
    # With symbolic zeros, JAX hands over each argument with a note of whether its gradient is wanted.
    arrays = projected.value, recurrent_kernel.value, h.value, c.value
    outputs, activations = _forward(*arrays, reverse, unroll)
    return outputs, (*arrays[1:], outputs[0], outputs[1], activations)


def _recurrence_bwd(reverse: bool, unroll: int, residuals: Any, cotangents: Any) -> tuple[Array, ...]:
    recurrent_kernel, initial_h, initial_c, hs, cs, activations = residuals
    d_hs, d_cs, d_last_h, d_last_c = cotangents
    previous_h, previous_c = shift(initial_h, hs, reverse), shift(initial_c, cs, reverse)
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
        d_projected = d_projected.astype(transposed_kernel.dtype)
        return (product(d_projected, transposed_kernel), dc * f), d_projected

    # Outputs that nobody used have no gradient to add: that is the rule, not the exception (a classifier
    # reads the last state alone), and saves reading an array of zeros in every step.
    used = [None if isinstance(d, SymbolicZero) else d for d in (d_hs, d_cs)]
    start = [jnp.zeros_like(initial_h) if isinstance(d, SymbolicZero) else d for d in (d_last_h, d_last_c)]
    dh, dc, _ = vary_alike((*start, activations))
    (d_initial_h, d_initial_c), d_projected = jax.lax.scan(
        step, (dh, dc), (d_gates, dc_by_dh, f, *used), reverse=not reverse, unroll=unroll
    )
    return d_projected, outer(previous_h, d_projected), d_initial_h, d_initial_c


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd, symbolic_zeros=True)
