"""Recurrent cells that Flax does not have, and the base class for your own: `GatedCell`.

A gated cell defines in `update` what one time step does with its gates. `RNN` and `StackedRNN` add the loop, the
projection of all inputs at once, layers, directions, masks and the gradient. See docs/custom_cell.md.
Depends on Flax's modules; not on loops.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import Array
from jax.nn import initializers
from jax.nn.initializers import Initializer, lecun_normal, zeros
from jax.typing import DTypeLike

from lstm_mnist_jax.rnn.gated import Gates
from lstm_mnist_jax.rnn.initializers import uniform_gates
from lstm_mnist_jax.rnn.products import project_differentiably, state_dtype, vary_alike
from lstm_mnist_jax.rnn.recurrence import AnyArray, require_options


def orthogonal(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
    """JAX's initializer of this name, in every dtype: JAX's own factorizes a matrix, which needs float32 or wider."""
    drawn = initializers.orthogonal()(key, shape, state_dtype(dtype), out_sharding=out_sharding)
    return drawn.astype(dtype)


class GatedCell(nnx.RNNCellBase):
    """The base class of gated cells: one matrix from the input to the gates, and one from the last output.

        projected = project(x_t)    recurrent = h_{t-1} U    carry_t = update(carry_{t-1}, projected, recurrent)

    The last part of the carry is h, the output. The parts before it are states such as the c of an LSTM. A subclass
    sets `num_gates` and `num_cell_states` and defines `update`. It works wherever an `nnx.RNNCellBase` does. `RNN` has
    a fast path for it if `update` reads no states but `nnx.Param`s of floats, and does not read the dense layers below.

    Attributes:
      num_gates: number of gates, 4 by default; the kernels have num_gates * hidden columns.
      num_cell_states: number of states in the carry before h, 1 by default, each [hidden].
      default_bias_init: draws the bias where none is given.
      forget_gate: which gate is the forget gate, whose initial bias `forget_bias` adds to; None where there is none.
      dense_i: from x to the gates, a kernel [in, num_gates * hidden] and a bias.
      dense_h: from h to the gates, a kernel [output, num_gates * hidden] without a bias.
      dense_p: with `projection_features`, the kernel P [hidden, output].

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import RNN, GatedCell
      >>> class MinimalGatedUnit(GatedCell):  # Zhou et al. 2016
      ...     num_gates, num_cell_states = 2, 0
      ...     def update(self, carry, projected, recurrent):
      ...         (h,) = carry
      ...         f = jax.nn.sigmoid(projected[0] + recurrent[0])
      ...         n = jnp.tanh(projected[1] + f * recurrent[1])
      ...         return (f * h + (1 - f) * n,)
      >>> cell = MinimalGatedUnit(28, 32, rngs=nnx.Rngs(0))
      >>> RNN(cell)(jnp.ones((5, 10, 28))).shape
      (5, 10, 32)
    """

    num_gates: int = 4
    num_cell_states: int = 1
    default_bias_init: Initializer = staticmethod(zeros)
    forget_gate: int | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if hasattr(cls, "num_memories"):
            raise TypeError(f"{cls.__name__}.num_memories is num_cell_states since version 0.5.0; rename it.")

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        projection_features: int | None = None,
        use_bias: bool = True,
        kernel_init: Initializer = lecun_normal(),
        recurrent_kernel_init: Initializer = orthogonal,
        bias_init: Initializer | None = None,
        forget_bias: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draws the parameters.

        Args:
          in_features: features of an input at one time step.
          hidden_features: features of each gate and of the cell state.
          projection_features: if given, the output is h = m P of this size, where m is the last part of what `update`
            returns and P is `dense_p.kernel` (Sak et al. 2014).
          use_bias: whether `dense_i` has a bias.
          kernel_init: draws the kernels of the inputs [in, num_gates * hidden] and P [hidden, projection].
          recurrent_kernel_init: draws the recurrent kernel [output, num_gates * hidden].
          bias_init: draws the bias [num_gates * hidden]; None is the cell's `default_bias_init`.
          forget_bias: added to the initial bias of the forget gates (Jozefowicz et al. 2015 recommend 1).
          dtype: of the matrix products; None is that of inputs and parameters.
          param_dtype: of the parameters and of the initial carry.
          rngs: gives the key stream `params`.

        Raises:
          ValueError: a size is below 1, or there is a `forget_bias` and no bias to add it to.
          TypeError: there is a `forget_bias` and no `forget_gate`.
        """
        require_options(type(self).__name__, use_bias=use_bias)
        self.in_features, self.hidden_features = in_features, hidden_features
        self.output_features = hidden_features if projection_features is None else projection_features
        if min(in_features, hidden_features, self.output_features) < 1:
            raise ValueError(
                f"{type(self).__name__} needs sizes of 1 or more; got in_features={in_features}, "
                f"hidden_features={hidden_features}, projection_features={projection_features}."
            )
        self.dtype, self.param_dtype = dtype, param_dtype
        bias_init = self.default_bias_init if bias_init is None else bias_init
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        gates = self.num_gates * hidden_features
        self.dense_i = nnx.Linear(
            in_features, gates, use_bias=use_bias, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs, **dtypes
        )
        self.dense_h = nnx.Linear(
            self.output_features,
            gates,
            use_bias=use_bias and self._has_recurrent_bias(),
            kernel_init=recurrent_kernel_init,
            rngs=rngs,
            **dtypes,
        )
        if projection_features is not None:
            self.dense_p = nnx.Linear(
                hidden_features, projection_features, use_bias=False, kernel_init=kernel_init, rngs=rngs, **dtypes
            )
        self._add_params()
        if forget_bias == 0:
            return
        if self.forget_gate is None:
            raise TypeError(f"{type(self).__name__} has no forget_gate to whose bias forget_bias could be added.")
        bias: Any = self._gate_bias()
        if bias is None:
            raise ValueError(f"{type(self).__name__} adds forget_bias={forget_bias} to a bias, but use_bias is False.")
        start = self.forget_gate * hidden_features
        bias.set_value(bias[...].at[start : start + hidden_features].add(forget_bias))

    def _add_params(self) -> None:
        """Makes the parameters that this cell has besides its dense layers."""

    def _gate_bias(self) -> Any:
        return self.dense_i.bias

    def _has_recurrent_bias(self) -> bool:
        return False

    def project(self, inputs: AnyArray) -> Array:
        """The contribution of inputs to the gates, for any number of time steps at once.

        Args:
          inputs: [..., in].

        Returns:
          [..., num_gates * hidden], biases included.
        """
        inputs = jnp.asarray(inputs)
        if inputs.ndim != 3 or not is_plain(self.dense_i):
            return self.dense_i(inputs)
        kernel, bias = self.dense_i.kernel[...], self.dense_i.bias
        inputs, kernel = promote_dtype((inputs, kernel), dtype=self.dense_i.dtype)
        outputs = project_differentiably(*vary_alike((inputs, kernel)))
        return outputs if bias is None else outputs + bias[...].astype(outputs.dtype)

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        """One time step. A subclass defines it.

        Args:
          carry: the carry of the step before: a tuple of the states [batch, hidden] and, last, h [batch, output].
          projected: the contribution of the input to each gate, biases included: a tuple of [batch, hidden].
          recurrent: the contribution of h to each gate: a tuple of [batch, hidden].

        Returns:
          The new carry: a tuple of the new states [batch, hidden] and, last, the output [batch, hidden], which with
          `projection_features` is then multiplied by P.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define update(carry, projected, recurrent).")

    def __call__(self, carry: Any, inputs: AnyArray) -> tuple[Any, Array]:
        """One time step on its own.

        Args:
          carry: the carry of the step before, each part [*batch, features].
          inputs: [*batch, in].

        Returns:
          The new carry, and the output [*batch, output], which is its last part.
        """
        products = self.project(inputs), self.dense_h(carry[-1])
        projected, recurrent = (tuple(jnp.split(product, self.num_gates, axis=-1)) for product in products)
        after = explained_update(self, tuple(carry), projected, recurrent)
        if hasattr(self, "dense_p"):
            after = (*after[:-1], self.dense_p(after[-1]))
        return tuple(new.astype(old.dtype) for new, old in zip(after, carry, strict=True)), after[-1]

    def initialize_carry(self, input_shape: tuple[Any, ...], rngs: Any = None, carry_init: Any = None) -> Any:
        """The carry before the first step: zeros, unless `carry_init` draws it.

        Args:
          input_shape: shape of the inputs of one step, (*batch, in).
          rngs: the keys for `carry_init`: an `nnx.Rngs` or a stream.
          carry_init: draws each part, (key, shape, dtype) -> array.

        Returns:
          A tuple of `num_cell_states` states [*batch, hidden] and h [*batch, output], in `param_dtype`.
        """
        widths = [*[self.hidden_features] * self.num_cell_states, self.output_features]
        shapes = [(*input_shape[:-1], width) for width in widths]
        if carry_init is None:
            return tuple(jnp.zeros(shape, self.param_dtype) for shape in shapes)
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        return tuple(carry_init(stream(), shape, self.param_dtype) for shape in shapes)

    @property
    def num_feature_axes(self) -> int:
        """How many axes of an input are features: one."""
        return 1


class GRUCell(GatedCell):
    """The GRU (Cho et al. 2014) with the biases of `torch.nn.GRU` and Keras, which `nnx.GRUCell` does not have.

        r, z = sigmoid(x W + b + h U + d)    n = tanh(x W + b + r (h U + d))    h' = (1 - z) n + z h

    With `reset_after=False`, n = tanh(x W + b + (r h) U), and there is no d. `RNN` has no fast path for that. The carry
    is h [*batch, hidden] alone, as that of `nnx.GRUCell`.

    Attributes:
      dense_h: the kernel U [hidden, 3 hidden] and the bias d [3 hidden], which is zero initially.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import RNN, GRUCell
      >>> cell = GRUCell(28, 32, rngs=nnx.Rngs(0))
      >>> cell.dense_h.bias.shape, RNN(cell)(jnp.ones((5, 10, 28))).shape
      ((96,), (5, 10, 32))
    """

    num_gates, num_cell_states = 3, 0

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        reset_after: bool = True,
        use_bias: bool = True,
        kernel_init: Initializer = lecun_normal(),
        recurrent_kernel_init: Initializer = orthogonal,
        bias_init: Initializer = zeros,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draws the parameters.

        Args:
          in_features: features of an input at one time step.
          hidden_features: features of each gate and of the output.
          reset_after: whether r multiplies h U + d (as in cuDNN, PyTorch and Keras) or h (as in the paper).
          use_bias: whether there are b and d.
          kernel_init: draws W [in, 3 hidden].
          recurrent_kernel_init: draws U [hidden, 3 hidden].
          bias_init: draws b [3 hidden].
          dtype: of the matrix products; None is that of inputs and parameters.
          param_dtype: of the parameters and of the initial carry.
          rngs: gives the key stream `params`.

        Raises:
          ValueError: a size is below 1.
        """
        require_options(type(self).__name__, reset_after=reset_after)
        self.reset_after = reset_after
        super().__init__(
            in_features, hidden_features, use_bias=use_bias, kernel_init=kernel_init,
            recurrent_kernel_init=recurrent_kernel_init, bias_init=bias_init, dtype=dtype, param_dtype=param_dtype,
            rngs=rngs,
        )  # fmt: skip

    def _has_recurrent_bias(self) -> bool:
        return self.reset_after

    def __call__(self, carry: Any, inputs: AnyArray) -> tuple[Any, Array]:
        # The carry is h alone, as that of `nnx.GRUCell`.
        (after,), output = super().__call__((carry,), inputs)
        return after, output

    def initialize_carry(self, input_shape: tuple[Any, ...], rngs: Any = None, carry_init: Any = None) -> Any:
        (h,) = super().initialize_carry(input_shape, rngs, carry_init)
        return h

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        if self.reset_after:
            return gru_update(None, carry, projected, recurrent)
        (h,) = carry
        r = sigmoid(projected[0] + recurrent[0])
        z = sigmoid(projected[1] + recurrent[1])
        kernel = self.dense_h.kernel[...][:, 2 * self.hidden_features :].astype(h.dtype)
        n = jnp.tanh(projected[2] + (r * h) @ kernel)
        return (n + z * (h - n),)


