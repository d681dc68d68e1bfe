"""Recurrent cells that Flax has not, and the base class of your own: `GatedCell`.

A gated cell says in `update` what one time step does with its gates, and nothing else: how its inputs are projected
all at once, stacked, read in both directions, masked, and differentiated is not its business. See docs/custom_cell.md.
Knows Flax's modules; knows nothing of loops.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.nn.initializers import Initializer, lecun_normal, zeros
from jax.typing import DTypeLike

from lstm_mnist_jax.rnn.gated import Gates
from lstm_mnist_jax.rnn.initializers import uniform_gates
from lstm_mnist_jax.rnn.recurrence import AnyArray


def orthogonal(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
    """JAX's initialiser of this name, in every dtype: it has none below float32, in which it factorises a matrix."""
    drawn = initializers.orthogonal()(key, shape, jnp.promote_types(dtype, jnp.float32), out_sharding=out_sharding)
    return drawn.astype(dtype)


class GatedCell(nnx.RNNCellBase):
    """A cell whose inputs and last output each enter its gates through one matrix.

        projected = project(x_t)    recurrent = h_{t-1} U    carry_t = update(carry_{t-1}, projected, recurrent)

    The last part of the carry is h, the output; the parts before it are memory, such as the c of an LSTM. A subclass
    sets `num_gates` and `num_memories` and writes `update`. It works wherever an `nnx.RNNCellBase` does, and `RNN`
    runs it quickly if `update` reads no state but `nnx.Param`s of floats, and none of the dense layers below.

    Attributes:
      num_gates: blocks of [hidden] that the matrices put out.
      num_memories: parts of the carry before h, each [hidden].
      dense_i: x to gates, a kernel [in, num_gates * hidden] and a bias.
      dense_h: h to gates, a kernel [hidden, num_gates * hidden] without a bias.
    """

    num_gates: int = 4
    num_memories: int = 1

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        projection_features: int | None = None,
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
          in_features: size of an input at one time step.
          hidden_features: size of a gate and of the memory.
          projection_features: where given, the output is h = m P, of this size, with m the last part of what `update`
            returns (Sak et al. 2014); P is `dense_p.kernel`.
          use_bias: whether `dense_i` has a bias.
          kernel_init, recurrent_kernel_init, bias_init: initialisers, by default those of Flax's cells.
          dtype: in which products are computed; None is that of inputs and parameters.
          param_dtype: dtype of the parameters and of the zero carries.
          rngs: gives the key stream `params`.

        Raises:
          ValueError: a size below 1.
        """
        self.in_features, self.hidden_features = in_features, hidden_features
        self.output_features = hidden_features if projection_features is None else projection_features
        if min(in_features, hidden_features, self.output_features) < 1:
            raise ValueError(
                f"{type(self).__name__} needs sizes of 1 or more; got in_features={in_features}, "
                f"hidden_features={hidden_features}, projection_features={projection_features}."
            )
        self.dtype, self.param_dtype = dtype, param_dtype
        dtypes: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        gates = self.num_gates * hidden_features
        self.dense_i = nnx.Linear(
            in_features, gates, use_bias=use_bias, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs, **dtypes
        )
        self.dense_h = nnx.Linear(
            self.output_features, gates, use_bias=False, kernel_init=recurrent_kernel_init, rngs=rngs, **dtypes
        )
        if projection_features is not None:
            self.dense_p = nnx.Linear(
                hidden_features, projection_features, use_bias=False, kernel_init=kernel_init, rngs=rngs, **dtypes
            )

    def project(self, inputs: AnyArray) -> Array:
        """What inputs [..., in] contribute to the gates, [..., num_gates * hidden]; any number of steps at once."""
        return self.dense_i(jnp.asarray(inputs))

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        """One time step: a tuple of the new memories [batch, hidden] and, last, the new output [batch, hidden].

        Args:
          carry: the tuple of the step before.
          projected, recurrent: what the input and what h contribute to each gate: tuples of [batch, hidden].
        """
        raise NotImplementedError(f"{type(self).__name__} has to define update(carry, projected, recurrent).")

    def __call__(self, carry: Any, inputs: AnyArray) -> tuple[Any, Array]:
        """One time step on its own: (carry, inputs [*batch, in]) to (carry, output [*batch, output])."""
        gates = self.project(inputs), self.dense_h(carry[-1])
        after = self.update(tuple(carry), *(tuple(jnp.split(part, self.num_gates, axis=-1)) for part in gates))
        if hasattr(self, "dense_p"):
            after = (*after[:-1], self.dense_p(after[-1]))
        return tuple(new.astype(old.dtype) for new, old in zip(after, carry, strict=True)), after[-1]

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> Any:
        """The carry before the first step, for inputs [*batch, in]: zeros, unless `carry_init` draws it.

        Args:
          input_shape: shape of the inputs of one step.
          rngs: for `carry_init`.
          carry_init: draws each part, (key, shape, dtype) to array.
        """
        widths = [*[self.hidden_features] * self.num_memories, self.output_features]
        shapes = [(*input_shape[:-1], width) for width in widths]
        if carry_init is None:
            return tuple(jnp.zeros(shape, self.param_dtype) for shape in shapes)
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        return tuple(carry_init(stream(), shape, self.param_dtype) for shape in shapes)

    @property
    def num_feature_axes(self) -> int:
        return 1


class _LSTMCell(GatedCell):
    """What the variants of the LSTM share: gates i, f, g, o, a memory c, and an initial bias of the forget gate."""

    forget_gate: int = 1

    def __init__(self, *args: Any, forget_bias: float = 0.0, **options: Any) -> None:
        """As `GatedCell`, and `forget_bias` is added to the initial bias of the forget gates.

        Raises:
          ValueError: see `GatedCell`; or there is a forget bias and no bias to add it to.
        """
        super().__init__(*args, **options)
        bias: Any = self._gate_bias()
        if bias is not None:
            start = self.forget_gate * self.hidden_features
            bias[...] = bias[...].at[start : start + self.hidden_features].add(forget_bias)
        elif forget_bias != 0:
            raise ValueError(f"{type(self).__name__} adds forget_bias={forget_bias} to a bias, but use_bias is False.")

    def _gate_bias(self) -> Any:
        return self.dense_i.bias


class ProjectedLSTMCell(_LSTMCell):
    """The LSTM with a projected output, LSTMP (Sak, Senior and Beaufays 2014): `torch.nn.LSTM`'s `proj_size`.

        i, f, o = sigmoid(x W + h U + b)   g = tanh(x W + h U + b)   c' = f c + i g   h' = (o tanh(c')) P

    `projection_features` is the size of h; without it, this is the plain LSTM.
    """

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        return lstm_update(carry, projected, recurrent)


class CoupledLSTMCell(_LSTMCell):
    """The LSTM whose input gate is 1 - f (CIFG in Greff et al. 2017), with a quarter fewer parameters.

    f, o = sigmoid(x W + h U + b)   g = tanh(x W + h U + b)   c' = f c + (1 - f) g   h' = o tanh(c')
    """

    num_gates = 3
    forget_gate = 0

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        c, _ = carry
        f, g, o = map(jnp.add, projected, recurrent)
        g = jnp.tanh(g)
        c = g + sigmoid(f) * (c - g)
        return c, sigmoid(o) * jnp.tanh(c)


class PeepholeLSTMCell(_LSTMCell):
    """The LSTM whose gates see the memory (Gers and Schmidhuber 2000): TensorFlow 1's `use_peepholes`.

        i, f = sigmoid(x W + h U + p c + b)   c' = f c + i tanh(x W + h U + b)   o = sigmoid(x W + h U + p c' + b)

    Attributes:
      peepholes: p of the gates i, f and o, [3, hidden]; zero at first.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """As `GatedCell`, with `forget_bias`."""
        super().__init__(*args, **options)
        self.peepholes = nnx.Param(jnp.zeros((3, self.hidden_features), self.param_dtype))

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        c, _ = carry
        i, f, g, o = map(jnp.add, projected, recurrent)
        peep_i, peep_f, peep_o = self.peepholes[...]
        c = sigmoid(f + peep_f * c) * c + sigmoid(i + peep_i * c) * jnp.tanh(g)
        return c, sigmoid(o + peep_o * c) * jnp.tanh(c)


class LayerNormLSTMCell(_LSTMCell):
    """The LSTM with layer normalisation (Ba, Kiros and Hinton 2016, equations 20 to 22).

        i, f, o = sigmoid(z)   g = tanh(z)   z = LN(x W) + LN(h U) + b   c' = f c + i g   h' = o tanh(LN(c'))

    Attributes:
      norm_i, norm_h: of the projected inputs and of the recurrent product, over all four gates; scales only.
      norm_c: of the memory, with scale and bias.
      bias: b.
    """

    def __init__(self, in_features: int, hidden_features: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        """As `GatedCell`, with `forget_bias` and without `use_bias`: there always is one.

        Raises:
          ValueError: see `GatedCell`; or `use_bias` was given.
        """
        if "use_bias" in options:
            raise ValueError("LayerNormLSTMCell has no use_bias: its bias stands after the normalisation, always.")
        param_dtype = options.get("param_dtype", jnp.float32)
        bias_init = options.pop("bias_init", zeros)
        gates = 4 * hidden_features
        self.bias = nnx.Param(bias_init(rngs.params(), (gates,), param_dtype))
        super().__init__(in_features, hidden_features, use_bias=False, rngs=rngs, **options)
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
    """The LSTM with refine gates, UR-LSTM (Gu et al. 2020): for long sequences, as its gates still learn near 0 and 1.

        f, r, o = sigmoid(x W + h U + b)   u = tanh(x W + h U + b)
        g = r (1 - (1 - f)^2) + (1 - r) f^2   c' = g c + (1 - g) u   h' = o tanh(c')

    Its biases are initialised by `uniform_gates`, from the same paper, unless told otherwise.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """As `GatedCell`."""
        super().__init__(*args, **({"bias_init": uniform_gates("fruo")} | options))

    def update(self, carry: Any, projected: Gates, recurrent: Gates) -> Any:
        c, _ = carry
        f, r, u, o = map(jnp.add, projected, recurrent)
        f, u = sigmoid(f), jnp.tanh(u)
        kept = f * (f + 2 * sigmoid(r) * (1 - f))
        c = u + kept * (c - u)
        return c, sigmoid(o) * jnp.tanh(c)


def lstm_update(carry: Any, projected: Gates, recurrent: Gates) -> tuple[Array, Array]:
    """(c, h) after a step of the plain LSTM."""
    c, _ = carry
    i, f, g, o = map(jnp.add, projected, recurrent)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return c, sigmoid(o) * jnp.tanh(c)


def sigmoid(z: Array) -> Array:
    """By way of tanh, which XLA computes on a CPU several times as quickly as its own sigmoid."""
    return 0.5 + 0.5 * jnp.tanh(0.5 * z)
