"""The weights of the classifier as NumPy arrays, layer by layer: the common form of all formats, from and to params."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import optax

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.model import Params

GATES = {"lstm": "ifgo", "gru": "rzn"}
"""The order of the gates here, by cell: input, forget, candidate (also called j or c), output; reset, update, candidate
(also called h)."""


class Direction(NamedTuple):
    """The cell of a layer in one direction. The columns are the gates in the order of `GATES`.

    Attributes:
      kernel: [in, gates * hidden], of the inputs.
      recurrent_kernel: [hidden, gates * hidden], of the hidden state.
      bias: [gates * hidden].
      recurrent_bias: [3 hidden], of a GRU alone: the bias within its recurrent product, of which the reset gate
        multiplies the candidate's third. None is zero.
    """

    kernel: np.ndarray
    recurrent_kernel: np.ndarray
    bias: np.ndarray
    recurrent_bias: np.ndarray | None = None

    @property
    def cell(self) -> str:
        """lstm or gru, by the number of columns."""
        hidden, columns = self.recurrent_kernel.shape
        return "lstm" if columns == 4 * hidden else "gru"


class Layer(NamedTuple):
    """A recurrent layer.

    Attributes:
      forward: the cell that reads from the first step to the last.
      backward: the one that reads from the last step to the first; None in layers of one direction. Its outputs follow
        those of `forward`, as features.
    """

    forward: Direction
    backward: Direction | None = None

    @property
    def directions(self) -> tuple[Direction, ...]:
        return (self.forward,) if self.backward is None else (self.forward, self.backward)

    @property
    def in_features(self) -> int:
        return self.forward.kernel.shape[0]

    @property
    def hidden(self) -> int:
        return self.forward.recurrent_kernel.shape[0]

    @property
    def out_features(self) -> int:
        return self.hidden * len(self.directions)


class Dense(NamedTuple):
    """A dense layer.

    Attributes:
      kernel: [in, out].
      bias: [out].
    """

    kernel: np.ndarray
    bias: np.ndarray


Kernel = TypeVar("Kernel", Direction, Dense)


class Weights(NamedTuple):
    """All weights of the classifier.

    Attributes:
      layers: the recurrent layers, from the input to the output: all of one cell, and in one direction or both.
      dense: the dense layers, the output layer last. The first takes the pooled outputs [features], or the outputs of
        all steps [steps * features].
      attention: of attention pooling, [features, 1]; None is another pooling.
    """

    layers: tuple[Layer, ...]
    dense: tuple[Dense, ...]
    attention: np.ndarray | None = None

    @property
    def cell(self) -> str:
        """lstm or gru."""
        return self.layers[0].forward.cell

    @property
    def steps(self) -> int | None:
        """The number of steps whose outputs the dense layers take; None where they take pooled outputs."""
        steps = len(self.dense[0].kernel) // self.layers[-1].out_features
        return steps if steps > 1 else None

    @property
    def in_features(self) -> int:
        return self.layers[0].in_features

    @property
    def hidden_features(self) -> tuple[int, ...]:
        return tuple(layer.hidden for layer in self.layers)

    @property
    def num_classes(self) -> int:
        return self.dense[-1].bias.shape[0]

    @property
    def config(self) -> ModelConfig:
        """The network, as far as shapes show it: recurrent layers over the rows of an image, then dense layers."""
        pooling = "last" if self.steps is None else "all"
        return ModelConfig(
            cell=self.cell,  # type: ignore[arg-type]
            recurrent_bias=self.layers[0].forward.recurrent_bias is not None,
            hidden_features=self.hidden_features,
            bidirectional=self.layers[0].backward is not None,
            pooling=pooling if self.attention is None else "attention",  # type: ignore[arg-type]
            dense_features=tuple(len(layer.bias) for layer in self.dense[:-1]),
        )


class Adam(NamedTuple):
    """The state of Adam.

    Attributes:
      steps: the number of steps it has made.
      mu: the first moment, in the arrangement of the weights.
      nu: the second moment, in the arrangement of the weights.
    """

    steps: int
    mu: Weights
    nu: Weights

    @staticmethod
    def from_optax(opt_state: Any) -> "Adam":
        """From the state of an optimizer of optax that contains Adam."""
        count, mu, nu = (optax.tree.get(opt_state, name) for name in ("count", "mu", "nu"))
        return Adam(int(count), from_params(mu), from_params(nu))

    def to_optax(self) -> Any:
        """As `optax.ScaleByAdamState`."""
        return optax.ScaleByAdamState(np.int32(self.steps), to_params(self.mu), to_params(self.nu))


def from_params(params: Params) -> Weights:
    """The weights in the model's parameters. Raises WeightsError where these are of another network."""
    params = jax.tree.map(np.asarray, params)
    modules = [params["rnn"]["layers"][number] for number in sorted(params["rnn"]["layers"])]
    layers = [[_direction(cell) for cell in cells_of(module)] for module in modules]
    if not all(all(layer) for layer in layers) or params.keys() - {"rnn", "dense", "dense_hidden", "attention"}:
        raise WeightsError(
            "The parameters are not those of LSTM or GRU layers, then dense layers, but of other cells. Give the "
            "config of the network to what can hold it: interop.export.to_stablehlo, or `lstm-mnist export "
            "huggingface`."
        )
    hidden = params.get("dense_hidden", {})
    dense = [*(hidden[number] for number in sorted(hidden)), params["dense"]]
    attention = params.get("attention", {}).get("kernel")
    return Weights(
        tuple(Layer(*layer) for layer in layers),  # type: ignore[arg-type]
        tuple(Dense(layer["kernel"], layer["bias"]) for layer in dense),
        attention,
    )


