"""`RNN`: one recurrent cell run over time, as a `flax.nnx` module that replaces `flax.nnx.RNN`.

Depends on Flax's modules and on the recurrences; not on data sets, configs or training.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.recurrent import flip_sequences
from jax import Array

from lstm_mnist_jax.rnn.equations import CellSpec, Equations, cell_spec, equations_of, is_hashable
from lstm_mnist_jax.rnn.gated import gated
from lstm_mnist_jax.rnn.noise import RecurrentNoise
from lstm_mnist_jax.rnn.products import state_dtype
from lstm_mnist_jax.rnn.recurrence import BACKENDS, AnyArray, LSTMCarry, lstm
from lstm_mnist_jax.rnn.sharding import explicit_sharding, with_automatic_axes

DEFAULT_STATE_AXES = nnx.StateAxes([(..., nnx.Carry)])


class RNN(nnx.RNN):
    """`flax.nnx.RNN`, but faster: the same arguments and parameters, the same numbers to rounding.

    An `nnx.OptimizedLSTMCell`, an `nnx.GRUCell` and every `GatedCell`, in float32, float64 or bfloat16, run through
    this package's recurrences (`lstm` and `gated`). Every other cell, and every unusual setting, runs through
    `flax.nnx.RNN` itself.

    - Outputs past the end of a sequence are zero. (Flax returns there what the cell computes from the padding.)
    - In bfloat16, matrix products are computed in bfloat16, and states are kept in float32 between the steps.
      The final carry has the dtype of the initial carry. The zeros that are the default have the cell's `param_dtype`.
    - The fast path is differentiable in reverse mode, any number of times. `jax.jvp` needs `backend="flax"`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import RNN
      >>> rnn = RNN(nnx.OptimizedLSTMCell(28, 32, rngs=nnx.Rngs(0)), return_carry=True)
      >>> (c, h), outputs = rnn(jnp.ones((64, 10, 28)))
      >>> outputs.shape, h.shape
      ((64, 10, 32), (64, 32))
    """

    def __init__(
        self,
        cell: nnx.RNNCellBase,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        noise: RecurrentNoise | None = None,
        remat: int | None = None,
        backend: str = "auto",
        state_axes: Mapping[str, Any] | None = None,
        broadcast_rngs: Any = None,
        rngs: nnx.Rngs | nnx.RngStream | bool = True,
    ) -> None:
        """Makes the layer. It has no parameters besides those of the cell.

        Args:
          cell: any `nnx.RNNCellBase`.
          time_major: inputs and outputs are [time, *batch, features] instead of [*batch, time, features].
          return_carry: a call returns (final carry, outputs) instead of the outputs alone.
          reverse: read each sequence from its last step to its first.
          keep_order: with `reverse`, each output has the time index of its input.
          unroll: time steps per iteration of the loop, where XLA runs the loop.
          noise: recurrent dropout and zoneout during training.
          remat: gradient checkpointing over time: keep only every `remat`-th carry for the gradient, and recompute the
            steps between. The gradient then needs the memory of `time / remat` carries and of `remat` steps, which is
            least if `remat` is about the square root of the number of steps. None keeps every step.
          backend: "auto", "native" or "xla" as in `lstm` ("native" for an LSTM without noise), or "flax": Flax's own
            scan, which also has forward-mode derivatives.
          state_axes: of `flax.nnx.RNN`, how its scan treats the cell's states. Anything but None runs Flax's own scan.
          broadcast_rngs: of `flax.nnx.RNN`, which random states are the same at every step. Anything but None runs
            Flax's own scan.
          rngs: gives the key stream `carry`, for cells that draw their initial carry. True is a stream of seed 0,
            False none.

        Raises:
          ValueError: `cell` is no cell, the backend is unknown, `remat` is below 1, or `noise` or `remat` is combined
            with a backend that does not have it.
        """
        if not isinstance(cell, nnx.RNNCellBase):
            raise ValueError(f"RNN runs a cell, such as nnx.OptimizedLSTMCell(...); got {cell!r}.")
        super().__init__(
            cell,
            time_major=time_major,
            return_carry=return_carry,
            reverse=reverse,
            keep_order=keep_order,
            unroll=unroll,
            state_axes=state_axes,
            broadcast_rngs=broadcast_rngs,
            rngs=rngs,
        )
        if backend not in (*BACKENDS, "flax"):
            raise ValueError(f"RNN has no backend {backend!r}; expected one of {', '.join(BACKENDS)}, flax.")
        if remat is not None and (isinstance(remat, bool) or not isinstance(remat, int) or remat < 1):
            raise ValueError(f"RNN keeps a carry every `remat` steps, 1 or more; got {remat!r}.")
        if backend == "flax" and (noise is not None or remat is not None):
            raise ValueError('RNN has no noise and no remat with backend="flax".')
        if backend == "native" and noise is not None:
            raise ValueError('RNN has no noise with backend="native"; leave it to "auto".')
        self.noise, self.remat, self.backend = noise, remat, backend

    def __call__(
        self,
        inputs: AnyArray,
        *,
        initial_carry: Any = None,
        seq_lengths: AnyArray | Sequence[int] | int | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Any:
        """Runs the cell over a batch of sequences.

        Args:
          inputs: floats [*batch, time, features], or [time, *batch, features] if time-major.
          initial_carry: the cell's carry before the first step, floats; None is the cell's own (zeros). For an LSTM
            (c, h), each [*batch, hidden]; for a GRU h [*batch, hidden].
          seq_lengths: integers [*batch], the number of steps of each sequence; None is all. The final carry is that
            after the last of these steps (the initial carry for a sequence of length 0). The outputs past the end are
            zero, and the inputs there have no effect. Lengths are clipped to [0, time].
          return_carry: overrides the layer's own.
          time_major: overrides the layer's own.
          reverse: overrides the layer's own.
          keep_order: overrides the layer's own.
          rngs: gives the key stream `carry`, for cells that draw their initial carry; None is the layer's own.

        Returns:
          The outputs [*batch, time, hidden] (time first if time-major), in the dtype of the products, or in that of
          the initial carry if it is wider. With `return_carry`, the pair (final carry, outputs).

        Raises:
          ValueError: the inputs, the initial carry or `seq_lengths` have a wrong shape or dtype; or this cell or this
            dtype does not have the noise, `remat` or backend that was chosen.
        """
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        return_carry = self.return_carry if return_carry is None else return_carry

        spec = self._spec(inputs)
        feature_axes = self.cell.num_feature_axes
        time_axis = 0 if time_major else inputs.ndim - feature_axes - 1
        time, batch_shape = (
            inputs.shape[time_axis],
            (inputs.shape[1:] if time_major else inputs.shape)[: inputs.ndim - feature_axes - 1],
        )
        if seq_lengths is not None:
            seq_lengths = jnp.clip(_broadcast_lengths(seq_lengths, batch_shape), 0, time)
        if spec is None:
            initial_carry = tuple(initial_carry) if isinstance(initial_carry, LSTMCarry) else initial_carry
            options = {"time_major": time_major, "reverse": reverse, "keep_order": keep_order, "time_axis": time_axis}
            run_flax: Any = _compiled_run_flax if is_hashable(nnx.graphdef(self)) else _run_flax
            carry, outputs = run_flax(self, inputs, initial_carry, seq_lengths, rngs, **options)
        else:
            width = inputs.shape[-1]
            if width != (expected := self.cell.dense_i.in_features):  # type: ignore[attr-defined]
                raise ValueError(f"RNN expected inputs of {expected} features, got {width}.")
            if initial_carry is None:
                initial_carry = self.cell.initialize_carry((*batch_shape, width), self._carry_rngs(rngs))
            _check_carry(initial_carry, spec, batch_shape)
            noise = (None, None) if self.noise is None else self.noise(time, math.prod(batch_shape), spec.widths)
            graph, state = nnx.split(self.cell)
            call = _Call(graph, time_axis, reverse, keep_order, self.unroll, self.remat, self.backend)
            run: Any = _compiled_run if is_hashable(graph) else _run
            carry, outputs = run(call, state, inputs, initial_carry, seq_lengths, noise)
        return (carry, outputs) if return_carry else outputs

    def _spec(self, inputs: Any) -> CellSpec | None:
        """The cell on its fast path; None where Flax's scan runs it."""
        plain = self.broadcast_rngs is None and self.state_axes == DEFAULT_STATE_AXES
        spec = cell_spec(self.cell, inputs.dtype) if plain and self.backend != "flax" else None
        if spec is None and (self.noise is not None or self.remat is not None):
            raise ValueError(
                f"RNN cannot have noise or remat over {type(self.cell).__name__} with these settings: that takes an "
                f"nnx.OptimizedLSTMCell, an nnx.GRUCell or a GatedCell, as they are, in float32, float64 or bfloat16."
            )
        if self.backend == "native" and (spec is None or not spec.is_lstm):
            dtype = inputs.dtype if spec is None else spec.dtype
            raise ValueError(
                f'backend="native" runs an nnx.OptimizedLSTMCell, as it is, in float32; not this '
                f'{type(self.cell).__name__} in {dtype}. Leave it to "auto".'
            )
        return spec

    def _carry_rngs(self, rngs: Any) -> Any:
        rngs = self.rngs if rngs is None else rngs
        return rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs


