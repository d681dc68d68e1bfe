"""The loops of the LSTM and the GRU in JAX, forward and backward, and the gradients of weights: the reference for the
CPU kernel.

XLA runs them in place of the kernel on other platforms; those of the LSTM also wherever the kernel is not chosen (the
GRU then runs on `gated`). Arguments and results are those of `recurrence` and `gru`.

sigmoid(z) = (1 + tanh(z/2)) / 2: in weights and biases, the columns of the gates that are sigmoids (i, f and o; r and
z) are halved before the loop, which changes no digit but of the smallest numbers, so that one tanh runs over all gates.
(XLA's own sigmoid takes several times as long on a CPU.) "Activations" are the tanh of the gates' arguments, of
sigmoids those of their halves.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lstm_mnist_jax.rnn.products import outer, product, project, shift, state_dtype


def _scaled(array: Array, *factors: float) -> Array:
    """An array [..., parts * hidden], of which each part is multiplied by its factor."""
    return array * jnp.repeat(jnp.array(factors, array.dtype), array.shape[-1] // len(factors))


def _gates(activations: Array) -> tuple[Array, Array, Array, Array]:
    """The gates i, f, g, o from the activations [..., 4 * hidden]."""
    i, f, g, o = jnp.split(activations.astype(state_dtype(activations.dtype)), 4, axis=-1)
    return 0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5


def lstm_forward(
    inputs: Array,
    kernel: Array,
    bias: Array,
    recurrent_kernel: Array,
    h: Array,
    c: Array,
    resets: Any = None,
    *,
    cells: bool,
    activations: bool,
    reverse: bool,
    unroll: int = 1,
) -> Any:
    """The forward loop of the LSTM.

    Args:
      inputs: [time, batch, features].
      kernel: [features, 4 * hidden].
      bias: [4 * hidden].
      recurrent_kernel: [hidden, 4 * hidden].
      h, c: before the first step, [batch, hidden].
      resets: None, or booleans [time, batch, 1] with the h and the c to which the carry returns before these steps.
      cells: whether to return cs.
      activations: whether to return the tanh of the gates' arguments, which a gradient needs.
      reverse, unroll: see `recurrence.lstm`.

    Returns:
      hs and cs [time, batch, hidden], the activations [time, batch, 4 * hidden], and the last h and c.
    """
    dtype = recurrent_kernel.dtype
    kernel, bias, recurrent_kernel = (
        _scaled(array, 0.5, 0.5, 1.0, 0.5) for array in (kernel, bias.astype(state_dtype(dtype)), recurrent_kernel)
    )

    def step(carry: tuple[Array, Array], xs: Any) -> Any:
        projected, reset = xs
        h, c = carry
        if resets is not None:
            h, c = (jnp.where(reset, new, old) for new, old in zip(resets[1:], carry, strict=True))
        tanh = jnp.tanh(projected.astype(bias.dtype) + bias + product(h, recurrent_kernel))
        i, f, g, o = _gates(tanh)
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), (h.astype(dtype), c if cells else None, tanh.astype(dtype) if activations else None)

    xs = (project(inputs, kernel), None if resets is None else resets[0])
    (last_h, last_c), (hs, cs, tanhs) = jax.lax.scan(step, (h, c), xs, reverse=reverse, unroll=unroll)
    return hs, cs, tanhs, last_h, last_c


def lstm_backward(
    activations: Array,
    cs: Array,
    initial_c: Array,
    recurrent_kernel: Array,
    d_hs: Array | None,
    d_cs: Array | None,
    d_last_h: Array,
    d_last_c: Array,
    resets: Any = None,
    *,
    reverse: bool,
    unroll: int = 1,
) -> Any:
    """The backward loop of the LSTM: the gradients of the projected inputs, the initial h and c, and those of resets.

    Args:
      activations, cs: results of the forward loop.
      initial_c, recurrent_kernel, reverse, unroll: as for the forward loop.
      d_hs, d_cs, d_last_h, d_last_c: the gradients of its results. None is zero, and is not added.
      resets: None, or booleans [time, batch, 1] with the c to which the carry returns before these steps.
    """
    previous_c = shift(initial_c, cs, reverse)
    if resets is not None:
        previous_c = jnp.where(resets[0], resets[1], previous_c)
    i, f, g, o = _gates(activations)
    tanh_c = jnp.tanh(cs)
    d_gates = jnp.concatenate(
        [g * i * (1 - i), f * (1 - f) * previous_c, i * (1 - g * g), tanh_c * o * (1 - o)], axis=-1
    )
    dc_by_dh = o * (1 - tanh_c * tanh_c)
    transposed_kernel = recurrent_kernel.T

    def step(carry: Any, xs: Any) -> Any:
        (dh, dc), d_reset = carry
        d_gates, dc_by_dh, f, d_h, d_c, reset = xs
        dh = dh if d_h is None else dh + d_h.astype(dh.dtype)
        dc = dc + dh * dc_by_dh
        dc = dc if d_c is None else dc + d_c
        d_projected = jnp.concatenate([dc, dc, dc, dh], axis=-1) * d_gates
        d_projected = d_projected.astype(transposed_kernel.dtype)
        before = (product(d_projected, transposed_kernel), dc * f)
        if resets is not None:
            d_reset = tuple(old + jnp.where(reset, new, 0.0) for old, new in zip(d_reset, before, strict=True))
            before = (jnp.where(reset, 0.0, before[0]), jnp.where(reset, 0.0, before[1]))
        return (before, d_reset), d_projected

    start = (d_last_h, d_last_c)
    d_reset = None if resets is None else (jnp.zeros_like(d_last_h), jnp.zeros_like(d_last_c))
    xs = (d_gates, dc_by_dh, f, d_hs, d_cs, None if resets is None else resets[0])
    (d_initial, d_reset), d_projected = jax.lax.scan(step, (start, d_reset), xs, reverse=not reverse, unroll=unroll)
    return d_projected, *d_initial, *(d_reset or (None, None))


def gru_forward(
    inputs: Array,
    kernel: Array,
    bias: Array,
    recurrent_kernel: Array,
    h: Array,
    resets: Any = None,
    *,
    activations: bool,
    reverse: bool,
    unroll: int = 1,
) -> Any:
    """The forward loop of the GRU.

    Args:
      inputs: [time, batch, features].
      kernel: [features, 3 * hidden].
      bias: [4 * hidden]: of r, z and n, and that of the recurrent product which r multiplies.
      recurrent_kernel: [hidden, 3 * hidden].
      h: before the first step, [batch, hidden].
      resets: None, or booleans [time, batch, 1] with the h to which the carry returns before these steps.
      activations: whether to return what a gradient needs.
      reverse, unroll: see `gru.gru`.

    Returns:
      hs [time, batch, hidden], the activations [time, batch, 3 * hidden], the recurrent product which r multiplies with
      its bias [time, batch, hidden], and the last h.
    """
    dtype = recurrent_kernel.dtype
    hidden = h.shape[-1]
    bias, recurrent_bias = jnp.split(bias.astype(state_dtype(dtype)), [3 * hidden])
    kernel, bias, recurrent_kernel = (_scaled(array, 0.5, 0.5, 1.0) for array in (kernel, bias, recurrent_kernel))

    def step(h: Array, xs: Any) -> Any:
        projected, reset = xs
        if resets is not None:
            h = jnp.where(reset, resets[1], h)
        projected = projected.astype(bias.dtype) + bias
        recurrent = product(h, recurrent_kernel)
        last = recurrent[:, 2 * hidden :] + recurrent_bias
        r, z = jnp.split(jnp.tanh(projected[:, : 2 * hidden] + recurrent[:, : 2 * hidden]), 2, axis=-1)
        n = jnp.tanh(projected[:, 2 * hidden :] + (0.5 * r + 0.5) * last)
        h = n + (0.5 * z + 0.5) * (h - n)
        kept = (jnp.concatenate([r, z, n], axis=-1).astype(dtype), last.astype(dtype)) if activations else (None, None)
        return h, (h.astype(dtype), *kept)

    xs = (project(inputs, kernel), None if resets is None else resets[0])
    last_h, (hs, tanhs, recurrents) = jax.lax.scan(step, h, xs, reverse=reverse, unroll=unroll)
    return hs, tanhs, recurrents, last_h


def gru_backward(
    activations: Array,
    recurrents: Array,
    hs: Array,
    initial_h: Array,
    recurrent_kernel: Array,
    d_hs: Array | None,
    d_last_h: Array,
    resets: Any = None,
    *,
    reverse: bool,
    unroll: int = 1,
) -> Any:
    """The backward loop of the GRU: the gradients of the projected inputs, `recurrents`, the initial h and resets.

    Args:
      activations, recurrents, hs: results of the forward loop.
      initial_h, recurrent_kernel, resets, reverse, unroll: as for the forward loop.
      d_hs, d_last_h: the gradients of its results. None is zero, and is not added.
    """
    dtype = state_dtype(recurrent_kernel.dtype)
    previous_h = shift(initial_h, hs, reverse).astype(dtype)
    if resets is not None:
        previous_h = jnp.where(resets[0], resets[1], previous_h)
    tanh_r, tanh_z, n = jnp.split(activations.astype(dtype), 3, axis=-1)
    r, z = 0.5 * tanh_r + 0.5, 0.5 * tanh_z + 0.5
    dn_by_dh = (1 - z) * (1 - n * n)
    dr_by_dn = recurrents.astype(dtype) * r * (1 - r)
    dz_by_dh = z * (1 - z) * (previous_h - n)
    transposed_kernel = recurrent_kernel.T

    def step(carry: Any, xs: Any) -> Any:
        dh, d_reset = carry
        dn_by_dh, dr_by_dn, dz_by_dh, r, z, d_h, reset = xs
        dh = dh if d_h is None else dh + d_h.astype(dh.dtype)
        dn = dh * dn_by_dh
        dr, dz = dn * dr_by_dn, dh * dz_by_dh
        d_projected = jnp.concatenate([dr, dz, dn], axis=-1).astype(transposed_kernel.dtype)
        d_last = (dn * r).astype(transposed_kernel.dtype)
        d_recurrent = jnp.concatenate([d_projected[:, : 2 * dh.shape[-1]], d_last], axis=-1)
        before = dh * z + product(d_recurrent, transposed_kernel)
        if resets is not None:
            d_reset = d_reset + jnp.where(reset, before, 0.0)
            before = jnp.where(reset, 0.0, before)
        return (before, d_reset), (d_projected, d_last)

    d_reset = None if resets is None else jnp.zeros_like(d_last_h)
    xs = (dn_by_dh, dr_by_dn, dz_by_dh, r, z, d_hs, None if resets is None else resets[0])
    (d_initial, d_reset), (d_projected, d_recurrents) = jax.lax.scan(
        step, (d_last_h, d_reset), xs, reverse=not reverse, unroll=unroll
    )
    return d_projected, d_recurrents, d_initial, d_reset


def weight_gradient(
    inputs: Array, gradients: Array, initial: tuple[Array] | None = None, *, bias: bool, reverse: bool
) -> tuple[Array, Array | None]:
    """The gradients of a matrix and of the bias that is added to its product, at all steps.

    Args:
      inputs: what is multiplied by the matrix, [time, batch, features].
      gradients: those of the product, [time, batch, columns].
      initial: None; or the state before the first step, [batch, features]. Then `inputs` are the states after each
        step, of which each enters the step after it.
      bias: whether to return the gradient of the bias.
      reverse: whether the first step is the last one in memory. Without `initial`, it does not matter.

    Returns:
      [features, columns] and [columns].
    """
    if initial is not None:
        inputs = shift(initial[0], inputs, reverse)
    return outer(inputs, gradients), jnp.sum(gradients, (0, 1)) if bias else None
