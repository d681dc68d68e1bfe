"""One call of a layer: a cell over time, on arrays. Lengths, resets, directions and remat are the same for every cell.

Depends on Flax's modules and on the recurrences; not on layers.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lstm_mnist_jax.rnn.equations import Equations, equations_of
from lstm_mnist_jax.rnn.gated import gated
from lstm_mnist_jax.rnn.gru import gru, runs_gru_native
from lstm_mnist_jax.rnn.products import state_dtype, wider_dtype
from lstm_mnist_jax.rnn.recurrence import lstm


class Call(NamedTuple):
    """Everything that decides what a call computes, except its arrays.

    Attributes:
      graph: the cell without its arrays.
      feature_axes: how many of the last axes of the inputs are features.
      time_axis: of the inputs and of the outputs.
      reverse, keep_order, unroll, remat, backend: see `RNN`.
      flax: the options (state_axes, broadcast_rngs) of Flax's own scan, if that runs the cell.
    """

    graph: nnx.GraphDef[Any]
    feature_axes: int
    time_axis: int
    reverse: bool
    keep_order: bool
    unroll: int
    remat: int | None
    backend: str
    flax: tuple[Any, Any] | None


class Arrays(NamedTuple):
    """The arrays of a call.

    Attributes:
      params, states: the cell's parameters, and its other states.
      inputs: [*batch, time, *features], the time at `Call.time_axis`.
      initial_carry: the cell's carry before the first step.
      seq_lengths: None, or integers [*batch] from 0 to time.
      resets: None, or booleans as the inputs without features: see `RNN`.
      noise: the results of `RecurrentNoise`.
    """

    params: Any
    states: Any
    inputs: Any
    initial_carry: Any
    seq_lengths: Any
    resets: Any
    noise: tuple[Any, Any]


def run(call: Call, arrays: Arrays) -> tuple[Any, Any, Any]:
    """Runs a cell, by the recurrences of this package or by Flax's own scan.

    Returns:
      The final carry, the outputs with time where the inputs have it, and the cell's other states, if they changed.
    """
    if call.flax is not None:
        return _run_flax(call, arrays, *call.flax)
    inputs, resets, backwards = _in_the_order_of_reading(call, arrays)
    equations = equations_of(nnx.merge(call.graph, arrays.params, arrays.states), inputs.dtype)
    assert equations is not None
    time, *batch_shape, features = inputs.shape
    batch = math.prod(batch_shape)
    structure: Any
    parts, structure = jax.tree.flatten(arrays.initial_carry)
    carry = tuple(part.reshape(batch, part.shape[-1]).astype(state_dtype(equations.dtype)) for part in parts)
    # The axes of the batch are one here.
    rows = inputs.astype(equations.dtype).reshape(time, batch, features)
    lengths = None if arrays.seq_lengths is None else arrays.seq_lengths.reshape(batch)
    resets = None if resets is None else resets.reshape(time, batch)
    mask, zoneout = arrays.noise

    loop = _Loop(equations, carry, mask, backwards, call.unroll, call.backend)
    steps = _Steps(rows, resets, zoneout)
    if call.remat is None or call.remat >= time:
        outputs, last = _run_loop(loop, carry, steps, lengths)
    else:
        outputs, last = _in_chunks(loop, call.remat, carry, steps, lengths)
    outputs = outputs.reshape(time, *batch_shape, equations.widths[-1])
    outputs = outputs.astype(wider_dtype(equations.dtype, parts[-1].dtype))
    ends = [new.astype(old.dtype).reshape(old.shape) for new, old in zip(last, parts, strict=True)]
    return structure.unflatten(ends), _in_the_order_of_the_inputs(call, arrays, outputs), {}


def _run_flax(call: Call, arrays: Arrays, state_axes: Any, broadcast_rngs: Any) -> tuple[Any, Any, Any]:
    """As `run`, by a scan of Flax over the cell's own step, as `flax.nnx.RNN` does it."""
    inputs, resets, backwards = _in_the_order_of_reading(call, arrays)
    cell = nnx.merge(call.graph, arrays.params, arrays.states)
    initial, lengths = arrays.initial_carry, arrays.seq_lengths
    broadcast_rngs = nnx.All(nnx.RngState, broadcast_rngs)
    axes = nnx.StateAxes({broadcast_rngs: None, **state_axes})

    def where(condition: Array, new: Any, old: Any) -> Any:
        def pick(new: Array, old: Array) -> Array:
            rows = condition.reshape(*condition.shape, *(1,) * (new.ndim - condition.ndim))
            return jnp.where(rows, new, jnp.asarray(old, new.dtype))

        return jax.tree.map(pick, new, old)

    def one_step(cell: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
        number, inputs, reset = xs
        new, outputs = cell(carry if reset is None else where(reset, initial, carry), inputs)
        return new if lengths is None else where(number < lengths, new, carry), outputs

    if inputs.shape[0] == 0:
        step = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
        output = jax.eval_shape(lambda carry, step: cell(carry, step)[1], initial, step)
        outputs = jax.tree.map(lambda array: jnp.zeros((0, *array.shape), array.dtype), output)
        return initial, _in_the_order_of_the_inputs(call, arrays, outputs), {}
    # With splits=1 and squeeze=True every call has random numbers of its own.
    scan = nnx.compat.scan(
        one_step, in_axes=(axes, nnx.Carry, 0), out_axes=(nnx.Carry, 0), unroll=call.unroll, reverse=backwards
    )
    scan = nnx.split_rngs(splits=1, only=broadcast_rngs, squeeze=True)(scan)
    last, outputs = scan(cell, initial, (jnp.arange(inputs.shape[0]), inputs, resets))
    # The scan writes every state, changed or not. Parameters that are only read must not be written, which Flax forbids
    # where `jit` closes over the cell.
    changed = nnx.state(cell) if _writes_parameters(call, arrays, inputs) else nnx.state(cell, nnx.Not(nnx.Param))
    return last, _in_the_order_of_the_inputs(call, arrays, outputs), changed


def _writes_parameters(call: Call, arrays: Arrays, inputs: Array) -> bool:
    """Whether a step of the cell changes an `nnx.Param`."""
    found = []

    def step(params: Any, states: Any, carry: Any, inputs: Array) -> None:
        cell = nnx.merge(call.graph, params, states)
        before = jax.tree.leaves(nnx.state(cell, nnx.Param))
        cell(carry, inputs)
        after = jax.tree.leaves(nnx.state(cell, nnx.Param))
        found.append(any(new is not old for new, old in zip(after, before, strict=True)))

    jax.eval_shape(step, arrays.params, arrays.states, arrays.initial_carry, inputs[0])
    return found[0]


# Compiled here, so that calls outside `jit` compile once and not each time.
compiled_run = jax.jit(run, static_argnums=0)


def _in_the_order_of_reading(call: Call, arrays: Arrays) -> tuple[Array, Array | None, bool]:
    """Inputs and resets with time first, and whether the scan runs from the end."""
    lengths = arrays.seq_lengths
    inputs = jnp.moveaxis(arrays.inputs, call.time_axis, 0)
    resets = None if arrays.resets is None else jnp.moveaxis(arrays.resets, call.time_axis, 0)
    if call.reverse and resets is not None:  # then the step before the first of a piece is the last of another
        resets = jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
    if lengths is not None:
        inputs = _without_padding(inputs, lengths)
        if call.reverse:  # the padding stays at the end: this is no scan from the end
            inputs, resets = _flip(inputs, lengths), None if resets is None else _flip(resets, lengths)
    return inputs, resets, call.reverse and lengths is None


def _in_the_order_of_the_inputs(call: Call, arrays: Arrays, outputs: Any) -> Any:
    """Time-major outputs in the order of the scan, in the order and layout that the call asks for."""
    lengths = arrays.seq_lengths
    if lengths is not None:
        outputs = jax.tree.map(partial(_without_padding, seq_lengths=lengths), outputs)
        if call.reverse and call.keep_order:
            outputs = jax.tree.map(partial(_flip, seq_lengths=lengths), outputs)
    elif call.reverse and not call.keep_order:
        outputs = jax.tree.map(partial(jnp.flip, axis=0), outputs)
    return jax.tree.map(lambda array: jnp.moveaxis(array, 0, call.time_axis), outputs)


def _without_padding(sequences: Any, seq_lengths: Any) -> Array:
    """Time-major sequences [time, *batch, ...] with zeros in the padding.

    The padding, which may be NaN, must not reach a gradient.
    """
    steps = jnp.arange(sequences.shape[0], dtype=seq_lengths.dtype).reshape(-1, *(1,) * seq_lengths.ndim)
    counts = steps < seq_lengths
    counts = counts.reshape(*counts.shape, *(1,) * (sequences.ndim - counts.ndim))
    return jnp.where(counts, sequences, jnp.zeros((), sequences.dtype))


def _flip(sequences: Array, seq_lengths: Array) -> Array:
    """Time-major sequences in the opposite order, with the padding where it was."""
    time = sequences.shape[0]
    if time == 0:
        return sequences
    steps = jnp.arange(time - 1, -1, -1, dtype=seq_lengths.dtype).reshape(-1, *(1,) * seq_lengths.ndim)
    index = (steps + seq_lengths) % time
    return jnp.take_along_axis(sequences, index.reshape(*index.shape, *(1,) * (sequences.ndim - index.ndim)), axis=0)


class _Loop(NamedTuple):
    """What is the same for every step.

    Attributes:
      equations: of the cell.
      initial: the carry before the first step and after a reset.
      mask: of recurrent dropout, or None.
      reverse: whether the loop starts at the last step.
      unroll, backend: see `RNN`.
    """

    equations: Equations
    initial: tuple[Array, ...]
    mask: Array | None
    reverse: bool
    unroll: int
    backend: str


class _Steps(NamedTuple):
    """What each step reads.

    Attributes:
      inputs: [time, batch, in].
      resets: None, or booleans [time, batch].
      zoneout: None, or for each part of the carry booleans [time, batch, features] or the rate.
    """

    inputs: Array
    resets: Array | None
    zoneout: Any


def _run_loop(loop: _Loop, carry: Any, steps: _Steps, lengths: Array | None) -> tuple[Array, tuple[Array, ...]]:
    """The outputs [time, batch, features], and each sequence's final carry."""
    equations = loop.equations
    options: dict[str, Any] = {"reverse": loop.reverse, "unroll": loop.unroll, "resets": steps.resets}
    fast = equations.loop if loop.mask is None and steps.zoneout is None else None
    gru_shape = steps.inputs.shape[0], *carry[0].shape
    kernel, bias = equations.inputs
    if fast == "gru" and runs_gru_native(loop.backend, gru_shape, equations.dtype):
        weights = kernel, equations.kernel, bias, equations.recurrent_bias
        outputs, last_h = gru(steps.inputs, *weights, carry[0], reset_h=loop.initial[0], **options)
        carries: tuple[Any, ...] = (outputs,)
        last: tuple[Array, ...] = (last_h,)
    elif fast == "lstm":
        options |= {"reset_carry": loop.initial, "return_cell_states": lengths is not None, "backend": loop.backend}
        states = lstm(steps.inputs, kernel, equations.kernel, bias, carry, **options)
        carries = (states.c, states.h)
        last = tuple(states.last)
    else:
        projected = tuple(jnp.split(equations.project(steps.inputs), equations.num_gates, axis=-1))
        options |= {"reset_carry": loop.initial, "return_carries": lengths is not None}
        options |= {"projection": equations.projection, "recurrent_bias": equations.recurrent_bias}
        options |= {"recurrent_mask": loop.mask, "zoneout": steps.zoneout}
        carries, last = gated(equations.update, equations.params, projected, equations.kernel, carry, **options)
    if lengths is not None:
        last = tuple(_at_end(part, lengths, start) for part, start in zip(carries, carry, strict=True))
    return carries[-1], last


def _in_chunks(
    loop: _Loop, size: int, carry: Any, steps: _Steps, lengths: Array | None
) -> tuple[Array, tuple[Array, ...]]:
    """As `_run_loop`, but keeps only the carries between chunks of `size` steps for the gradient."""
    time = steps.inputs.shape[0]
    whole = time // size * size
    # The remaining steps are at the end, forwards and backwards; backwards they are read first.
    zoneout = steps.zoneout
    arrays = steps._replace(zoneout=[zone for zone in zoneout or () if zone.ndim])
    rates = zoneout and [None if zone.ndim else zone for zone in zoneout]

    @partial(jax.checkpoint, prevent_cse=False)
    def chunk(carry: Any, xs: Any) -> Any:
        start, steps = xs
        zones = iter(steps.zoneout)
        steps = steps._replace(zoneout=rates and tuple(next(zones) if rate is None else rate for rate in rates))
        left = None if lengths is None else jnp.clip(lengths - start, 0, len(steps.inputs))
        outputs, carry = _run_loop(loop, carry, steps, left)
        return carry, outputs

    def chunks(carry: Any) -> Any:
        parts = jax.tree.map(lambda array: array[:whole].reshape(whole // size, size, *array.shape[1:]), arrays)
        starts = jnp.arange(0, whole, size, dtype=np.int32 if lengths is None else lengths.dtype)
        carry, outputs = jax.lax.scan(chunk, carry, (starts, parts), reverse=loop.reverse)
        return carry, outputs.reshape(whole, *outputs.shape[2:])

    def rest(carry: Any) -> Any:
        return chunk(carry, (np.int32(whole), jax.tree.map(lambda array: array[whole:], arrays)))

    if whole == time:
        carry, outputs = chunks(carry)
        return outputs, carry
    if loop.reverse:
        carry, end = rest(carry)
        carry, start = chunks(carry)
    else:
        carry, start = chunks(carry)
        carry, end = rest(carry)
    return jnp.concatenate([start, end]), carry


def _at_end(states: Array, lengths: Array, initial: Array) -> Array:
    """The state after step `lengths` of each sequence: [time, batch, hidden] to [batch, hidden]."""
    if states.shape[0] == 0:
        return initial
    index = jnp.clip(lengths - 1, 0, states.shape[0] - 1)
    last = jnp.take_along_axis(states, index[None, :, None], axis=0)[0]
    return jnp.where(lengths[:, None] > 0, last.astype(initial.dtype), initial)