def _check_carry(initial_carry: Any, spec: CellSpec, batch_shape: tuple[Any, ...]) -> None:
    parts = jax.tree.leaves(initial_carry)
    dtypes = [jnp.result_type(part) for part in parts]
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(f"RNN expected an initial carry of floats, got {list(map(str, dtypes))}.")
    shapes = [jnp.shape(part) for part in parts]
    if shapes != (expected := [(*batch_shape, width) for width in spec.widths]):
        names = "(c, h), each" if spec.is_lstm else "with parts"
        raise ValueError(
            f"RNN expected an initial carry {names} of shape {' and '.join(map(str, dict.fromkeys(expected)))}, "
            f"got {shapes}."
        )


class _Call(NamedTuple):
    """Everything that decides what a call computes, except its arrays. `graph` is the cell without its parameters."""

    graph: nnx.GraphDef[Any]
    time_axis: int
    reverse: bool
    keep_order: bool
    unroll: int
    remat: int | None
    backend: str


def _run(call: _Call, state: Any, inputs: Any, initial_carry: Any, *rest: Any) -> tuple[Any, Array]:
    """The final carry and the outputs, of inputs [*batch, time, features] with time at `call.time_axis`."""
    arrays = (state, inputs, initial_carry, *rest)
    if explicit_sharding(inputs) is None:
        return _run_local(call, *arrays)
    axes = (jax.tree.map(lambda _: -1, initial_carry), call.time_axis)
    return with_automatic_axes(partial(_run_local, call), inputs, call.time_axis, axes)(*arrays)


