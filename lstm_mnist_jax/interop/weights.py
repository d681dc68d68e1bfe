"""The weights of the classifier as plain arrays, layer by layer: what all formats are translated into and out of.

All arrays are NumPy's. A format only says which of its arrays is which, and in which order it keeps the gates.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.model import Params

GATES = "ifgo"
"""The order of the gates here: input, forget, candidate (also called j or c), output."""

Arrays = Mapping[str, Any]
"""Arrays by name, as a file of weights holds them: anything with a `shape` that `numpy.asarray` takes."""


class Layer(NamedTuple):
    """An LSTM layer; the 4 hidden columns are the gates i, f, g, o.

    Attributes:
      kernel: [in, 4 hidden], of the inputs.
      recurrent_kernel: [hidden, 4 hidden], of the hidden state.
      bias: [4 hidden].
    """

    kernel: np.ndarray
    recurrent_kernel: np.ndarray
    bias: np.ndarray


class Weights(NamedTuple):
    """All weights of the classifier.

    Attributes:
      layers: from the input to the output.
      dense_kernel: [hidden of the last layer, classes].
      dense_bias: [classes].
    """

    layers: tuple[Layer, ...]
    dense_kernel: np.ndarray
    dense_bias: np.ndarray

    @property
    def in_features(self) -> int:
        return self.layers[0].kernel.shape[0]

    @property
    def hidden_features(self) -> tuple[int, ...]:
        return tuple(layer.recurrent_kernel.shape[0] for layer in self.layers)

    @property
    def num_classes(self) -> int:
        return self.dense_bias.shape[0]


class Adam(NamedTuple):
    """The state of Adam.

    Attributes:
      steps: how many it has made.
      mu, nu: the running means of the gradient and of its square, arranged as the weights are.
    """

    steps: int
    mu: Weights
    nu: Weights

    @staticmethod
    def from_optax(opt_state: Any) -> "Adam":
        """The state of Adam within a state of optax's."""
        import optax

        count, mu, nu = (optax.tree.get(opt_state, name) for name in ("count", "mu", "nu"))
        return Adam(int(count), from_params(mu), from_params(nu))

    def to_optax(self) -> Any:
        """The state of Adam as `optax.ScaleByAdamState`."""
        import optax

        return optax.ScaleByAdamState(np.int32(self.steps), to_params(self.mu), to_params(self.nu))


class Imported(NamedTuple):
    """What was found in a file.

    Attributes:
      weights: the weights.
      names: what each LSTM layer, and at the end the output layer, is called in the file.
      adam: the state of Adam, if the file has it.
      step: how many steps the weights were trained for; 0 where the file does not tell.
    """

    weights: Weights
    names: tuple[str, ...]
    adam: Adam | None = None
    step: int = 0

    @property
    def params(self) -> Params:
        """The model's parameters, for `lstm_mnist_jax.model.apply`."""
        return to_params(self.weights)

    @property
    def config(self) -> ModelConfig:
        """The network that they belong to: LSTM layers of these widths over the rows of an image."""
        return ModelConfig(hidden_features=self.weights.hidden_features)

    def describe(self) -> list[str]:
        """What was found, in lines for people."""
        widths = (self.weights.in_features, *self.weights.hidden_features)
        pairs = zip(self.names, widths, widths[1:], strict=False)
        return [
            *(f"LSTM {width_in} -> {width}: {name}" for name, width_in, width in pairs),
            f"output {widths[-1]} -> {self.weights.num_classes} classes: {self.names[-1]}",
            "no state of an optimizer is taken: Adam starts afresh"
            if self.adam is None
            else f"the state of Adam after {_steps(self.adam.steps)}",
            f"trained for {_steps(self.step)}" if self.step else "for how many steps it was trained is not known",
        ]


def _steps(number: int) -> str:
    return f"{number:,} step{'s' * (number != 1)}"


def from_params(params: Params) -> Weights:
    """The weights in the model's nested dictionary."""
    cells = [params["rnn"]["layers"][number]["cell"] for number in sorted(params["rnn"]["layers"])]
    return Weights(
        tuple(
            Layer(*map(np.asarray, (c["dense_i"]["kernel"], c["dense_h"]["kernel"], c["dense_h"]["bias"])))
            for c in cells
        ),
        np.asarray(params["dense"]["kernel"]),
        np.asarray(params["dense"]["bias"]),
    )


def to_params(weights: Weights) -> Params:
    """The model's nested dictionary of these weights, in float32."""
    layers = {
        number: {"cell": {"dense_i": {"kernel": kernel}, "dense_h": {"kernel": recurrent_kernel, "bias": bias}}}
        for number, (kernel, recurrent_kernel, bias) in enumerate(weights.layers)
    }
    dense = {"kernel": weights.dense_kernel, "bias": weights.dense_bias}
    params = {"rnn": {"layers": layers}, "dense": dense}
    return jax.tree.map(lambda array: np.ascontiguousarray(array, np.float32), params)


def reorder_gates(array: np.ndarray, order: str, new_order: str) -> np.ndarray:
    """Columns [..., 4 hidden] whose gates are in one order, in another; both permutations of "ifgo"."""
    gates = dict(zip(order, np.split(array, 4, axis=-1), strict=True))
    return np.concatenate([gates[gate] for gate in new_order], axis=-1)
