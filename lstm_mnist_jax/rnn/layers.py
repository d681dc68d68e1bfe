"""`RNN`: one recurrent cell run over time, as a `flax.nnx` module that replaces `flax.nnx.RNN`.

Depends on Flax's modules and on the recurrences; not on data sets, configs or training.
"""

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.errors import TraceContextError
from jax import Array

from lstm_mnist_jax.rnn import scan
from lstm_mnist_jax.rnn.cells import GatedCell, GRUCell
from lstm_mnist_jax.rnn.equations import CellSpec, cell_spec, is_hashable
from lstm_mnist_jax.rnn.native import INTERPRETED
from lstm_mnist_jax.rnn.noise import RecurrentNoise
from lstm_mnist_jax.rnn.recurrence import BACKENDS, AnyArray, LSTMCarry, require_options
from lstm_mnist_jax.rnn.sharding import with_automatic_axes

ZERO_CARRIES = {
    cell.initialize_carry
    for cell in (GatedCell, GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.SimpleCell, nnx.GRUCell)
}
"""The methods that make a carry of zeros, unless the cell has a `carry_init`."""

KNOWN_CELLS = (GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.SimpleCell, nnx.GRUCell)
"""Cells that have a number of `in_features`, on whatever path."""


OTHER_NAMES = {
    "input_size": "in_features",
    "hidden_size": "hidden_features",
    "features": "hidden_features",
    "units": "hidden_features",
    "num_layers": "hidden_features with one width for each layer: (8, 8) are two layers",
    "proj_size": "projection_features",
    "bias": "use_bias",
    "dropout": "dropout_rate, the dropout between layers",
    "recurrent_dropout": "recurrent_dropout_rate",
    "batch_first": "time_major; by default inputs are [batch, time, features], as with batch_first=True",
    "go_backwards": "bidirectional, or RNN(cell, reverse=True)",
    "reverse": "bidirectional, or RNN(cell, reverse=True)",
    "return_sequences": "A call returns the outputs of all steps and the final carries.",
    "return_state": "A call returns the outputs of all steps and the final carries.",
    "stateful": "Give the final carries to the next call as initial_carries.",
    "unit_forget_bias": "forget_bias=1.0",
    "kernel_initializer": "kernel_init",
    "recurrent_initializer": "recurrent_kernel_init",
    "bias_initializer": "bias_init",
    "param_type": "param_dtype",
    "device": "JAX places arrays: see jax.device_put.",
    "hx": "initial_carries",
    "initial_state": "initial_carries",
    "initial_states": "initial_carries",
    "lengths": "seq_lengths",
    "sequence_length": "seq_lengths",
    "mask": "seq_lengths, of a mask [batch, time] whose True come first mask.sum(-1)",
    "training": "layer.train() and layer.eval() switch dropout on and off.",
    "deterministic": "layer.train() and layer.eval() switch dropout on and off.",
}
"""Arguments of the layers of PyTorch, Keras and Flax and of their calls: what they are here, or a sentence."""

OTHER_NAMES_OF_RNN = OTHER_NAMES | {
    "num_layers": "RNN is one layer; StackedRNN has several.",
    "dropout": "Dropout between layers is an argument of StackedRNN, dropout_rate.",
    "dropout_rate": "Dropout between layers is an argument of StackedRNN, dropout_rate.",
    "recurrent_dropout": "noise=RecurrentNoise(dropout_rate=0.1, rngs=nnx.Rngs(0))",
    "recurrent_dropout_rate": "noise=RecurrentNoise(dropout_rate=0.1, rngs=nnx.Rngs(0))",
    "bidirectional": "nnx.Bidirectional has two RNNs; StackedRNN has bidirectional=True.",
    "go_backwards": "reverse",
    "return_sequences": "A call returns the outputs of all steps.",
    "return_state": "return_carry",
    "stateful": "Give the final carry to the next call as initial_carry.",
    "hx": "initial_carry",
    "initial_state": "initial_carry",
    "initial_states": "initial_carry",
}

# Of the cells of this package and of Flax.
CELL_ARGUMENTS = (
    *("in_features", "hidden_features", "projection_features", "use_bias", "forget_bias", "dtype", "param_dtype"),
    *("kernel_init", "recurrent_kernel_init", "bias_init"),
)