def _run_local(
    call: _Call, state: Any, inputs: Any, initial_carry: Any, seq_lengths: Array | None, noise: tuple[Any, Any]
) -> tuple[Any, Array]:
    equations = equations_of(nnx.merge(call.graph, state), inputs.dtype)
    assert equations is not None
    inputs = jnp.moveaxis(inputs, call.time_axis, 0)
    time, *batch_shape, features = inputs.shape
    if seq_lengths is not None:
        inputs = _without_padding(inputs, seq_lengths)
    structure: Any
    parts, structure = jax.tree.flatten(initial_carry)
    flip = seq_lengths is not None and call.reverse  # padding stays at the end: not a plain backward scan
    backwards = call.reverse and not flip
    if flip:
        inputs = _flip(inputs, seq_lengths)

    batch = math.prod(batch_shape)
    carry = tuple(part.reshape(batch, part.shape[-1]).astype(state_dtype(equations.dtype)) for part in parts)
    lengths = None if seq_lengths is None else jnp.reshape(seq_lengths, batch)
    scan = partial(_scan, equations, noise[0], backwards, call.unroll, call.backend)
    rows = jnp.asarray(inputs, equations.dtype).reshape(time, batch, features)
    if call.remat is None or call.remat >= time:
        outputs, last = scan(rows, carry, lengths, noise[1])
    else:
        outputs, last = _in_chunks(scan, call.remat, backwards, rows, carry, lengths, noise[1])

    outputs = outputs.reshape(time, *batch_shape, equations.widths[-1])
    outputs = outputs.astype(jnp.promote_types(equations.dtype, parts[-1].dtype))
    if flip and call.keep_order:
        outputs = _flip(outputs, seq_lengths)
    if backwards and not call.keep_order:
        outputs = jnp.flip(outputs, axis=0)
    if seq_lengths is not None:
        outputs = _without_padding(outputs, seq_lengths)
    ends = [new.astype(old.dtype).reshape(old.shape) for new, old in zip(last, parts, strict=True)]
    return structure.unflatten(ends), jnp.moveaxis(outputs, 0, call.time_axis)


