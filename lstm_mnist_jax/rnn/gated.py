"""Any gated recurrence over plain arrays: one matrix product a step, and a function of each example alone.

Knows arrays; knows no modules and no equations. What a cell does with its gates is a function that is given:

    recurrent_t = h_{t-1} U        carry_t = update(params, carry_{t-1}, projected_t, recurrent_t)

where h, the part of the carry that recurs and is the output, stands last in the carry. `recurrence.lstm` is the same
thing for the one cell whose derivative is worth writing by hand; here JAX differentiates `update`, and all that
costs time is kept out of its hands: the inputs were projected before the loop, and the gradients of the matrices
are one product each after it. The recurrent products are not stored but computed again, all in one.

The gates come to `update` as arrays of their own. (XLA on a CPU does not vectorise a loop's step that reads parts of
one array over time: it would take three times as long.)

Options of the recurrence itself, for every cell alike: a projection of the output (LSTMP, Sak et al. 2014), a
dropout mask on h that is the same at every step (Gal and Ghahramani 2016), and zoneout (Krueger et al. 2017).
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from lstm_mnist_jax.rnn.products import outer, product, shift, state_dtype, vary_alike
from lstm_mnist_jax.rnn.recurrence import AnyArray

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
    projection: Annotated[AnyArray, "hidden outputs"] | None = None,
    recurrent_mask: Annotated[AnyArray, "batch outputs"] | None = None,
    zoneout: tuple[AnyArray | float, ...] | None = None,
    reverse: bool = False,
    unroll: int = 1,
    memories: bool = True,
) -> tuple[tuple[Any, ...], Carry]:
    """Runs a gated recurrence over a batch of sequences. Differentiable in every array but the masks, in reverse mode.

    Args:
      update: (params, carry, projected, recurrent) -> carry, for one time step, `projected` and `recurrent` being
        tuples of the gates [batch, hidden]. The last part of the new carry is the output [batch, hidden]. Every row
        must depend on the same row of its arguments alone.
      params: arrays of floats that `update` reads; a pytree.
      projected: what the inputs contribute to each gate at every step.
      recurrent_kernel: U above, the gates side by side.
      initial_carry: before the first step.
      projection: where given, the output is h = m P, with m what `update` puts out; h is in the carry.
      recurrent_mask: h is multiplied by it before it enters the product with U, at every step.
      zoneout: for each part of the carry, either booleans [time, batch, features], where that part keeps its value
        of the step before, or the probability of that, to compute with the expectation.
      reverse: start at the last time step. Outputs stay at the time of their input.
      unroll: steps a loop iteration.
      memories: whether to give all parts of the carries, or None for all but the last part, the outputs: to write
        the others is a part of the loop's time, where no gradient needs them.

    Returns:
      The carries after every step, each part [time, batch, features], and the last carry.
    """
    recurrent_kernel = jnp.asarray(recurrent_kernel)
    dtype = state_dtype(recurrent_kernel.dtype)
    carry = tuple(jnp.asarray(part, dtype) for part in initial_carry)
    masks = (recurrent_mask, zoneout)
    given: Any = params, projected, recurrent_kernel, projection, carry, masks
    arrays = jax.tree.map(jnp.asarray, _Arrays(*given))
    return _compiled(_Settings(update, reverse, unroll, memories), arrays)


class _Settings(NamedTuple):
    """What `gated` is given that is no array."""

    update: Update
    reverse: bool
    unroll: int
    memories: bool


class _Arrays(NamedTuple):
    """What `gated` is given that is an array; `masks` is (recurrent_mask, zoneout)."""

    params: Any
    projected: Gates
    kernel: Array
    projection: Any
    carry: Carry
    masks: Any


# Compiled here, so that calls outside of `jit` compile once, and not each time.
@partial(jax.jit, static_argnums=0)
def _compiled(settings: _Settings, arrays: _Arrays) -> tuple[tuple[Any, ...], Carry]:
    # A shard_map may have some of these vary over its devices and others not; the loop needs one type for all.
    return _gated(settings, vary_alike(arrays))


def _split(packed: Array, like: Gates) -> Gates:
    """Gates that stand side by side, one by one."""
    return tuple(jnp.split(packed, len(like), axis=-1))


def _masked(h: Array, mask: Any) -> Array:
    return h if mask is None else h * mask


def _kept(kept: Array, before: Array, after: Array) -> Array:
    """Zoneout: where to keep the value before, or how much of it."""
    if kept.dtype == bool:
        return jnp.where(kept, before, after)
    return kept * before + (1 - kept) * after


def _each_step(zoneout: Any) -> tuple[Any, ...]:
    """What a loop over time reads of the masks: rates are the same at every step, and not among its inputs."""
    return tuple(part if part.ndim else None for part in zoneout or ())


def _at_step(zoneout: Any, zones: Any) -> list[Array]:
    """The masks and rates of one step."""
    return [rate if zone is None else zone for rate, zone in zip(zoneout, zones, strict=True)]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gated(settings: _Settings, arrays: _Arrays) -> tuple[tuple[Any, ...], Carry]:
    return _forward(settings, arrays)[:2]


def _forward(settings: _Settings, arrays: _Arrays) -> tuple[tuple[Any, ...], Carry, Any]:
    """As `gated`; and what entered the projection, if there is one, where all parts are wanted."""
    params, projected, kernel, projection, carry, (recurrent_mask, zoneout) = arrays

    def step(carry: Carry, xs: Any) -> Any:
        projected, zones = xs
        recurrent = product(_masked(carry[-1], recurrent_mask), kernel)
        after = settings.update(params, carry, projected, _split(recurrent, projected))
        unprojected = None
        if projection is not None:
            unprojected = after[-1]
            after = (*after[:-1], product(unprojected, projection))
        if zoneout is not None:
            after = tuple(_kept(*parts) for parts in zip(_at_step(zoneout, zones), carry, after, strict=True))
        after = tuple(part.astype(before.dtype) for part, before in zip(after, carry, strict=True))
        if not settings.memories:
            return after, ((*(None,) * (len(after) - 1), after[-1]), None)
        return after, (after, unprojected)

    last, (carries, unprojected) = jax.lax.scan(
        step, carry, (projected, _each_step(zoneout)), reverse=settings.reverse, unroll=settings.unroll
    )
    return carries, last, unprojected


def _gated_fwd(settings: _Settings, arrays: Any) -> tuple[Any, Any]:
    # With symbolic zeros, JAX hands over each array with a note of whether its gradient is wanted.
    arrays = jax.tree.map(lambda array: array.value, arrays, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    carries, last, unprojected = _forward(settings._replace(memories=True), arrays)
    given = carries if settings.memories else (*(None,) * (len(carries) - 1), carries[-1])
    return (given, last), (arrays, carries, unprojected)


def _gated_bwd(settings: _Settings, residuals: Any, cotangents: Any) -> tuple[_Arrays]:
    (params, projected, kernel, projection, initial, (recurrent_mask, zoneout)), carries, unprojected = residuals
    before = tuple(shift(first, part, settings.reverse) for first, part in zip(initial, carries, strict=True))
    recurring = _masked(before[-1], recurrent_mask)
    recurrent = _split(product(recurring, kernel), projected)
    used, d_last = jax.tree.map(
        lambda d: None if isinstance(d, SymbolicZero) else d,
        cotangents,
        is_leaf=lambda leaf: isinstance(leaf, SymbolicZero),
    )

    def step(gradients: Any, xs: Any) -> Any:
        d_carry, d_params = gradients
        before, projected, recurrent, zones, d_after = xs
        d_carry = tuple(d if more is None else d + more for d, more in zip(d_carry, d_after, strict=True))
        d_kept: Any = (0,) * len(d_carry)
        if zoneout is not None:
            zones = _at_step(zoneout, zones)
            d_kept = tuple(_kept(zone, d, jnp.zeros_like(d)) for zone, d in zip(zones, d_carry, strict=True))
            d_carry = tuple(_kept(zone, jnp.zeros_like(d), d) for zone, d in zip(zones, d_carry, strict=True))
        d_output = d_carry[-1]
        if projection is not None:
            d_carry = (*d_carry[:-1], product(d_output, projection.T))
        after, pull_back = jax.vjp(settings.update, params, before, projected, recurrent)
        d_carry = tuple(d.astype(part.dtype) for d, part in zip(d_carry, after, strict=True))
        d_step, d_before, d_projected, d_recurrent = pull_back(d_carry)
        d_recurrent = jnp.concatenate(d_recurrent, axis=-1).astype(kernel.dtype)
        d_h = _masked(product(d_recurrent, kernel.T), recurrent_mask)
        d_before = (*d_before[:-1], d_before[-1] + d_h)
        d_before = tuple(d + kept for d, kept in zip(d_before, d_kept, strict=True))
        d_params = jax.tree.map(jnp.add, d_params, d_step)
        return (d_before, d_params), (d_projected, d_recurrent, None if projection is None else d_output)

    d_last = tuple(jnp.zeros_like(part) if d is None else d for d, part in zip(d_last, initial, strict=True))
    d_params = jax.tree.map(jnp.zeros_like, params)
    (d_initial, d_params), (d_projected, d_recurrent, d_outputs) = jax.lax.scan(
        step,
        vary_alike((d_last, d_params, projected))[:2],
        (before, projected, recurrent, _each_step(zoneout), used),
        reverse=not settings.reverse,
        unroll=settings.unroll,
    )
    d_projection = None if projection is None else outer(unprojected, d_outputs.astype(projection.dtype))
    return (_Arrays(d_params, d_projected, outer(recurring, d_recurrent), d_projection, d_initial, None),)


_gated.defvjp(_gated_fwd, _gated_bwd, symbolic_zeros=True)
