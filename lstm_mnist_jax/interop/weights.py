"""The weights of the classifier as plain arrays, layer by layer: what all formats are translated into and out of.

Everything here is NumPy. A format only says which of its arrays is which, and in which order it keeps the gates.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.model import Params

if TYPE_CHECKING:
    import optax

MOST_LISTED = 40

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
        """The model's parameters."""
        return to_params(self.weights)

    @property
    def adam_state(self) -> "optax.ScaleByAdamState | None":
        """The state of Adam as optax has it."""
        from optax import ScaleByAdamState

        if self.adam is None:
            return None
        steps, mu, nu = self.adam
        return ScaleByAdamState(np.int32(steps), to_params(mu), to_params(nu))

    def describe(self) -> list[str]:
        """What was found, in lines for people."""
        widths = (self.weights.in_features, *self.weights.hidden_features)
        pairs = zip(self.names, widths, widths[1:], strict=False)
        return [
            *(f"LSTM {width_in} -> {width}: {name}" for name, width_in, width in pairs),
            f"output {widths[-1]} -> {self.weights.num_classes} classes: {self.names[-1]}",
            "no state of Adam in it: Adam starts afresh"
            if self.adam is None
            else f"the state of Adam after {self.adam.steps:,} steps",
        ]


def from_params(params: Params) -> Weights:
    """The weights in the model's nested dictionary."""
    cells = [params["lstm"]["layers"][number]["cell"] for number in sorted(params["lstm"]["layers"])]
    return Weights(
        tuple(
            Layer(*map(_numpy, (c["dense_i"]["kernel"], c["dense_h"]["kernel"], c["dense_h"]["bias"]))) for c in cells
        ),
        _numpy(params["dense"]["kernel"]),
        _numpy(params["dense"]["bias"]),
    )


def to_params(weights: Weights) -> Params:
    """The model's nested dictionary of these weights, in float32."""
    layers = {
        number: {"cell": {"dense_i": {"kernel": kernel}, "dense_h": {"kernel": recurrent_kernel, "bias": bias}}}
        for number, (kernel, recurrent_kernel, bias) in enumerate(weights.layers)
    }
    dense = {"kernel": weights.dense_kernel, "bias": weights.dense_bias}
    return _map(lambda array: np.ascontiguousarray(array, np.float32), {"lstm": {"layers": layers}, "dense": dense})


def reorder_gates(array: np.ndarray, order: str, new_order: str) -> np.ndarray:
    """Columns [..., 4 hidden] whose gates are in one order, in another; both permutations of "ifgo"."""
    gates = dict(zip(order, np.split(array, 4, axis=-1), strict=True))
    return np.concatenate([gates[gate] for gate in new_order], axis=-1)


def check(imported: Imported, found: Arrays) -> Imported:
    """What was put together, if it makes a stack: each layer takes what the one before gives.

    Args:
      imported: what was put together.
      found: everything in the file, for the error.

    Raises:
      WeightsError: the shapes do not fit together, or a value is not a finite number.
    """
    weights, names = imported.weights, imported.names
    width = None
    for name, (kernel, recurrent_kernel, bias) in zip(names, weights.layers, strict=False):
        hidden = len(recurrent_kernel)
        if recurrent_kernel.shape != (hidden, 4 * hidden) or kernel.shape[1:] != bias.shape != (4 * hidden,):
            raise WeightsError(
                f"The LSTM layer {name} does not fit together: weights {list(kernel.shape)} for its inputs, "
                f"{list(recurrent_kernel.shape)} for its state, biases {list(bias.shape)}. {listing(found)}"
            )
        if width not in (None, len(kernel)):
            raise WeightsError(
                f"The LSTM layer {name} takes {len(kernel)} features, but the layer before gives {width}. The "
                f"layers were read in the order {', '.join(names[:-1])}. {listing(found)}"
            )
        width = hidden
    if weights.dense_kernel.shape != (width, *weights.dense_bias.shape):
        raise WeightsError(
            f"The output layer {names[-1]} has weights {list(weights.dense_kernel.shape)} and biases "
            f"{list(weights.dense_bias.shape)}, but the last LSTM layer gives {width} features. {listing(found)}"
        )
    for name, arrays in zip(names, [*weights.layers, weights[1:]], strict=True):
        if not all(np.isfinite(array).all() for array in arrays):
            raise WeightsError(f"The layer {name} holds values that are not finite numbers; it cannot be of use.")
    return imported


def output_layer(rest: Arrays, found: Arrays) -> tuple[str, str]:
    """The names of the output layer's weights and biases: the one matrix and the one vector that no LSTM layer has.

    Raises:
      WeightsError: there is no such pair, or more than it.
    """
    matrices = [name for name, array in rest.items() if len(array.shape) == 2]
    vectors = [name for name, array in rest.items() if len(array.shape) == 1]
    if len(matrices) == len(vectors) == 1 and len(rest) == 2:
        return matrices[0], vectors[0]
    if not matrices or not vectors:
        raise WeightsError(
            f"The output layer is missing: expected a matrix and a vector besides the LSTM layers, there are "
            f"{', '.join(rest) or 'none'}. {listing(found)}"
        )
    raise WeightsError(
        "Expected LSTM layers and one output layer, a matrix and a vector, but there is more besides the LSTM layers: "
        f"{', '.join(rest)}. If the model does without some of these, leave them out with --ignore NAME. "
        f"{listing(found)}"
    )


def assemble(
    layers: Iterable[Layer], names: Iterable[str], rest: Arrays, found: Arrays, transposed: bool = False
) -> Imported:
    """The classifier of these LSTM layers and of the output layer in what is left.

    Args:
      layers, names: the LSTM layers, and what they are called in the file.
      rest: all but their arrays.
      found: everything in the file, for errors.
      transposed: whether the output layer's weights are [classes, hidden].

    Raises:
      WeightsError: there is no output layer, or the layers do not fit together.
    """
    kernel, bias = output_layer(rest, found)
    dense = np.asarray(rest[kernel])
    name = re.sub(r"[/.](kernel|weight|vars/0)$", "", kernel)
    weights = Weights(tuple(layers), dense.T if transposed else dense, np.asarray(rest[bias]))
    return check(Imported(weights, (*names, name)), found)


def ignoring(found: Arrays, patterns: Iterable[str]) -> dict[str, Any]:
    """The arrays whose names match none of these patterns, in which * stands for anything.

    Raises:
      WeightsError: a pattern matches nothing.
    """
    for pattern in patterns:
        kept = {name: array for name, array in found.items() if not fnmatchcase(name, pattern)}
        if len(kept) == len(found):
            raise WeightsError(f"Nothing is called {pattern!r}, so it cannot be ignored. {listing(found)}")
        found = kept
    return dict(found)


def listing(found: Arrays) -> str:
    """What a file holds, as a sentence."""
    if not found:
        return "The file holds no arrays."
    items = [f"{name} {list(array.shape)}" for name, array in found.items()]
    more = f" and {len(items) - MOST_LISTED} more, which --list shows" if len(items) > MOST_LISTED else ""
    return f"Found: {', '.join(items[:MOST_LISTED])}{more}."


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which to sort names so that cell_10 comes after cell_9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _numpy(array: Any) -> np.ndarray:
    return np.asarray(array)


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map(function, branch) for name, branch in tree.items()}
    return function(tree)