def _run_flax(
    rnn: RNN,
    inputs: Any,
    initial_carry: Any,
    seq_lengths: Array | None,
    rngs: Any,
    *,
    time_axis: int,
    time_major: bool,
    reverse: bool,
    keep_order: bool,
) -> tuple[Any, Any]:
    """As `_run`, by Flax's own scan."""

    def without_padding(array: Any) -> Array:
        return jnp.moveaxis(_without_padding(jnp.moveaxis(array, time_axis, 0), seq_lengths), 0, time_axis)

    if initial_carry is None:
        shape = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 :]
        initial_carry = rnn.cell.initialize_carry(shape, rnn._carry_rngs(rngs))
    carry, outputs = nnx.RNN.__call__(
        rnn,
        inputs if seq_lengths is None else without_padding(inputs),
        initial_carry=initial_carry,
        seq_lengths=seq_lengths,
        return_carry=True,
        time_major=time_major,
        reverse=reverse,
        keep_order=keep_order,
    )
    if seq_lengths is None:
        return carry, outputs

    def where_any_counts(last: Array, start: Any) -> Array:
        counts = (seq_lengths > 0).reshape(*seq_lengths.shape, *(1,) * (last.ndim - seq_lengths.ndim))
        return jnp.where(counts, last, jnp.asarray(start, last.dtype))

    return jax.tree.map(where_any_counts, carry, initial_carry), jax.tree.map(without_padding, outputs)


# Compiled here, so that calls outside `jit` compile once and not each time.
_compiled_run = jax.jit(_run, static_argnums=0)
_compiled_run_flax = nnx.jit(_run_flax, static_argnames=("time_axis", "time_major", "reverse", "keep_order"))


def _without_padding(sequences: Any, seq_lengths: Any) -> Array:
    """Time-major sequences [time, *batch, ...] with zeros in the padding.

    The padding, which may be NaN, must not reach a gradient.
    """
    counts = jnp.arange(len(sequences)).reshape(-1, *(1,) * seq_lengths.ndim) < seq_lengths
    return jnp.where(counts.reshape(*counts.shape, *(1,) * (sequences.ndim - counts.ndim)), sequences, 0)