class ProjectedLSTMCell(GatedCell):
    """The LSTM with a projected output, LSTMP (Sak, Senior and Beaufays 2014): `torch.nn.LSTM`'s `proj_size`.

        i, f, o = sigmoid(x W + h U + b)   g = tanh(x W + h U + b)   c' = f c + i g   h' = (o tanh(c')) P

    `projection_features` is the size of h. Without it, this is the LSTM without a projection.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import RNN, ProjectedLSTMCell
      >>> cell = ProjectedLSTMCell(28, 32, projection_features=16, rngs=nnx.Rngs(0))
      >>> (c, h), outputs = RNN(cell, return_carry=True)(jnp.ones((5, 10, 28)))
      >>> c.shape, h.shape, outputs.shape
      ((5, 32), (5, 16), (5, 10, 16))
    """

    num_gates, num_cell_states, forget_gate = 4, 1, 1

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        return lstm_update(None, carry, projected, recurrent)


class CoupledLSTMCell(GatedCell):
    """The LSTM whose input gate is 1 - f (CIFG in Greff et al. 2017), with a quarter fewer parameters.

        f, o = sigmoid(x W + h U + b)   g = tanh(x W + h U + b)   c' = f c + (1 - f) g   h' = o tanh(c')

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import RNN, CoupledLSTMCell
      >>> cell = CoupledLSTMCell(28, 32, forget_bias=1.0, rngs=nnx.Rngs(0))
      >>> cell.dense_h.kernel.shape, RNN(cell)(jnp.ones((5, 10, 28))).shape
      ((32, 96), (5, 10, 32))
    """

    num_gates, num_cell_states, forget_gate = 3, 1, 0

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        c, _ = carry
        f, g, o = map(jnp.add, projected, recurrent)
        g = jnp.tanh(g)
        c = g + sigmoid(f) * (c - g)
        return c, sigmoid(o) * jnp.tanh(c)


