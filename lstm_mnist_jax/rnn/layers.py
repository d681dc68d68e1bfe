"""Recurrent layers as `flax.nnx` modules: `RNN` runs one cell over time, `LSTM` stacks layers.

Knows Flax's modules and the recurrence; knows no data set, no config and no training.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.nnx.nn.recurrent import flip_sequences
from jax.nn.initializers import Initializer, lecun_normal, orthogonal, zeros
from jaxtyping import Array, DTypeLike

from lstm_mnist_jax.rnn.recurrence import AnyArray, LSTMCarry, lstm

FAST_DTYPES = (jnp.float32, jnp.float64)

DEFAULT_STATE_AXES = nnx.StateAxes([(..., nnx.Carry)])


class RNN(nnx.RNN):
    """`flax.nnx.RNN`, quicker: the same arguments and parameters, the same numbers to rounding.

    An `nnx.OptimizedLSTMCell` with its own activations, in float32 or float64 throughout, runs through
    `lstm_mnist_jax.rnn.recurrence`; every other cell, and every unusual setting, through `flax.nnx.RNN` itself.
    The quick path is differentiable in reverse mode only (no `jax.jvp`).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import RNN
      >>> rnn = RNN(nnx.OptimizedLSTMCell(28, 32, rngs=nnx.Rngs(0)), return_carry=True)
      >>> (c, h), outputs = rnn(jnp.ones((64, 10, 28)))
      >>> outputs.shape, h.shape
      ((64, 10, 32), (64, 32))
    """

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """Runs the cell over a batch of sequences.

        Args:
          inputs: [*batch, time, features], or [time, *batch, features] if time-major.
          initial_carry: the cell's carry before the first step; None asks the cell for one (zeros). For an LSTM
            (c, h), each [*batch, hidden].
          seq_lengths: int [*batch], how many steps of each sequence count; None is all. The carry is that after
            the last step that counts (the initial one where none does); outputs after it mean nothing.
          return_carry, time_major, reverse, keep_order: override the layer's own. `reverse` reads each
            sequence backwards; with `keep_order` its outputs stay at the time of their inputs.
          rngs: for the initial carry, where the cell draws one.

        Returns:
          The outputs [*batch, time, hidden] (time first if time-major); with `return_carry`, the pair of the
          final carry and the outputs.

        Raises:
          ValueError: the initial carry or `seq_lengths` is of another shape than the batch.
        """
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        return_carry = self.return_carry if return_carry is None else return_carry

        if not self._is_fast(inputs, initial_carry):
            return super().__call__(
                inputs,
                initial_carry=initial_carry,
                seq_lengths=seq_lengths,
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=keep_order,
                rngs=rngs,
            )

        cell: Any = self.cell
        if not time_major:
            inputs = jnp.moveaxis(inputs, -2, 0)
        time, *batch_shape, features = inputs.shape
        if initial_carry is None:
            initial_carry = cell.initialize_carry((*batch_shape, features), self._carry_rngs(rngs))
        batch, hidden = math.prod(batch_shape), cell.hidden_features
        if any(part.shape != (*batch_shape, hidden) for part in initial_carry):
            raise ValueError(
                f"RNN expected an initial carry (c, h), each of shape {(*batch_shape, hidden)}, "
                f"got {[part.shape for part in initial_carry]}."
            )
        if seq_lengths is not None:
            seq_lengths = jnp.broadcast_to(jnp.asarray(seq_lengths), tuple(batch_shape))
        flip = seq_lengths is not None and reverse  # padding stays at the end: not a plain backward scan
        if flip:
            inputs = flip_sequences(inputs, seq_lengths, len(batch_shape), time_major=True)
        carry = tuple(part.reshape(batch, hidden) for part in initial_carry)
        states = lstm(
            inputs.reshape(time, batch, features),
            cell.dense_i.kernel[...],
            cell.dense_h.kernel[...],
            cell.dense_h.bias[...],
            carry,
            reverse=reverse and not flip,
            unroll=self.unroll,
        )
        last = states.last
        if seq_lengths is not None:
            lengths = jnp.reshape(seq_lengths, batch)
            last = LSTMCarry(*(_at_end(part, lengths, start) for part, start in zip(states[1::-1], carry, strict=True)))
        outputs = states.h.reshape(time, *batch_shape, hidden)
        if flip and keep_order:
            outputs = flip_sequences(outputs, seq_lengths, len(batch_shape), time_major=True)
        if reverse and not flip and not keep_order:
            outputs = jnp.flip(outputs, axis=0)
        if not time_major:
            outputs = jnp.moveaxis(outputs, 0, -2)
        if not return_carry:
            return outputs
        return tuple(part.reshape(*batch_shape, hidden) for part in last), outputs

    def _is_fast(self, inputs: Any, initial_carry: Any) -> bool:
        """Whether the cell, as it stands, computes just what `recurrence.lstm` computes."""
        cell = self.cell
        if type(cell) is not nnx.OptimizedLSTMCell or self.broadcast_rngs is not None:
            return False
        dense_i, dense_h = cell.dense_i, cell.dense_h
        if type(dense_i) is not nnx.Linear or type(dense_h) is not nnx.Linear:  # replaced, as LoRA does
            return False
        arrays = [inputs, dense_i.kernel[...], dense_h.kernel[...], dense_h.bias, *(initial_carry or ())]
        if any(array is None for array in arrays) or dense_i.bias is not None:
            return False
        dtypes = {jnp.dtype(array.dtype) for array in arrays} | {jnp.dtype(cell.dtype or inputs.dtype)}
        return (
            dtypes in [{jnp.dtype(dtype)} for dtype in FAST_DTYPES]
            and cell.gate_fn is nnx.sigmoid
            and cell.activation_fn is nnx.tanh
            and cell.promote_dtype is promote_dtype
            and all(dense.promote_dtype is promote_dtype for dense in (dense_i, dense_h))
            and all(dense.dot_general is jax.lax.dot_general for dense in (dense_i, dense_h))
            and all(dense.precision is None and dense.preferred_element_type is None for dense in (dense_i, dense_h))
            and self.state_axes == DEFAULT_STATE_AXES
        )

    def _carry_rngs(self, rngs: Any) -> Any:
        rngs = self.rngs if rngs is None else rngs
        return rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs


def _at_end(states: Array, lengths: AnyArray, initial: AnyArray) -> Array:
    """The state after step `lengths` of each sequence: [time, batch, hidden] to [batch, hidden]."""
    index = jnp.clip(lengths - 1, 0, len(states) - 1)
    return jnp.where(lengths[:, None] > 0, states[index, jnp.arange(len(index))], initial)


class LSTM(nnx.Module):
    """A stack of LSTM layers, each of its own width, run over a batch of sequences.

    The layers are `RNN`s over `nnx.OptimizedLSTMCell`s: `lstm.layers[n].cell` holds the parameters of layer n,
    `dense_i.kernel` [in, 4 hidden], `dense_h.kernel` [hidden, 4 hidden] and `dense_h.bias` [4 hidden], gates in
    the order i, f, g, o.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import LSTM
      >>> lstm = LSTM(28, (32, 64), rngs=nnx.Rngs(0))
      >>> outputs, carries = lstm(jnp.ones((5, 10, 28)))
      >>> outputs.shape, [carry.h.shape for carry in carries]
      ((5, 10, 64), [(5, 32), (5, 64)])
      >>> bool((outputs[:, -1] == carries[-1].h).all())
      True
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: Sequence[int] = (32, 64),
        *,
        time_major: bool = False,
        unroll: int = 1,
        kernel_init: Initializer = lecun_normal(),
        recurrent_kernel_init: Initializer = orthogonal(),
        fused_kernel_init: Initializer | None = None,
        bias_init: Initializer = zeros,
        forget_bias: float = 0.0,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the layers and draws their parameters.

        Args:
          in_features: size of an input at one time step.
          hidden_features: width of each layer, from the input to the output.
          time_major: inputs and outputs are [time, batch, features] rather than [batch, time, features].
          unroll: time steps a loop iteration.
          kernel_init, recurrent_kernel_init, bias_init: initialisers, by default those of Flax's cells.
          fused_kernel_init: draws a layer's whole kernel [in + hidden, 4 hidden] at once, input rows first, as
            TensorFlow's BasicLSTMCell does; then the two other kernel initialisers are not used.
          forget_bias: added to the initial bias of the forget gates (Jozefowicz et al. 2015 recommend 1).
          param_dtype: dtype of the parameters and of the zero carries.
          rngs: gives the key stream `params`.

        Raises:
          ValueError: there is no layer, or a width below 1.
        """
        widths = (in_features, *hidden_features)
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(
                f"LSTM needs an input width and at least one layer width, all 1 or more; got "
                f"in_features={in_features}, hidden_features={tuple(hidden_features)}."
            )
        self.in_features = in_features
        self.hidden_features = tuple(hidden_features)
        self.time_major = time_major
        self.param_dtype = param_dtype
        layers = []
        for in_width, width in zip(widths, hidden_features, strict=False):
            cell = nnx.OptimizedLSTMCell(
                in_width,
                width,
                kernel_init=kernel_init,
                recurrent_kernel_init=recurrent_kernel_init,
                bias_init=bias_init,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            if fused_kernel_init is not None:
                kernel = fused_kernel_init(rngs.params(), (in_width + width, 4 * width), param_dtype)
                cell.dense_i.kernel[...], cell.dense_h.kernel[...] = kernel[:in_width], kernel[in_width:]
            bias: Any = cell.dense_h.bias
            bias[...] = bias[...].at[width : 2 * width].add(forget_bias)
            layers.append(RNN(cell, time_major=True, return_carry=True, unroll=unroll, rngs=False))
        self.layers = nnx.List(layers)

    def __call__(
        self,
        inputs: AnyArray,
        *,
        initial_carries: Sequence[tuple[AnyArray, AnyArray]] | None = None,
        time_major: bool | None = None,
    ) -> tuple[Array, list[LSTMCarry]]:
        """Runs the stack.

        Args:
          inputs: [*batch, time, in_features], or [time, *batch, in_features] if time-major.
          initial_carries: (c, h) of every layer before the first step, each [*batch, hidden]; None is zeros.
          time_major: overrides the layer's own.

        Returns:
          The last layer's outputs [*batch, time, hidden] (time first if time-major), and every layer's final
          carry (c, h). The last output is the last layer's final hidden state: `outputs[:, -1]` equals
          `carries[-1].h`.

        Raises:
          ValueError: the inputs or the carries are of the wrong shape.
        """
        time_major = self.time_major if time_major is None else time_major
        if inputs.ndim < 2 or inputs.shape[-1] != self.in_features:
            axes = "time, ..., " if time_major else "..., time, "
            raise ValueError(f"LSTM expected inputs [{axes}{self.in_features}], got shape {inputs.shape}.")
        outputs = jnp.asarray(inputs) if time_major else jnp.moveaxis(inputs, -2, 0)
        batch_shape = outputs.shape[1:-1]
        if initial_carries is None:
            initial_carries = self.zero_carries(batch_shape)
        expected = [((*batch_shape, width),) * 2 for width in self.hidden_features]
        if (shapes := [tuple(part.shape for part in carry) for carry in initial_carries]) != expected:
            raise ValueError(f"LSTM expected initial carries (c, h) of shapes {expected}, got {shapes}.")

        carries = []
        for layer, initial_carry in zip(self.layers, initial_carries, strict=True):
            carry, outputs = layer(outputs, initial_carry=tuple(initial_carry))
            carries.append(LSTMCarry(*carry))
        return outputs if time_major else jnp.moveaxis(outputs, 0, -2), carries

    def zero_carries(self, batch_shape: Sequence[Any]) -> list[LSTMCarry]:
        """The initial state of every layer: zeros [*batch_shape, hidden]. (`jax.export`'s sizes are no ints.)"""
        zeros = [jnp.zeros((*batch_shape, width), self.param_dtype) for width in self.hidden_features]
        return [LSTMCarry(c=zero, h=zero) for zero in zeros]