def cells_of(module: Any) -> list[Any]:
    """The cells in the parameters of a layer, the forward one first."""
    return [module[name]["cell"] for name in ("forward_rnn", "backward_rnn") if name in module] or [
        module.get("cell", {})
    ]


def _direction(cell: Any) -> Direction | None:
    """The weights in the parameters of a cell; None where it is neither an LSTM nor a GRU."""
    names = {f"{name}.{part}" for name, parts in cell.items() for part in (parts if isinstance(parts, dict) else [""])}
    if not {"dense_i.kernel", "dense_h.kernel"} <= names:
        return None
    inputs, state = cell["dense_i"], cell["dense_h"]
    hidden, columns = state["kernel"].shape
    rest = names - {"dense_i.kernel", "dense_h.kernel"}
    if columns == 4 * hidden and rest == {"dense_h.bias"}:  # a UR-LSTM has its bias in dense_i
        return Direction(inputs["kernel"], state["kernel"], state["bias"])
    if columns == 3 * hidden and rest - {"dense_h.bias"} == {"dense_i.bias"}:
        return Direction(inputs["kernel"], state["kernel"], inputs["bias"], state.get("bias"))
    return None


def to_params(weights: Weights) -> Params:
    """The model's parameters with these weights, in float32."""

    def cell(direction: Direction) -> Any:
        inputs, state = {"kernel": direction.kernel}, {"kernel": direction.recurrent_kernel}
        (state if direction.cell == "lstm" else inputs)["bias"] = direction.bias
        if direction.recurrent_bias is not None:
            state["bias"] = direction.recurrent_bias
        return {"cell": {"dense_i": inputs, "dense_h": state}}

    layers = {
        number: cell(layer.forward)
        if layer.backward is None
        else {"forward_rnn": cell(layer.forward), "backward_rnn": cell(layer.backward)}
        for number, layer in enumerate(weights.layers)
    }
    *hidden, dense = [layer._asdict() for layer in weights.dense]
    params: Params = {"rnn": {"layers": layers}, "dense": dense}
    if hidden:
        params["dense_hidden"] = dict(enumerate(hidden))
    if weights.attention is not None:
        params["attention"] = {"kernel": weights.attention}
    return jax.tree.map(lambda array: np.ascontiguousarray(array, np.float32), params)


