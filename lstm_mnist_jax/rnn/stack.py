"""Stacks of recurrent layers, in one direction or both: `StackedRNN` of any cell, `LSTM` and `GRU`.

Depends on `RNN` and on cells; not on data sets, configs or training.
"""

import functools
import itertools
import operator
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.nn.initializers import Initializer, lecun_normal, zeros
from jax.typing import DTypeLike

from lstm_mnist_jax.rnn.cells import GRUCell, ProjectedLSTMCell, orthogonal
from lstm_mnist_jax.rnn.layers import (
    RNN,
    checked_inputs,
    checked_lengths,
    checked_resets,
    explained,
    fitted_carries,
    shown_rngs,
)
from lstm_mnist_jax.rnn.noise import RecurrentNoise, is_rate
from lstm_mnist_jax.rnn.recurrence import AnyArray, LSTMCarry, require_options


class StackedRNN(nnx.Module):
    """A stack of recurrent layers of any cell, each of its own width.

    `layers[n]` is an `RNN`, or with `bidirectional` an `nnx.Bidirectional` of two whose outputs are concatenated.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import LayerNormLSTMCell, StackedRNN
      >>> stack = StackedRNN(LayerNormLSTMCell, 28, (32, 64), bidirectional=True, rngs=nnx.Rngs(0))
      >>> outputs, carries = stack(jnp.ones((5, 10, 28)), seq_lengths=jnp.array([10, 3, 1, 0, 7]))
      >>> outputs.shape
      (5, 10, 128)
      >>> (c, h), (backward_c, backward_h) = carries[-1]
      >>> h.shape, bool((h[1] == outputs[1, 2, :64]).all()), bool((outputs[1, 3:] == 0).all())
      ((5, 64), True, True)
    """

    @explained
    def __init__(
        self,
        cell: Callable[..., nnx.RNNCellBase],
        in_features: int,
        hidden_features: int | Sequence[int],
        *,
        projection_features: int | None = None,
        use_bias: bool | None = None,
        kernel_init: Initializer | None = None,
        recurrent_kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        forget_bias: float | None = None,
        bidirectional: bool = False,
        dropout_rate: float = 0.0,
        recurrent_dropout_rate: float = 0.0,
        zoneout_rates: float | tuple[float, ...] = 0.0,
        time_major: bool = False,
        remat: int | None = None,
        unroll: int = 1,
        backend: str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the layers and draws their parameters.

        Args:
          cell: an `nnx.RNNCellBase` class, called once per layer and direction as
            `cell(in_features, hidden_features, dtype=..., param_dtype=..., rngs=...)`, and with those of the next six
            arguments that are not None. Other arguments of a cell: `functools.partial(Cell, name=value)`.
          in_features: features of an input at one time step.
          hidden_features: width of each layer, from the input to the output; an integer is one layer.
          projection_features: for the cell; None is the cell's default, here and in the next five.
          use_bias: for the cell.
          kernel_init: for the cell, draws the kernels of the inputs.
          recurrent_kernel_init: for the cell, draws the recurrent kernels.
          bias_init: for the cell, draws the biases.
          forget_bias: for the cell, added to the initial bias of the forget gates.
          bidirectional: read each sequence forwards and backwards; the outputs are [forwards, backwards].
          dropout_rate: probability that a feature is dropped between one layer and the next (Zaremba et al. 2014).
          recurrent_dropout_rate: probability that a feature of h is dropped in the recurrence, the same features at
            every step of a sequence: see `RecurrentNoise`.
          zoneout_rates: probability that a feature of the carry keeps its value of the step before; one number, or one
            for each part of the carry: see `RecurrentNoise`.
          time_major: inputs and outputs are [time, *batch, features] instead of [*batch, time, features].
          remat: gradient checkpointing over time: keep every `remat`-th carry, see `RNN`; None keeps all.
          unroll: time steps per iteration of the loop, where XLA runs the loop.
          backend: "auto", "native", "xla", "pallas" or "flax": see `RNN`.
          dtype: of the matrix products and of the outputs; None is that of inputs and parameters.
          param_dtype: of the parameters and of the initial carries.
          rngs: gives the key streams `params` and, for dropout and zoneout, `dropout`.

        Raises:
          ValueError: there is no layer, a width is below 1, a rate is outside [0, 1), `dtype` or `param_dtype` are not
            floats, or `cell` is a cell and not a class.
          TypeError: the cell does not have an argument that is not None, or the layer has no argument of this name.
        """
        name = type(self).__name__
        try:
            widths = tuple(map(operator.index, np.atleast_1d(np.asarray(hidden_features, object))))
            right = len(widths) > 0 and min(operator.index(in_features), *widths) >= 1
            right = right and not isinstance(hidden_features, bool)
        except (TypeError, ValueError):
            right = False
        if not right:
            raise ValueError(
                f"{name} needs an input width and at least one layer width, all integers of 1 or more; got "
                f"in_features={in_features!r}, hidden_features={hidden_features!r}."
            )
        if not is_rate(dropout_rate):
            raise ValueError(f"{name} needs a dropout_rate from 0 to below 1; got {dropout_rate!r}.")
        if dropout_rate and len(widths) == 1:
            # The warning points at the first frame outside these packages. (Python 3.12 has `skip_file_prefixes`.)
            frames = traceback.walk_stack(sys._getframe())
            packages = (frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in frames)
            within = itertools.takewhile(("lstm_mnist_jax", "flax", "jaxtyping").__contains__, packages)
            warnings.warn(
                f"{name} has one layer, so dropout_rate={dropout_rate} drops nothing: it acts between layers. Give two "
                "or more hidden_features, or recurrent_dropout_rate, or nnx.Dropout for the outputs.",
                UserWarning,
                stacklevel=len([*within]) + 1,
            )
        if not hasattr(rngs, "params"):
            raise ValueError(f"{name} draws its parameters from rngs, such as nnx.Rngs(0); got {shown_rngs(rngs)}.")
        require_options(name, unroll, bidirectional=bidirectional, time_major=time_major)
        for option, kind in (("dtype", dtype), ("param_dtype", param_dtype)):
            try:
                right = kind is None or jnp.issubdtype(kind, jnp.floating)
            except TypeError:  # no dtype
                right = False
            if not right:
                raise ValueError(f"{name} needs a {option} of floats, such as jnp.bfloat16; got {kind!r}.")
        is_other_class = isinstance(cell, type) and not issubclass(cell, nnx.Module)
        if isinstance(cell, nnx.Module) or is_other_class or not callable(cell):
            given = (type(cell).__name__, "a cell") if isinstance(cell, nnx.Module) else ("of one", repr(cell))
            raise ValueError("{} makes a cell for each layer: give it the class {}, not {}.".format(name, *given))
        self.in_features, self.hidden_features = in_features, widths
        self.bidirectional, self.time_major = bidirectional, time_major
        self.dtype, self.param_dtype = dtype, param_dtype
        cell_options: dict[str, Any] = {
            "projection_features": projection_features,
            "use_bias": use_bias,
            "kernel_init": kernel_init,
            "recurrent_kernel_init": recurrent_kernel_init,
            "bias_init": bias_init,
            "forget_bias": forget_bias,
        }
        cell_options = {option: value for option, value in cell_options.items() if value is not None}
        for option, value in cell_options.items():
            if option.endswith("_init") and not callable(value):
                raise ValueError(f"{name} needs a function as {option}, such as nnx.initializers.ones; got {value!r}.")
        cell_options |= {"dtype": dtype, "param_dtype": param_dtype}
        noisy = recurrent_dropout_rate != 0 or np.any(zoneout_rates)

        def rnn(in_width: int, width: int, reverse: bool) -> RNN:
            noise = None
            if noisy:
                noise = RecurrentNoise(dropout_rate=recurrent_dropout_rate, zoneout_rates=zoneout_rates, rngs=rngs)
            return RNN(
                cell(in_width, width, rngs=rngs, **cell_options), time_major=True, return_carry=True, reverse=reverse,
                keep_order=True, unroll=unroll, remat=remat, backend=backend, noise=noise, rngs=False,
            )  # fmt: skip

        layers: list[Any] = []
        in_width = in_features
        for width in widths:
            layer: Any = rnn(in_width, width, reverse=False)
            outputs = getattr(layer.cell, "output_features", width)
            if bidirectional:
                backward = rnn(in_width, width, reverse=True)
                layer = nnx.Bidirectional(layer, backward, time_major=True, return_carry=True, rngs=False)
            layers.append(layer)
            in_width = outputs * (2 if bidirectional else 1)
        self.layers = nnx.List(layers)
        self.out_features = in_width
        self.dropout = nnx.Dropout(dropout_rate, rngs=rngs) if dropout_rate else None

    @explained
    def __call__(
        self,
        inputs: AnyArray,
        *,
        initial_carries: Sequence[Any] | nnx.Variable[Any] | None = None,
        seq_lengths: AnyArray | Sequence[int] | int | None = None,
        resets: AnyArray | None = None,
        masks: Sequence[AnyArray] | None = None,
        time_major: bool | None = None,
    ) -> tuple[Array, list[Any]]:
        """Runs the stack over a batch of sequences.

        Args:
          inputs: [*batch, time, in_features], or [time, *batch, in_features] if time-major.
          initial_carries: the carry of every layer before the first step, floats: of an `LSTM` (c, h), of a `GRU` h,
            [*batch, hidden] each; with `bidirectional` pairs (forwards, backwards) of these. A part [hidden], such as a
            learned `nnx.Param`, is the same for every sequence. None is `zero_carries`.
          seq_lengths: integers [*batch] of any integer dtype, the number of steps of each sequence; None is all. Each
            direction reads these steps only, and its final carry is that after the last step that it reads. The outputs
            past the end are zero. Lengths are clipped to [0, time]: one above time, or below 0, is no error.
          resets: booleans [*batch, time] (time first if time-major): where True, a new sequence begins at this step,
            from the initial carries. So one row holds several sequences, such as the episodes of reinforcement
            learning; each direction reads every one of them as if it were alone. None is never.
          masks: for every layer but the first, what its inputs are multiplied by at every step, [*batch, features]:
            dropout that the caller draws, the same for a whole sequence (Gal and Ghahramani 2016).
          time_major: overrides the stack's own.

        Returns:
          The last layer's outputs [*batch, time, out_features] (time first if time-major), and a list of every layer's
          final carry, of an `LSTM` an `LSTMCarry` (c, h); with `bidirectional`, of each layer the pair (forwards,
          backwards). In a stack of one direction without `seq_lengths`, `outputs[:, -1]` is the last layer's final h.

        Raises:
          ValueError: the inputs, the carries, the lengths, the resets or the masks have a wrong shape or dtype.
        """
        time_major = self.time_major if time_major is None else time_major
        name = type(self).__name__
        require_options(name, time_major=time_major)
        inputs = checked_inputs(name, inputs, 1, time_major)
        if inputs.shape[-1] != self.in_features:
            axes = "time, ..., " if time_major else "..., time, "
            raise ValueError(f"{name} expected inputs [{axes}{self.in_features}], got shape {inputs.shape}.")
        time_axis = 0 if time_major else inputs.ndim - 2
        batch_shape = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 : -1]
        options: dict[str, Any] = {"time_major": time_major}
        if resets is not None:
            options["resets"] = checked_resets(name, resets, inputs.shape[:-1])
        if seq_lengths is not None:
            options["seq_lengths"] = checked_lengths(
                name, seq_lengths, batch_shape, inputs.shape[time_axis], time_major
            )
        initial_carries = self._checked_carries(initial_carries, batch_shape)
        if masks is not None and len(masks) != len(self.layers) - 1:
            raise ValueError(
                f"{name} expected {len(self.layers) - 1} masks, one between each two layers, got {len(masks)}."
            )

        outputs: Any = inputs
        carries = []
        for n, (layer, initial_carry) in enumerate(zip(self.layers, initial_carries, strict=True)):
            if n > 0 and self.dropout is not None:
                outputs = self.dropout(outputs)
            if n > 0 and masks is not None:
                mask = jnp.asarray(masks[n - 1], outputs.dtype)
                if mask.shape != (expected := (*batch_shape, outputs.shape[-1])):
                    raise ValueError(f"{name} expected masks[{n - 1}] of shape {expected}, got {mask.shape}.")
                outputs = outputs * jnp.expand_dims(mask, time_axis)
            if self.bidirectional:
                forward, backward = initial_carry
                forward, outputs_forward = layer.forward_rnn(outputs, initial_carry=forward, **options)
                backward, outputs_backward = layer.backward_rnn(outputs, initial_carry=backward, **options)
                carry, outputs = (forward, backward), jnp.concatenate([outputs_forward, outputs_backward], axis=-1)
            else:
                carry, outputs = layer(outputs, initial_carry=initial_carry, **options)
            outputs = outputs if self.dtype is None else outputs.astype(self.dtype)
            carries.append(self._named(carry))
        return outputs, carries

    def _checked_carries(self, initial_carries: Any, batch_shape: tuple[Any, ...]) -> Any:
        """Initial carries with parts [*batch, hidden]; a part [hidden] is repeated for every sequence."""
        zeros = self.zero_carries(batch_shape)
        if initial_carries is None:
            return zeros
        given, wanted = _as_tuples(initial_carries), _as_tuples(zeros)
        parts = fitted_carries(type(self).__name__, given, [part.shape for part in jax.tree.leaves(zeros)])
        structure: Any = jax.tree.structure(given)
        if parts is None or structure != jax.tree.structure(wanted):
            shapes = (jax.tree.map(jnp.shape, carries) for carries in (wanted, given))
            raise ValueError(
                "{} expected initial carries, one for each layer, of shapes {}, got {}.".format(
                    type(self).__name__, *shapes
                )
            )
        return jax.tree.unflatten(jax.tree.structure(zeros), parts)

    def zero_carries(self, batch_shape: Sequence[Any]) -> list[Any]:
        """The initial carry of every layer: zeros.

        Args:
          batch_shape: the batch axes of the inputs; integers, or symbolic sizes of `jax.export`.

        Returns:
          A list with the carry of each layer; with `bidirectional`, with the pair (forwards, backwards) of each layer.
        """

        def zero(rnn: Any) -> Any:
            return rnn.cell.initialize_carry((*batch_shape, rnn.cell.in_features), nnx.Rngs(0))

        if not self.bidirectional:
            return [self._named(zero(layer)) for layer in self.layers]
        return [self._named((zero(layer.forward_rnn), zero(layer.backward_rnn))) for layer in self.layers]

    def _named(self, carry: Any) -> Any:
        """A layer's carry as this class returns it."""
        return carry


def _as_tuples(carries: Any) -> Any:
    """With the values of variables, and with plain tuples for lists, Flax's lists, and named tuples."""
    carries = carries.get_value() if isinstance(carries, nnx.Variable) else carries
    return tuple(map(_as_tuples, carries)) if isinstance(carries, tuple | list | nnx.List) else carries


class LSTM(StackedRNN):
    """A stack of LSTM layers, as `torch.nn.LSTM`; each layer may have its own width.

        i, f, o = sigmoid(x W + h U + b)    g = tanh(x W + h U + b)    c' = f c + i g    h' = o tanh(c')

    (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.) The cells are
    `nnx.OptimizedLSTMCell`s, or with `projection_features` or without biases `ProjectedLSTMCell`s.
    `lstm.layers[n].cell` holds the parameters of layer n: `dense_i.kernel` [in, 4 hidden], `dense_h.kernel`
    [hidden, 4 hidden] and `dense_h.bias` [4 hidden], with the gates in the order i, f, g, o. With `bidirectional` they
    are in `layers[n].forward_rnn.cell` and `layers[n].backward_rnn.cell`.

    Examples:
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

    @explained
    def __init__(
        self,
        in_features: int,
        hidden_features: int | Sequence[int] = (32, 64),
        *,
        projection_features: int | None = None,
        use_bias: bool = True,
        kernel_init: Initializer = lecun_normal(),
        recurrent_kernel_init: Initializer = orthogonal,
        fused_kernel_init: Initializer | None = None,
        bias_init: Initializer = zeros,
        forget_bias: float = 0.0,
        bidirectional: bool = False,
        dropout_rate: float = 0.0,
        recurrent_dropout_rate: float = 0.0,
        zoneout_rates: float | tuple[float, ...] = 0.0,
        time_major: bool = False,
        remat: int | None = None,
        unroll: int = 1,
        backend: str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the layers and draws their parameters.

        Args:
          in_features: features of an input at one time step.
          hidden_features: width of each layer, from the input to the output; an integer is one layer.
          projection_features: if given, the output of every layer is h = (o tanh(c)) P of this size (Sak et al. 2014).
          use_bias: whether the gates have a bias.
          kernel_init: draws the kernels of the inputs, [in, 4 hidden].
          recurrent_kernel_init: draws the recurrent kernels, [hidden, 4 hidden].
          fused_kernel_init: draws a layer's whole kernel [in + output, 4 hidden] at once, input rows first, as
            TensorFlow's BasicLSTMCell does. It replaces `kernel_init` and `recurrent_kernel_init`, except for P.
          bias_init: draws the biases, [4 hidden].
          forget_bias: added to the initial bias of the forget gates (Jozefowicz et al. 2015 recommend 1).
          bidirectional: read each sequence forwards and backwards; the outputs are [forwards, backwards].
          dropout_rate: probability that a feature is dropped between one layer and the next (Zaremba et al. 2014).
          recurrent_dropout_rate: probability that a feature of h is dropped in the recurrence, the same features at
            every step of a sequence: see `RecurrentNoise`.
          zoneout_rates: probability that a feature of the carry keeps its value of the step before; one number, or one
            for each part of the carry: see `RecurrentNoise`.
          time_major: inputs and outputs are [time, *batch, features] instead of [*batch, time, features].
          remat: gradient checkpointing over time: keep every `remat`-th carry, see `RNN`; None keeps all.
          unroll: time steps per iteration of the loop, where XLA runs the loop.
          backend: "auto", "native", "xla", "pallas" or "flax": see `RNN`.
          dtype: of the matrix products and of the outputs; None is that of inputs and parameters.
          param_dtype: of the parameters and of the initial carries.
          rngs: gives the key streams `params` and, for dropout and zoneout, `dropout`.

        Raises:
          ValueError: there is no layer, a width is below 1, a rate is outside [0, 1), `projection_features` is not an
            integer of 1 or more, or there is a `forget_bias` without biases.
        """
        require_options("LSTM", use_bias=use_bias)
        is_width = isinstance(projection_features, int | np.integer) and not isinstance(projection_features, bool)
        if projection_features is not None and not is_width:
            raise ValueError(f"LSTM has one projection_features for all layers; got {projection_features!r}.")

        def cell(in_width: int, width: int, **options: Any) -> Any:
            if fused_kernel_init is not None:
                options["recurrent_kernel_init"] = zeros  # replaced below; drawing orthogonal matrices takes long
            if projection_features is None and use_bias:
                cell: Any = nnx.OptimizedLSTMCell(in_width, width, **options)
                bias = cell.dense_h.bias
                bias.set_value(bias[...].at[width : 2 * width].add(forget_bias))
            else:
                options |= {
                    "projection_features": projection_features,
                    "forget_bias": forget_bias,
                    "use_bias": use_bias,
                }
                cell = ProjectedLSTMCell(in_width, width, **options)
            if fused_kernel_init is not None:
                output = cell.dense_h.kernel.shape[0]
                kernel = fused_kernel_init(options["rngs"].params(), (in_width + output, 4 * width), cell.param_dtype)
                cell.dense_i.kernel.set_value(kernel[:in_width])
                cell.dense_h.kernel.set_value(kernel[in_width:])
            return cell

        super().__init__(
            cell, in_features, hidden_features, kernel_init=kernel_init, recurrent_kernel_init=recurrent_kernel_init,
            bias_init=bias_init, bidirectional=bidirectional, dropout_rate=dropout_rate,
            recurrent_dropout_rate=recurrent_dropout_rate, zoneout_rates=zoneout_rates, time_major=time_major,
            remat=remat, unroll=unroll, backend=backend, dtype=dtype, param_dtype=param_dtype, rngs=rngs,
        )  # fmt: skip

    def _named(self, carry: Any) -> Any:
        return tuple(LSTMCarry(*part) for part in carry) if self.bidirectional else LSTMCarry(*carry)


class GRU(StackedRNN):
    """A stack of GRU layers (Cho et al. 2014), as `torch.nn.GRU`; each layer may have its own width.

        r, z = sigmoid(x W + b + h U + d)    n = tanh(x W + b + r (h U + d))    h' = (1 - z) n + z h

    The reset gate r stands after the product, as in cuDNN, PyTorch and Keras; with `reset_after=False` before it, as in
    the paper. The cells are `GRUCell`s: `gru.layers[n].cell` holds `dense_i.kernel` W [in, 3 hidden], `dense_i.bias` b
    [3 hidden], `dense_h.kernel` U [hidden, 3 hidden] and `dense_h.bias` d [3 hidden], with the gates in the order r, z,
    n. A carry is h, [*batch, hidden].

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import GRU
      >>> outputs, carries = GRU(28, (32, 64), rngs=nnx.Rngs(0))(jnp.ones((5, 10, 28)))
      >>> outputs.shape, [carry.shape for carry in carries]
      ((5, 10, 64), [(5, 32), (5, 64)])
    """

    @explained
    def __init__(
        self,
        in_features: int,
        hidden_features: int | Sequence[int],
        *,
        use_bias: bool = True,
        reset_after: bool = True,
        kernel_init: Initializer = lecun_normal(),
        recurrent_kernel_init: Initializer = orthogonal,
        bias_init: Initializer = zeros,
        bidirectional: bool = False,
        dropout_rate: float = 0.0,
        recurrent_dropout_rate: float = 0.0,
        zoneout_rates: float | tuple[float, ...] = 0.0,
        time_major: bool = False,
        remat: int | None = None,
        unroll: int = 1,
        backend: str = "auto",
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the layers and draws their parameters.

        Args:
          in_features: features of an input at one time step.
          hidden_features: width of each layer, from the input to the output; an integer is one layer.
          use_bias: whether the gates have biases.
          reset_after: whether r multiplies h U + d, or h before the product, n = tanh(x W + b + (r h) U), which takes
            two products a step and Flax's own scan.
          kernel_init: draws the kernels of the inputs, [in, 3 hidden].
          recurrent_kernel_init: draws the recurrent kernels, [hidden, 3 hidden].
          bias_init: draws the biases b, [3 hidden]. The biases d are zero.
          bidirectional: read each sequence forwards and backwards; the outputs are [forwards, backwards].
          dropout_rate: probability that a feature is dropped between one layer and the next (Zaremba et al. 2014).
          recurrent_dropout_rate: probability that a feature of h is dropped in the recurrence, the same features at
            every step of a sequence: see `RecurrentNoise`.
          zoneout_rates: probability that a feature of the carry keeps its value of the step before; one number, or one
            for each part of the carry: see `RecurrentNoise`.
          time_major: inputs and outputs are [time, *batch, features] instead of [*batch, time, features].
          remat: gradient checkpointing over time: keep every `remat`-th carry, see `RNN`; None keeps all.
          unroll: time steps per iteration of the loop, where XLA runs the loop.
          backend: "auto", "native", "xla", "pallas" or "flax": see `RNN`.
          dtype: of the matrix products and of the outputs; None is that of inputs and parameters.
          param_dtype: of the parameters and of the initial carries.
          rngs: gives the key streams `params` and, for dropout and zoneout, `dropout`.

        Raises:
          ValueError: there is no layer, a width is below 1, or a rate is outside [0, 1).
        """
        super().__init__(
            functools.partial(GRUCell, reset_after=reset_after), in_features, hidden_features, use_bias=use_bias,
            kernel_init=kernel_init, recurrent_kernel_init=recurrent_kernel_init, bias_init=bias_init,
            bidirectional=bidirectional, dropout_rate=dropout_rate, recurrent_dropout_rate=recurrent_dropout_rate,
            zoneout_rates=zoneout_rates, time_major=time_major, remat=remat, unroll=unroll, backend=backend,
            dtype=dtype, param_dtype=param_dtype, rngs=rngs,
        )  # fmt: skip