P = ParamSpec("P")
R = TypeVar("R")


def explained(method: Callable[P, R]) -> Callable[P, R]:
    """`__init__` or `__call__` of a layer. Its errors say what an argument is called here that it does not have, which
    arguments it takes, and what to do where it changes its state and JAX's own transformations forbid that."""
    is_call, signature = method.__name__ == "__call__", inspect.signature(method)
    others = OTHER_NAMES_OF_RNN if method.__qualname__.startswith("RNN.") else OTHER_NAMES
    known = [name for name in signature.parameters if name != "self"]
    example = f"layer(inputs, {known[1]}=...)"
    if not is_call:
        cell = ["nnx.OptimizedLSTMCell(28, 64, rngs=nnx.Rngs(0))"] * ("in_features" not in known)
        cell = cell or ["nnx.GRUCell"] * ("cell" in known) + ["28, 64, rngs=nnx.Rngs(0)"]
        example = f"({', '.join(cell)})"

    def explanation(layer: str, names: Iterable[str], error: TypeError) -> str:
        what = f"A call of {layer}" if is_call else layer
        for name in names:
            if name not in known:
                near, meant = difflib.get_close_matches(name, known, 1, 0.8), others.get(name, name)
                first = re.split(r"\W", meant)[0]
                if first in known:
                    meant = f"Here it is {meant}."
                elif first in CELL_ARGUMENTS and "cell" in known:
                    meant = f"Give it to the cell: {layer}{example}."
                elif not meant.endswith("."):
                    meant = f"Here it is {near[0]}." if near else f"It has {', '.join(known)}."
                return f"{what} has no argument {name!r}. {meant}"
        layers = "; with (64, 64) for 64, two layers" if "cell" not in known and not is_call else ""
        return f"{what}: {error}. Write it as {example if is_call else layer + example}{layers}."

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except TraceContextError as error:
            raise TraceContextError(
                f"{type(args[0]).__name__} changes its state, such as the key stream of dropout, which jax.jit, "
                "jax.grad and jax.vmap cannot do from outside. Use nnx.jit, nnx.grad or nnx.vmap with the layer as an "
                "argument, such as nnx.jit(lambda layer, inputs: layer(inputs)); or, without dropout, layer.eval()."
            ) from error
        except TypeError:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                # A subclass with a method of its own calls this one as that of a class above it.
                classes = (each for each in type(args[0]).__mro__ if getattr(each, method.__name__) is checked)
                layer = next(classes, type(args[0]))
                raise TypeError(explanation(layer.__name__, kwargs, error)) from None
            raise

    return checked