class PeepholeLSTMCell(GatedCell):
    """The LSTM whose gates read the cell state (Gers and Schmidhuber 2000): TensorFlow 1's `use_peepholes`.

        i, f = sigmoid(x W + h U + p c + b)   c' = f c + i tanh(x W + h U + b)   o = sigmoid(x W + h U + p c' + b)
        h' = o tanh(c')

    Attributes:
      peepholes: p of the gates i, f and o, [3, hidden]; initially zero.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import RNN, PeepholeLSTMCell
      >>> cell = PeepholeLSTMCell(28, 32, forget_bias=1.0, rngs=nnx.Rngs(0))
      >>> cell.peepholes.shape, RNN(cell)(jnp.ones((5, 10, 28))).shape
      ((3, 32), (5, 10, 32))
    """

    num_gates, num_cell_states, forget_gate = 4, 1, 1

    def _add_params(self) -> None:
        self.peepholes = nnx.Param(jnp.zeros((3, self.hidden_features), self.param_dtype))

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        c, _ = carry
        i, f, g, o = map(jnp.add, projected, recurrent)
        peep_i, peep_f, peep_o = self.peepholes[...]
        c = sigmoid(f + peep_f * c) * c + sigmoid(i + peep_i * c) * jnp.tanh(g)
        return c, sigmoid(o + peep_o * c) * jnp.tanh(c)


