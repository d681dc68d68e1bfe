"""Any gated recurrence over plain arrays: one matrix product per step, and a function of each example.

Depends on arrays; not on modules or equations. What a cell does with its gates is a function argument:

    recurrent_t = h_{t-1} U        carry_t = update(params, carry_{t-1}, projected_t, recurrent_t)

where h, the output, is the last part of the carry. `recurrence.lstm` is the same for the one cell whose derivative is
written by hand. Here JAX differentiates `update` only: the inputs are projected before the loop, and the
gradients of the matrices are one product each after it. The recurrent products are not stored but recomputed, all in
one product.

Each gate is an array of its own. (On a CPU, XLA does not vectorize a step of a loop that reads parts of one array: it
would take three times as long.)

Options of the recurrence, the same for every cell: a projection of the output (LSTMP, Sak et al. 2014), a
dropout mask on h that is the same at every step (Gal and Ghahramani 2016), and zoneout (Krueger et al. 2017).
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lstm_mnist_jax.rnn.derivatives import Function
from lstm_mnist_jax.rnn.products import outer, product, shift, state_dtype, vary_alike
from lstm_mnist_jax.rnn.recurrence import AnyArray, require_options, states_after
from lstm_mnist_jax.rnn.sharding import with_automatic_axes

Carry = tuple[Array, ...]
Gates = tuple[Array, ...]
Update = Callable[[Any, Carry, Gates, Gates], Carry]


def gated(
    update: Update,
    params: Any,
    projected: tuple[Annotated[AnyArray, "time batch hidden"], ...],
    recurrent_kernel: Annotated[AnyArray, "outputs gates_hidden"],
    initial_carry: tuple[Annotated[AnyArray, "batch _"], ...],
    *,
    recurrent_bias: Annotated[AnyArray, "gates_hidden"] | None = None,
    projection: Annotated[AnyArray, "hidden outputs"] | None = None,
    recurrent_mask: Annotated[AnyArray, "batch outputs"] | None = None,
    zoneout: tuple[AnyArray | float, ...] | None = None,
    reverse: bool = False,
    unroll: int = 1,
    return_carries: bool = True,
    resets: Annotated[AnyArray, "time batch"] | None = None,
    reset_carry: tuple[Annotated[AnyArray, "batch _"], ...] | None = None,
) -> tuple[tuple[Any, ...], Carry]:
    """Runs a gated recurrence over a batch of sequences. Differentiable in every array but the masks.

        recurrent_t = h_{t-1} U + d        carry_t = update(params, carry_{t-1}, projected_t, recurrent_t)

    Args:
      update: (params, carry, projected, recurrent) -> carry, for one time step. `projected` and `recurrent` are tuples
        of the gates, [batch, hidden] each. The last part of the new carry is the output m [batch, hidden]. Each row
        of the result must depend on the same row of the arguments only.
      params: a pytree of float arrays that `update` reads.
      projected: the contribution of the inputs to each gate, biases included: a tuple of floats [time, batch, hidden].
      recurrent_kernel: U, floats [outputs, gates * hidden], the gates side by side. The products are computed in its
        dtype; if that is narrower than float32, the carries are float32.
      initial_carry: before the first step: a tuple of floats [batch, features] with h [batch, outputs] last.
      recurrent_bias: d, floats [gates * hidden]; None is zero.
      projection: P, floats [hidden, outputs]: if given, the output is h = m P.
      recurrent_mask: floats [batch, outputs] by which h is multiplied before the product with U, at every step.
      zoneout: for each part of the carry, either booleans [time, batch, features], true where that part keeps its value
        of the step before, or the probability of that, to compute with the expectation.
      reverse: start at the last time step. Each output has the time index of its input.
      unroll: time steps per iteration of the loop.
      return_carries: whether to return every part of the carries, or None for all but the last part, the outputs.
        Writing the others takes time.
      resets: booleans [time, batch]: where True, the carry is `reset_carry` before this step. None is never.
      reset_carry: as `initial_carry`; None is `initial_carry`.

    Returns:
      The carries after every step, a tuple of parts [time, batch, features] (the last are the outputs), and the last
      carry: with `reverse`, that after the step of time 0.

    Raises:
      TypeError: shapes that do not fit together; the error is JAX's.
      ValueError: the same; or `unroll` is below 1.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from lstm_mnist_jax.rnn import gated
      >>> def update(params, carry, projected, recurrent):  # the minimal gated unit, Zhou et al. 2016
      ...     (h,) = carry
      ...     f = jax.nn.sigmoid(projected[0] + recurrent[0])
      ...     return (f * h + (1 - f) * jnp.tanh(projected[1] + f * recurrent[1]),)
      >>> projected = jnp.ones((10, 5, 32)), jnp.ones((10, 5, 32))
      >>> (outputs,), (h,) = gated(update, {}, projected, jnp.ones((32, 64)), (jnp.zeros((5, 32)),))
      >>> outputs.shape, bool((outputs[-1] == h).all())
      ((10, 5, 32), True)
    """
    for name, parts in (("projected", projected), ("initial_carry", initial_carry)):
        if not isinstance(parts, tuple | list):  # the rows of an array would be taken for its parts
            raise ValueError(f"gated expected {name} to be a tuple of arrays; got {type(parts).__name__}.")
    require_options("gated", unroll, reverse=reverse, return_carries=return_carries)
    recurrent_kernel = jnp.asarray(recurrent_kernel)
    dtype = state_dtype(recurrent_kernel.dtype)
    carry = tuple(jnp.asarray(part, dtype) for part in initial_carry)
    after = states_after(resets, reset_carry or initial_carry, dtype)
    masks = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, (recurrent_mask, zoneout)))
    given: Any = params, projected, recurrent_kernel, recurrent_bias, projection, carry, masks, after
    arrays = jax.tree.map(jnp.asarray, _Arrays(*given))
    settings = _Settings(update, reverse, unroll, return_carries)
    return with_automatic_axes(partial(_compiled, settings), arrays.projected[0], 0, 1, (0, -1))(arrays)


class _Settings(NamedTuple):
    """The arguments of `gated` that are not arrays."""

    update: Update
    reverse: bool
    unroll: int
    return_carries: bool


class _Arrays(NamedTuple):
    """The arguments of `gated` that are arrays.

    `masks` is (recurrent_mask, zoneout); `resets` is (booleans [time, batch, 1], *reset_carry) or None.
    """

    params: Any
    projected: Gates
    kernel: Array
    bias: Any
    projection: Any
    carry: Carry
    masks: Any
    resets: Any


# Compiled here, so that calls outside `jit` compile once and not each time.
@partial(jax.jit, static_argnums=0)
def _compiled(settings: _Settings, arrays: _Arrays) -> tuple[tuple[Any, ...], Carry]:
    # A shard_map may have some of these vary over its devices and others not; the loop needs one type for all.
    return _gated(settings, vary_alike(arrays))


def _split(packed: Array, like: Gates) -> Gates:
    """Gates that are side by side in one array, as a tuple of arrays."""
    return tuple(jnp.split(packed, len(like), axis=-1))


def _plus(recurrent: Array, bias: Any) -> Array:
    return recurrent if bias is None else recurrent + bias.astype(recurrent.dtype)


def _masked(h: Array, mask: Any) -> Array:
    return h if mask is None else h * mask.astype(h.dtype)


def _kept(kept: Array, before: Array, after: Array) -> Array:
    """Zoneout: where to keep the value before, or how much of it."""
    if kept.dtype == bool:
        return jnp.where(kept, before, after)
    kept = kept.astype(before.dtype)
    return kept * before + (1 - kept) * after


def _each_step(zoneout: Any) -> tuple[Any, ...]:
    """What a loop over time reads of the masks: rates are the same at every step, and not among its inputs."""
    return tuple(part if part.ndim else None for part in zoneout or ())


def _at_step(zoneout: Any, zones: Any) -> list[Array]:
    """The masks and rates of one step."""
    return [rate if zone is None else zone for rate, zone in zip(zoneout, zones, strict=True)]


def _loop(settings: _Settings, arrays: _Arrays) -> tuple[tuple[Any, ...], Carry, Any]:
    """As `gated`; and what entered the projection, if there is one, where all parts are wanted."""
    params, projected, kernel, bias, projection, carry, (recurrent_mask, zoneout), resets = arrays

    def step(carry: Carry, xs: Any) -> Any:
        projected, zones, reset = xs
        if resets is not None:
            carry = tuple(jnp.where(reset, new, old) for new, old in zip(resets[1:], carry, strict=True))
        recurrent = _plus(product(_masked(carry[-1], recurrent_mask), kernel), bias)
        # Not left to JAX, which may be told to promote nothing (jax_numpy_dtype_promotion="strict").
        projected = tuple(gate.astype(recurrent.dtype) for gate in projected)
        after = settings.update(params, carry, projected, _split(recurrent, projected))
        unprojected = None
        if projection is not None:
            unprojected = after[-1]
            after = (*after[:-1], product(unprojected, projection))
        if zoneout is not None:
            after = tuple(_kept(*parts) for parts in zip(_at_step(zoneout, zones), carry, after, strict=True))
        after = tuple(part.astype(before.dtype) for part, before in zip(after, carry, strict=True))
        if not settings.return_carries:
            return after, ((*(None,) * (len(after) - 1), after[-1]), None)
        return after, (after, unprojected)

    last, (carries, unprojected) = jax.lax.scan(
        step,
        carry,
        (projected, _each_step(zoneout), resets and resets[0]),
        reverse=settings.reverse,
        unroll=settings.unroll,
    )
    return carries, last, unprojected


def _forward(settings: _Settings, arrays: _Arrays) -> tuple[Any, Any]:
    carries, last, unprojected = _loop(settings._replace(return_carries=True), arrays)
    given = carries if settings.return_carries else (*(None,) * (len(carries) - 1), carries[-1])
    return (given, last), (carries, unprojected)


def _backward(settings: _Settings, arguments: Any, kept: Any, gradients: Any) -> tuple[_Arrays]:
    (arrays,), (carries, unprojected), (used, d_last) = arguments, kept, gradients
    params, projected, kernel, bias, projection, initial, masks, resets = arrays
    recurrent_mask, zoneout = masks
    before = tuple(shift(first, part, settings.reverse) for first, part in zip(initial, carries, strict=True))
    if resets is not None:
        before = tuple(jnp.where(resets[0], new, old) for new, old in zip(resets[1:], before, strict=True))
    recurring = _masked(before[-1], recurrent_mask)
    recurrent = _split(_plus(product(recurring, kernel), bias), projected)

    def step(gradients: Any, xs: Any) -> Any:
        d_carry, d_params, d_reset = gradients
        before, projected, recurrent, zones, d_after, reset = xs
        d_carry = tuple(d if more is None else d + more for d, more in zip(d_carry, d_after, strict=True))
        d_kept: Any = (0,) * len(d_carry)
        if zoneout is not None:
            zones = _at_step(zoneout, zones)
            d_kept = tuple(_kept(zone, d, jnp.zeros_like(d)) for zone, d in zip(zones, d_carry, strict=True))
            d_carry = tuple(_kept(zone, jnp.zeros_like(d), d) for zone, d in zip(zones, d_carry, strict=True))
        d_output = d_carry[-1]
        if projection is not None:
            d_carry = (*d_carry[:-1], product(d_output, projection.T))
        narrow, projected = projected, tuple(gate.astype(recurrent[0].dtype) for gate in projected)
        after, pull_back = jax.vjp(settings.update, params, before, projected, recurrent)
        d_carry = tuple(d.astype(part.dtype) for d, part in zip(d_carry, after, strict=True))
        d_step, d_before, d_projected, d_recurrent = pull_back(d_carry)
        d_projected = tuple(d.astype(gate.dtype) for d, gate in zip(d_projected, narrow, strict=True))
        d_recurrent = jnp.concatenate(d_recurrent, axis=-1).astype(kernel.dtype)
        d_h = _masked(product(d_recurrent, kernel.T), recurrent_mask)
        d_before = (*d_before[:-1], d_before[-1] + d_h)
        d_before = tuple(d + kept for d, kept in zip(d_before, d_kept, strict=True))
        d_params = jax.tree.map(jnp.add, d_params, d_step)
        if resets is not None:
            d_reset = tuple(old + jnp.where(reset, new, 0.0) for old, new in zip(d_reset, d_before, strict=True))
            d_before = tuple(jnp.where(reset, 0.0, new) for new in d_before)
        return (d_before, d_params, d_reset), (d_projected, d_recurrent, None if projection is None else d_output)

    d_last = tuple(jnp.zeros_like(part) if d is None else d for d, part in zip(d_last, initial, strict=True))
    d_params = jax.tree.map(jnp.zeros_like, params)
    d_reset = resets and jax.tree.map(jnp.zeros_like, initial)
    (d_initial, d_params, d_reset), (d_projected, d_recurrent, d_outputs) = jax.lax.scan(
        step,
        vary_alike((d_last, d_params, d_reset, projected))[:3],
        (before, projected, recurrent, _each_step(zoneout), used, resets and resets[0]),
        reverse=not settings.reverse,
        unroll=settings.unroll,
    )
    d_projection = None if projection is None else outer(unprojected, d_outputs.astype(projection.dtype))
    d_kernel = outer(recurring, d_recurrent)
    d_bias = None if bias is None else jnp.sum(d_recurrent, (0, 1)).astype(bias.dtype)
    d_resets = resets and (None, *d_reset)
    no_gradients = jax.tree.map(lambda mask: None, masks)
    return (_Arrays(d_params, d_projected, d_kernel, d_bias, d_projection, d_initial, no_gradients, d_resets),)


_gated = Function(lambda *arguments: _loop(*arguments)[:2], _forward, _backward)