def _scan(
    equations: Equations,
    mask: Array | None,
    reverse: bool,
    unroll: int,
    backend: str,
    inputs: Array,
    carry: Any,
    lengths: Array | None,
    zoneout: Any,
) -> tuple[Array, tuple[Array, ...]]:
    """The outputs [time, batch, features] and each sequence's final carry, from inputs [time, batch, in]."""
    if equations.lstm is not None and mask is None and zoneout is None:
        kernel, bias = equations.lstm
        states = lstm(
            inputs,
            kernel,
            equations.kernel,
            bias,
            carry,
            reverse=reverse,
            unroll=unroll,
            return_cell_states=lengths is not None,
            backend=backend,
        )
        carries: tuple[Any, ...] = (states.c, states.h)
        last: tuple[Array, ...] = tuple(states.last)
    else:
        projected = equations.project(inputs)
        carries, last = gated(
            equations.update,
            equations.params,
            tuple(jnp.split(projected, equations.num_gates, axis=-1)),
            equations.kernel,
            carry,
            projection=equations.projection,
            recurrent_mask=mask,
            zoneout=zoneout,
            reverse=reverse,
            unroll=unroll,
            return_carries=lengths is not None,
        )
    if lengths is not None:
        last = tuple(_at_end(part, lengths, start) for part, start in zip(carries, carry, strict=True))
    return carries[-1], last


def _in_chunks(
    scan: Any, size: int, reverse: bool, inputs: Array, carry: Any, lengths: Array | None, zoneout: Any
) -> tuple[Array, Any]:
    """As `scan`, but keeps only the carries between chunks of `size` steps for the gradient."""
    time = len(inputs)
    whole = time // size * size
    # The remaining steps are at the end, forwards and backwards; backwards they are read first.
    arrays = inputs, [zone for zone in zoneout or () if zone.ndim]
    rates = zoneout and [None if zone.ndim else zone for zone in zoneout]

    @partial(jax.checkpoint, prevent_cse=False)
    def chunk(carry: Any, xs: Any) -> Any:
        start, (inputs, zones) = xs
        zones = iter(zones)
        zoneout = rates and tuple(next(zones) if rate is None else rate for rate in rates)
        left = None if lengths is None else jnp.clip(lengths - start, 0, len(inputs))
        outputs, carry = scan(inputs, carry, left, zoneout)
        return carry, outputs

    def chunks(carry: Any) -> Any:
        parts = jax.tree.map(lambda array: array[:whole].reshape(whole // size, size, *array.shape[1:]), arrays)
        carry, outputs = jax.lax.scan(chunk, carry, (jnp.arange(0, whole, size), parts), reverse=reverse)
        return carry, outputs.reshape(whole, *outputs.shape[2:])

    def rest(carry: Any) -> Any:
        return chunk(carry, (whole, jax.tree.map(lambda array: array[whole:], arrays)))

    if whole == time:
        carry, outputs = chunks(carry)
        return outputs, carry
    if reverse:
        carry, end = rest(carry)
        carry, start = chunks(carry)
    else:
        carry, start = chunks(carry)
        carry, end = rest(carry)
    return jnp.concatenate([start, end]), carry


def _broadcast_lengths(seq_lengths: Any, batch_shape: tuple[Any, ...]) -> Array:
    lengths = jnp.asarray(seq_lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"RNN expected seq_lengths to be integers, got {lengths.dtype}.")
    try:
        return jnp.broadcast_to(lengths, batch_shape)
    except ValueError as error:
        raise ValueError(
            f"RNN expected seq_lengths of the batch's shape {batch_shape}, got {lengths.shape}."
        ) from error


def _flip(sequences: Any, seq_lengths: Any) -> Array:
    """Time-major sequences in the opposite order, with the padding where it was."""
    return flip_sequences(sequences, seq_lengths, seq_lengths.ndim, time_major=True)


def _at_end(states: Array, lengths: Array, initial: AnyArray) -> Array:
    """The state after step `lengths` of each sequence: [time, batch, hidden] to [batch, hidden]."""
    if not len(states):
        return jnp.asarray(initial)
    index = jnp.clip(lengths - 1, 0, len(states) - 1)
    last = jnp.take_along_axis(states, index[None, :, None], axis=0)[0]
    return jnp.where(lengths[:, None] > 0, last.astype(initial.dtype), initial)