class RNN(nnx.RNN):
    """`flax.nnx.RNN`, but faster: the same arguments and parameters, the same numbers to float32 rounding.

    An `nnx.OptimizedLSTMCell`, an `nnx.GRUCell` and every `GatedCell`, in float32, float64 or bfloat16, run through
    this package's recurrences (`lstm`, `gru` and `gated`). Every other cell, and every unusual setting, runs through
    `flax.nnx.RNN` itself.

    - Outputs past the end of a sequence are zero. (Flax returns there what the cell computes from the padding.)
    - In bfloat16, matrix products are computed in bfloat16, and states are kept in float32 between the steps.
      The final carry has the dtype of the initial carry. The zeros that are the default have the cell's `param_dtype`.
    - It is differentiable in reverse mode and in forward mode, any number of times.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import RNN
      >>> rnn = RNN(nnx.OptimizedLSTMCell(28, 32, rngs=nnx.Rngs(0)), return_carry=True)
      >>> (c, h), outputs = rnn(jnp.ones((64, 10, 28)))
      >>> outputs.shape, h.shape
      ((64, 10, 32), (64, 32))
    """

    @explained
    def __init__(
        self,
        cell: nnx.Module,
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
          cell: an `nnx.RNNCellBase`, or a module with `__call__(carry, inputs)`, `initialize_carry` and
            `num_feature_axes` like one.
          time_major: inputs and outputs are [time, *batch, features] instead of [*batch, time, features].
          return_carry: a call returns (final carry, outputs) instead of the outputs alone.
          reverse: read each sequence from its last step to its first.
          keep_order: with `reverse`, each output has the time index of its input.
          unroll: time steps per iteration of the loop, where XLA runs the loop.
          noise: recurrent dropout and zoneout during training.
          remat: gradient checkpointing over time: keep only every `remat`-th carry for the gradient, and recompute the
            steps between. The gradient then needs the memory of `time / remat` carries and of `remat` steps, which is
            least if `remat` is about the square root of the number of steps. None keeps every step.
          backend: "auto", "native", "xla" or "pallas" as in `lstm` ("native" for an LSTM or a GRU, "pallas" for an
            LSTM, both without noise), or "flax": Flax's own scan.
          state_axes: of `flax.nnx.RNN`, how its scan treats the cell's states. Anything but None runs Flax's own scan.
          broadcast_rngs: of `flax.nnx.RNN`, which random states are the same at every step. Anything but None runs
            Flax's own scan.
          rngs: gives the key stream `carry`, for cells that draw their initial carry. True is a stream of seed 0,
            False none.

        Raises:
          ValueError: `cell` is no cell, `rngs` are none, the backend is unknown, `unroll` or `remat` is below 1, or
            `noise` or `remat` is combined with a backend that does not have it.
        """
        if isinstance(cell, type) or not all(
            hasattr(cell, name) for name in ("__call__", "initialize_carry", "num_feature_axes")
        ):
            got = (
                f"the class {cell.__name__}" if isinstance(cell, type) else f"an object of class {type(cell).__name__}"
            )
            raise ValueError(f"RNN runs a cell, such as nnx.OptimizedLSTMCell(...); got {got}.")
        if not isinstance(rngs, nnx.Rngs | nnx.RngStream | bool):
            raise ValueError(
                f"RNN expected rngs to be an nnx.Rngs, a stream of one, or a bool; got {shown_rngs(rngs)}."
            )
        flags = {"time_major": time_major, "return_carry": return_carry, "reverse": reverse, "keep_order": keep_order}
        require_options("RNN", unroll, **flags)
        super().__init__(
            cast(nnx.RNNCellBase, cell),
            unroll=unroll,
            state_axes=state_axes,
            broadcast_rngs=broadcast_rngs,
            rngs=not isinstance(rngs, nnx.RngStream) and rngs,
            **flags,
        )
        if isinstance(rngs, nnx.RngStream):  # which Flax's RNN does not take
            self.rngs = rngs
        if backend not in (*BACKENDS, *INTERPRETED, "flax"):
            raise ValueError(f"RNN has no backend {backend!r}; expected one of {', '.join(BACKENDS)}, flax.")
        if remat is not None and (isinstance(remat, bool) or not isinstance(remat, int | np.integer) or remat < 1):
            raise ValueError(f"RNN keeps a carry every `remat` steps, 1 or more; got {remat!r}.")
        if noise is not None and not isinstance(noise, RecurrentNoise):
            raise ValueError(f"RNN expected noise to be RecurrentNoise(dropout_rate=0.1, rngs=...); got {noise!r}.")
        if backend == "flax" and (noise is not None or remat is not None):
            raise ValueError('RNN has no noise and no remat with backend="flax".')
        if backend in ("native", "pallas", *INTERPRETED) and noise is not None:
            raise ValueError(f'RNN has no noise with backend="{backend}"; leave it to "auto".')
        self.noise, self.remat, self.backend = noise, remat, backend
        self.has_flax_options = state_axes is not None or broadcast_rngs is not None

    @explained
    def __call__(
        self,
        inputs: AnyArray,
        *,
        initial_carry: Any = None,
        seq_lengths: AnyArray | Sequence[int] | int | None = None,
        resets: AnyArray | None = None,
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
            (c, h), each [*batch, hidden]; for a GRU h [*batch, hidden]. A part [hidden], such as a learned `nnx.Param`,
            is the same for every sequence.
          seq_lengths: integers [*batch] of any integer dtype, the number of steps of each sequence; None is all. The
            final carry is that after the last of these steps (the initial carry for a sequence of length 0). The
            outputs past the end are zero, and the inputs there have no effect. Lengths are clipped to [0, time]: one
            above time, or below 0, is no error.
          resets: booleans [*batch, time] (time first if time-major): where True, a new sequence begins at this step,
            from the initial carry. So one row holds several sequences, such as the episodes of reinforcement learning;
            each direction reads every one of them as if it were alone. None is never.
          return_carry: overrides the layer's own.
          time_major: overrides the layer's own.
          reverse: overrides the layer's own.
          keep_order: overrides the layer's own.
          rngs: gives the key stream `carry`, for cells that draw their initial carry; None is the layer's own.

        Returns:
          The outputs [*batch, time, hidden] (time first if time-major), in the dtype of the products, or in that of
          the initial carry if it is wider. With `return_carry`, the pair (final carry, outputs).

        Raises:
          ValueError: the inputs, the initial carry, `seq_lengths` or `resets` have a wrong shape or dtype; or this cell
            or this dtype does not have the noise, `remat` or backend that was chosen.
        """
        asked = {"time_major": time_major, "return_carry": return_carry, "reverse": reverse, "keep_order": keep_order}
        flags = {name: getattr(self, name) if value is None else value for name, value in asked.items()}
        require_options("RNN", **flags)
        time_major = flags["time_major"]
        feature_axes = self.cell.num_feature_axes
        inputs = checked_inputs("RNN", inputs, feature_axes, time_major)
        spec = self._spec(inputs)
        time_axis = 0 if time_major else inputs.ndim - feature_axes - 1
        time = inputs.shape[time_axis]
        in_step = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 :]
        batch_shape = in_step[: len(in_step) - feature_axes]
        if self.remat is not None and not isinstance(time, int):
            raise ValueError(f"RNN with remat={self.remat} needs a number of time steps; got the symbolic size {time}.")
        if seq_lengths is not None:
            seq_lengths = checked_lengths("RNN", seq_lengths, batch_shape, time, time_major)
        if resets is not None:
            resets = checked_resets("RNN", resets, inputs.shape[: inputs.ndim - feature_axes])
        expected = self.cell.in_features if spec is not None or type(self.cell) in KNOWN_CELLS else None  # type: ignore[attr-defined]
        if expected not in (None, in_step[-1]):
            raise ValueError(f"RNN expected inputs of {expected} features, got {in_step[-1]}.")
        if initial_carry is None:
            initial_carry = self._own_carry(in_step, rngs)
        else:
            # A carry that is a parameter is read, and not returned as one.
            initial_carry = jax.tree.map(jnp.asarray, _read(initial_carry))
            if spec is not None:
                widths: tuple[int, ...] | None = spec.widths
            else:
                initial_carry, widths = self._for_flax(initial_carry, in_step)
            if widths is not None:
                initial_carry = _checked_carry(initial_carry, widths, batch_shape)
        noise: tuple[Any, Any] = (None, None)
        if spec is not None and self.noise is not None:
            noise = self.noise(time, math.prod(batch_shape), spec.widths)

        split: Any = nnx.split(self.cell, nnx.Param, ...)
        graph, params, states = split
        call = scan.Call(
            graph,
            feature_axes,
            time_axis,
            flags["reverse"],
            flags["keep_order"],
            self.unroll,
            self.remat,
            self.backend,
            flax=(self.state_axes, self.broadcast_rngs) if spec is None else None,
        )
        arrays = scan.Arrays(params, states, inputs, initial_carry, seq_lengths, resets, noise)
        run: Any = scan.compiled_run if is_hashable(call) else scan.run
        run = with_automatic_axes(partial(run, call), inputs, time_axis, feature_axes, (-1, time_axis, None))
        carry, outputs, states = run(arrays)
        if jax.tree.leaves(states):
            nnx.update(self.cell, states)
        return (carry, outputs) if flags["return_carry"] else outputs

    def _spec(self, inputs: Any) -> CellSpec | None:
        """The cell on its fast path; None where Flax's scan runs it."""
        is_fast = not self.has_flax_options and self.backend != "flax"
        spec = cell_spec(self.cell, inputs.dtype) if is_fast else None
        if spec is None and (self.noise is not None or self.remat is not None):
            raise ValueError(
                f"RNN cannot have noise or remat over {type(self.cell).__name__} with these settings: that takes an "
                f"nnx.OptimizedLSTMCell, an nnx.GRUCell or a GatedCell, as they are, in float32, float64 or bfloat16."
            )
        if self.backend == "native":
            runs = spec is not None and spec.loop is not None
            cells = "an nnx.OptimizedLSTMCell, an nnx.GRUCell and a GRUCell with reset_after, as they are, in float32"
        else:
            runs = self.backend not in ("pallas", *INTERPRETED) or (spec is not None and spec.loop == "lstm")
            cells = "an nnx.OptimizedLSTMCell, as it is, in float32 and bfloat16"
        if not runs:
            dtype = jnp.dtype(getattr(self.cell, "dtype", None) or inputs.dtype) if spec is None else spec.dtype
            options = " with state_axes or broadcast_rngs" if self.has_flax_options else ""
            raise ValueError(
                f'backend="{self.backend}" runs {cells}; not this {type(self.cell).__name__} in {dtype}{options}. '
                f'Leave it to "auto".'
            )
        return spec

    def _for_flax(self, carry: Any, in_step: tuple[Any, ...]) -> tuple[Any, tuple[int, ...] | None]:
        """A carry of the cell's own pytree type, as Flax's scan needs it; and the widths of its parts, if known."""
        carry = tuple(carry) if isinstance(carry, LSTMCarry) else carry
        if type(self.cell).initialize_carry not in ZERO_CARRIES:
            return carry, None
        own: Any = jax.eval_shape(lambda: self.cell.initialize_carry(in_step, nnx.Rngs(0)))
        structure: Any
        own, structure = jax.tree.flatten(own)
        parts = jax.tree.leaves(carry)
        carry = structure.unflatten(parts) if len(parts) == len(own) else carry
        return carry, tuple(part.shape[-1] for part in own)

    def _own_carry(self, in_step: tuple[Any, ...], rngs: Any) -> Any:
        """The carry with which the cell starts by itself."""
        # Zeros take no random numbers. Flax's cells draw some all the same, which changes the stream's state: Flax
        # forbids that where `jit` closes over the layer.
        starts_with_zeros = type(self.cell).initialize_carry in ZERO_CARRIES
        if starts_with_zeros and getattr(self.cell, "carry_init", None) is None:
            return self.cell.initialize_carry(in_step, nnx.Rngs(0))
        rngs = self.rngs if rngs is None else rngs
        rngs = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
        return self.cell.initialize_carry(in_step, rngs)