class LayerNormLSTMCell(GatedCell):
    """The LSTM with layer normalization (Ba, Kiros and Hinton 2016, equations 20 to 22).

        i, f, o = sigmoid(z)   g = tanh(z)   z = LN(x W) + LN(h U) + b   c' = f c + i g   h' = o tanh(LN(c'))

    Attributes:
      norm_i: of the projected inputs x W, over all four gates; a scale [4 hidden] only.
      norm_h: of the recurrent product h U, over all four gates; a scale [4 hidden] only.
      norm_c: of the cell state; scale and bias, [hidden] each.
      bias: b, [4 hidden].

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import RNN, LayerNormLSTMCell
      >>> cell = LayerNormLSTMCell(28, 32, forget_bias=1.0, rngs=nnx.Rngs(0))
      >>> cell.bias.shape, RNN(cell)(jnp.ones((5, 10, 28))).shape
      ((128,), (5, 10, 32))
    """

    num_gates, num_cell_states, forget_gate = 4, 1, 1

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        projection_features: int | None = None,
        kernel_init: Initializer = lecun_normal(),
        recurrent_kernel_init: Initializer = orthogonal,
        bias_init: Initializer = zeros,
        forget_bias: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Draws the parameters. There is no `use_bias`: the bias is added after the normalization.

        Args:
          in_features: features of an input at one time step.
          hidden_features: features of each gate and of the cell state.
          projection_features: if given, the output is h = m P of this size, where m is the last part of what `update`
            returns and P is `dense_p.kernel` (Sak et al. 2014).
          kernel_init: draws the kernels of the inputs [in, num_gates * hidden] and P [hidden, projection].
          recurrent_kernel_init: draws the recurrent kernel [output, num_gates * hidden].
          bias_init: draws the bias [num_gates * hidden].
          forget_bias: added to the initial bias of the forget gates (Jozefowicz et al. 2015 recommend 1).
          dtype: of the matrix products; None is that of inputs and parameters.
          param_dtype: of the parameters and of the initial carry.
          rngs: gives the key stream `params`.

        Raises:
          ValueError: a size is below 1.
        """
        gates = 4 * hidden_features
        self.bias = nnx.Param(bias_init(rngs.params(), (gates,), param_dtype))
        super().__init__(
            in_features, hidden_features, projection_features=projection_features, use_bias=False,
            kernel_init=kernel_init, recurrent_kernel_init=recurrent_kernel_init, forget_bias=forget_bias, dtype=dtype,
            param_dtype=param_dtype, rngs=rngs,
        )  # fmt: skip
        self.norm_i, self.norm_h = (
            nnx.LayerNorm(gates, use_bias=False, param_dtype=param_dtype, rngs=rngs) for _ in range(2)
        )
        self.norm_c = nnx.LayerNorm(hidden_features, param_dtype=param_dtype, rngs=rngs)

    def _gate_bias(self) -> Any:
        return self.bias

    def project(self, inputs: AnyArray) -> Array:
        return self.norm_i(super().project(inputs)) + self.bias[...]

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        c, _ = carry
        i, f, g, o = map(jnp.add, projected, jnp.split(self.norm_h(jnp.concatenate(recurrent, axis=-1)), 4, axis=-1))
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return c, sigmoid(o) * jnp.tanh(self.norm_c(c))


class URLSTMCell(GatedCell):
    """The LSTM with refine gates, UR-LSTM (Gu et al. 2020), for long sequences: its gates still learn near 0 and 1.

        f, r, o = sigmoid(x W + h U + b)   u = tanh(x W + h U + b)
        g = r (1 - (1 - f)^2) + (1 - r) f^2   c' = g c + (1 - g) u   h' = o tanh(c')

    The initial biases are those of the same paper, `uniform_gates`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import RNN, URLSTMCell
      >>> RNN(URLSTMCell(28, 32, rngs=nnx.Rngs(0)))(jnp.ones((5, 10, 28))).shape
      (5, 10, 32)
    """

    num_gates, num_cell_states = 4, 1
    default_bias_init = staticmethod(uniform_gates("fruo"))

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        c, _ = carry
        f, r, u, o = map(jnp.add, projected, recurrent)
        f, u = sigmoid(f), jnp.tanh(u)
        kept = f * (f + 2 * sigmoid(r) * (1 - f))
        c = u + kept * (c - u)
        return c, sigmoid(o) * jnp.tanh(c)


def explained_update(cell: GatedCell, carry: Any, projected: Gates, recurrent: Gates) -> Any:
    """`cell.update`. Where it expects tuples of other lengths, the error names the attributes that decide."""
    try:
        return cell.update(carry, projected, recurrent)
    except (IndexError, ValueError) as error:
        if not re.search("unpack|tuple index", str(error)):
            raise
        raise ValueError(
            f"{type(cell).__name__}.update failed: {error}. With num_gates = {cell.num_gates}, projected and recurrent "
            f"have {len(projected)} parts each; with num_cell_states = {cell.num_cell_states}, the carry has "
            f"{len(carry)}, the last of which is h."
        ) from error


def is_plain(layer: Any) -> bool:
    """Whether a dense layer is a plain matrix product: not if it was replaced, as LoRA does."""
    return (
        type(layer) is nnx.Linear
        and layer.promote_dtype is promote_dtype
        and layer.dot_general is jax.lax.dot_general
        and layer.precision is None
        and layer.preferred_element_type is None
    )


def gru_update(params: Any, carry: Any, projected: Gates, recurrent: Gates) -> tuple[Array]:
    """(h,) after a step of the GRU whose reset gate multiplies the product; it has no params of `gated`."""
    (h,) = carry
    r = sigmoid(projected[0] + recurrent[0])
    z = sigmoid(projected[1] + recurrent[1])
    n = jnp.tanh(projected[2] + r * recurrent[2])
    return (n + z * (h - n),)


def lstm_update(params: Any, carry: Any, projected: Gates, recurrent: Gates) -> tuple[Array, Array]:
    """(c, h) after a step of the plain LSTM; it has no params of `gated`."""
    c, _ = carry
    i, f, g, o = map(jnp.add, projected, recurrent)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return c, sigmoid(o) * jnp.tanh(c)


def sigmoid(z: Array) -> Array:
    """Computed with tanh, which on a CPU is several times faster than XLA's own sigmoid."""
    return 0.5 + 0.5 * jnp.tanh(0.5 * z)