def direction(
    name: str,
    kernel: np.ndarray,
    recurrent_kernel: np.ndarray,
    bias: np.ndarray | None = None,
    recurrent_bias: np.ndarray | None = None,
) -> Direction:
    """A cell from the arrays of a format, in the order of `GATES`, in float32.

    A bias that is missing is zero. The two biases of an LSTM are added.

    Raises:
      WeightsError: there are two biases of different shapes.
    """
    biases = [array for array in (bias, recurrent_bias) if array is not None]
    if len(biases) == 2 and biases[0].shape != biases[1].shape:
        raise WeightsError(
            f"The arrays of the layer {name} do not fit together: weights {list(kernel.shape)} and "
            f"{list(recurrent_kernel.shape)}, biases {list(biases[0].shape)} and {list(biases[1].shape)}."
        )
    if not biases:
        biases = [np.zeros(kernel.shape[-1:], np.float32)]
    is_gru = recurrent_kernel.ndim == 2 and recurrent_kernel.shape[1] == 3 * len(recurrent_kernel)
    if len(biases) == 2 and not is_gru:
        with np.errstate(over="ignore", invalid="ignore"):
            biases = [biases[0] + biases[1]] if biases[1].any() else biases[:1]  # so that the bits of a bias stay
    return Direction(*map(float32, (kernel, recurrent_kernel, *biases)))


def with_recurrent_biases(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Layers that all have recurrent biases, or none where those of all candidates are zero."""
    found = [direction.recurrent_bias for layer in layers for direction in layer.directions]
    needed = any(bias is not None and bias[2 * len(bias) // 3 :].any() for bias in found)

    def settled(direction: Direction) -> Direction:
        bias, recurrent_bias = direction.bias, direction.recurrent_bias
        if needed:
            return direction._replace(recurrent_bias=np.zeros_like(bias) if recurrent_bias is None else recurrent_bias)
        with np.errstate(over="ignore", invalid="ignore"):
            total = bias + recurrent_bias if recurrent_bias is not None and recurrent_bias.any() else bias
        return direction._replace(bias=total, recurrent_bias=None)

    return tuple(Layer(*map(settled, layer.directions)) for layer in layers)


def folded(layer: Layer, gain: Any, shift: Any) -> Layer:
    """A layer that takes x as the given one takes gain * x + shift, or x @ gain + shift: see `folded_cell`."""
    return Layer(*(folded_cell(direction, gain, shift) for direction in layer.directions))


def folded_cell(cell: Kernel, gain: Any, shift: Any) -> Kernel:
    """A cell or a dense layer that takes x as the given one takes gain * x + shift; computed in float64.

    Args:
      cell: has a kernel [features, out] and a bias [out].
      gain: a number, [features], or [features of x, features], which x is multiplied with as a matrix.
      shift: a number, or [features].
    """
    kernel = cell.kernel.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        bias = cell.bias + np.broadcast_to(shift, len(kernel)) @ kernel
        kernel = gain @ kernel if np.ndim(gain) == 2 else np.reshape(gain, (-1, 1)) * kernel
    return cell._replace(kernel=float32(kernel), bias=float32(bias))


def product(layers: Sequence[Dense]) -> tuple[np.ndarray, np.ndarray]:
    """The matrix and the vector, in float64, of dense layers one after another without activations."""
    matrix, vector = (array.astype(np.float64) for array in layers[0])
    for kernel, bias in layers[1:]:
        matrix, vector = matrix @ kernel.astype(np.float64), vector @ kernel.astype(np.float64) + bias
    return matrix, vector


def pooling_of(weights: Weights, config: ModelConfig) -> str:
    """The pooling of a network with these weights, of which the config says what shapes do not show.

    Raises:
      WeightsError: the shapes are of another pooling than that of the config.
    """
    shown = weights.config.pooling
    fits = config.pooling not in ("all", "attention") if shown == "last" else config.pooling in ("last", shown)
    if not fits:
        raise WeightsError(
            f"The config has the pooling {config.pooling}, but the weights are those of a network with the pooling "
            f"{shown}."
        )
    return config.pooling if shown == "last" else shown


def float32(array: Any) -> np.ndarray:
    """In float32; numbers beyond its range become infinite, which is refused later."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.asarray(array), np.float32, order="C")