def checked_inputs(name: str, inputs: Any, feature_axes: int, time_major: bool) -> Any:
    """Inputs as an array of floats with a time axis; `name` is the layer's, for messages.

    NumPy's arrays stay so: to make them JAX's is an operation that `jax.debug_nans` checks, and padding may be NaN.
    """
    axes = "[time, *batch, features]" if time_major else "[*batch, time, features]"
    try:
        inputs = _as_array(inputs)
    except ValueError as error:
        raise ValueError(f"{name} expected inputs {axes} in one array, got a {type(inputs).__name__}.") from error
    if inputs.dtype != (dtype := jax.dtypes.canonicalize_dtype(inputs.dtype)):
        inputs = inputs.astype(dtype)
    if inputs.ndim < feature_axes + 1:
        raise ValueError(f"{name} expected inputs {axes}, got shape {inputs.shape}.")
    # Flax's RNN takes integers, as does its replacement; complex numbers would be computed without a warning.
    is_right = jnp.issubdtype(inputs.dtype, jnp.floating)
    if not is_right and not (name == "RNN" and jnp.issubdtype(inputs.dtype, jnp.integer)):
        raise ValueError(
            f"{name} expected inputs of floats, got {inputs.dtype}; convert them, such as inputs.astype(jnp.float32)."
        )
    return inputs


def shown_rngs(rngs: Any) -> str:
    """What was given as rngs, for messages."""
    return "a key: write rngs=nnx.Rngs(key)" if isinstance(rngs, jax.Array) else repr(rngs)


def checked_lengths(name: str, seq_lengths: Any, batch_shape: tuple[Any, ...], time: Any, time_major: bool) -> Array:
    """Lengths of any integer dtype, as int32 from 0 to `time`, in the batch's shape; `name` is the layer's."""
    lengths = _as_array(seq_lengths)
    if lengths.dtype == bool:
        raise ValueError(
            f"{name} expected seq_lengths to be integers, got booleans. Of a mask [batch, time] whose True come first, "
            f"they are mask.sum(-1)."
        )
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"{name} expected seq_lengths to be integers, got {lengths.dtype}.")
    try:
        np.broadcast_shapes(lengths.shape, batch_shape)
        fits = len(lengths.shape) <= len(batch_shape)
    except (ValueError, TypeError):
        # NumPy cannot compare the symbolic sizes of jax.export.
        fits = lengths.shape in ((), batch_shape)
    if not fits:
        first = "batch" if time_major else "time"
        hint = f" If the inputs are [{first}, ...], use time_major={not time_major}." * (lengths.shape == (time,))
        raise ValueError(f"{name} expected seq_lengths of the batch's shape {batch_shape}, got {lengths.shape}.{hint}")
    # In their own dtype, `time` may not be a number (int8), and a difference not negative (uint8).
    if isinstance(lengths, np.ndarray) and isinstance(time, int):
        lengths = np.clip(lengths, 0, time).astype(np.int32)
    elif jnp.iinfo(lengths.dtype).bits < 32:
        lengths = jnp.clip(jnp.asarray(lengths, np.int32), 0, time)
    else:
        lengths = jnp.clip(lengths, 0, time).astype(np.int32)
    return jnp.broadcast_to(lengths, batch_shape)


def _as_array(values: Any) -> Any:
    """An array of JAX as it is, everything else as one of NumPy, but a list of traced values as one of JAX."""
    if isinstance(values, jax.Array):
        return values
    try:
        return np.asarray(values)
    except jax.errors.TracerArrayConversionError:
        return jnp.asarray(values)


def _read(carry: Any) -> Any:
    """A carry with the values of its `nnx.Variable`s, of which each holds a part or all of it."""

    def is_variable(part: Any) -> bool:
        return isinstance(part, nnx.Variable)

    return jax.tree.map(lambda part: part.get_value() if is_variable(part) else part, carry, is_leaf=is_variable)


def checked_resets(name: str, resets: Any, shape: tuple[Any, ...]) -> Array:
    """Resets as an array of booleans; `name` is the layer's."""
    resets = jnp.asarray(resets)
    if resets.dtype != bool:
        raise ValueError(f"{name} expected resets to be booleans, got {resets.dtype}; convert them: resets > 0.")
    if resets.shape != shape:
        raise ValueError(
            f"{name} expected resets of shape {shape}, one for each step of each sequence, got {resets.shape}."
        )
    return resets


def fitted_carries(name: str, carries: Any, shapes: Sequence[tuple[Any, ...]]) -> list[Array] | None:
    """The parts of carries in these shapes, a part [hidden] repeated for every sequence; None if they have others."""
    parts = [jnp.asarray(part) for part in jax.tree.leaves(carries)]
    if len(parts) != len(shapes) or any(
        part.shape not in (shape, shape[-1:]) for part, shape in zip(parts, shapes, strict=True)
    ):
        return None
    if not all(jnp.issubdtype(part.dtype, jnp.floating) for part in parts):
        raise ValueError(
            f"{name} expected an initial carry of floats, got {[str(part.dtype) for part in parts]}; convert each, "
            "such as c.astype(jnp.float32)."
        )
    return [
        part if part.shape == shape else jnp.broadcast_to(part, shape)
        for part, shape in zip(parts, shapes, strict=True)
    ]


def _checked_carry(initial_carry: Any, widths: tuple[int, ...], batch_shape: tuple[Any, ...]) -> Any:
    """The carry with parts [*batch, hidden]; a part [hidden] is repeated for every sequence."""
    expected = [(*batch_shape, width) for width in widths]
    parts = fitted_carries("RNN", initial_carry, expected)
    if parts is None:
        names = "(c, h), each" if len(widths) == 2 else "with parts"
        raise ValueError(
            f"RNN expected an initial carry {names} of shape {' and '.join(map(str, dict.fromkeys(expected)))}, "
            f"got {[part.shape for part in jax.tree.leaves(initial_carry)]}."
        )
    return jax.tree.unflatten(jax.tree.structure(initial_carry), parts)
