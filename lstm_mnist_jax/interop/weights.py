"""The weights of the classifier as NumPy arrays, layer by layer: the common form of all formats.

A format has the names of its arrays and its order of the gates. From these, `assemble` makes the classifier: it finds
the order of the layers and the output layer, and checks that the shapes fit together.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.model import Params

MAX_LISTED = 40
"""The most names in an error."""

MAX_NAME = 1000
"""The longest name of an array."""

MAX_PERMUTED = 7
"""The most layers whose order is searched by their widths."""

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


class Imported(NamedTuple):
    """The classifier in a file.

    Attributes:
      weights: the weights.
      names: the names in the file of the LSTM layers, and of the output layer.
      adam: the state of Adam, if the file has it.
      step: the number of training steps; 0 where it is not known.
      notes: what was assumed, and what the file has that was not imported, each as a line of text.
      forget_bias: what the cells of the other program add to their forget gates.
      image_rows: the number of rows (time steps) of an image; None where it is not known.
    """

    weights: Weights
    names: tuple[str, ...]
    adam: Adam | None = None
    step: int = 0
    notes: tuple[str, ...] = ()
    forget_bias: float = ModelConfig.forget_bias
    image_rows: int | None = None

    @property
    def params(self) -> Params:
        """The model's parameters, for `lstm_mnist_jax.model.apply`."""
        return to_params(self.weights)

    @property
    def config(self) -> ModelConfig:
        """The network: LSTM layers of these widths over the rows of an image."""
        return ModelConfig(hidden_features=self.weights.hidden_features)

    def describe(self) -> list[str]:
        """The layers, the state of training and what was assumed, as lines of text."""
        widths = (self.weights.in_features, *self.weights.hidden_features)
        pairs = zip(self.names, widths, widths[1:], strict=False)

        def steps(number: int) -> str:
            return f"{number:,} step{'s' * (number != 1)}"

        return [
            *(f"LSTM {width_in} -> {width}: {name}" for name, width_in, width in pairs),
            f"output {widths[-1]} -> {self.weights.num_classes} classes: {self.names[-1]}",
            "no optimizer state: Adam starts from zero"
            if self.adam is None
            else f"the state of Adam after {steps(self.adam.steps)}",
            f"trained for {steps(self.step)}" if self.step else "the number of training steps is not known",
            *self.notes,
        ]


def from_params(params: Params) -> Weights:
    """The weights in the model's parameters."""
    params = jax.tree.map(np.asarray, params)
    cells = [params["rnn"]["layers"][number]["cell"] for number in sorted(params["rnn"]["layers"])]
    layers = tuple(Layer(c["dense_i"]["kernel"], c["dense_h"]["kernel"], c["dense_h"]["bias"]) for c in cells)
    return Weights(layers, params["dense"]["kernel"], params["dense"]["bias"])


def to_params(weights: Weights) -> Params:
    """The model's parameters with these weights, in float32."""
    layers = {
        number: {"cell": {"dense_i": {"kernel": kernel}, "dense_h": {"kernel": recurrent_kernel, "bias": bias}}}
        for number, (kernel, recurrent_kernel, bias) in enumerate(weights.layers)
    }
    dense = {"kernel": weights.dense_kernel, "bias": weights.dense_bias}
    params = {"rnn": {"layers": layers}, "dense": dense}
    return jax.tree.map(lambda array: np.ascontiguousarray(array, np.float32), params)


def check(imported: Imported, found: Arrays) -> Imported:
    """Returns `imported` if its shapes fit together and all values are finite. Raises WeightsError."""
    weights, names = imported.weights, imported.names
    width = None
    for name, (kernel, recurrent_kernel, bias) in zip(names, weights.layers, strict=False):
        hidden = recurrent_kernel.shape[0] if recurrent_kernel.ndim else 0
        if hidden and kernel.shape[1:] == recurrent_kernel.shape[1:] in ((3 * hidden,), (hidden,)):
            kind = "GRU" if kernel.shape[1] > hidden else "simple RNN"
            raise WeightsError(f"The layer {name} is that of a {kind}, expected an LSTM.")
        shapes = kernel.shape[1:], recurrent_kernel.shape, bias.shape
        if kernel.ndim != 2 or shapes != ((4 * hidden,), (hidden, 4 * hidden), (4 * hidden,)):
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
    """The names of the only matrix and the only vector in `rest`: the output layer. Raises WeightsError."""
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
    found: Arrays,
    place_of: Callable[[str], tuple[str, str] | None],
    forms: Sequence[Sequence[str]],
    to_layer: Callable[[str, dict[str, np.ndarray]], Layer],
    *,
    order: Sequence[str] = (),
    in_order: bool = False,
    numbered: bool = True,
    transposed: bool = False,
) -> Imported:
    """The classifier in arrays by name.

    Args:
      found: all arrays; scalars and other types than floats (counters, seeds) are ignored.
      place_of: of an array's name, the name of its LSTM layer and which part of it this is; None of other arrays.
      forms: lists of the parts that a layer has; where there are several, each layer has one of them.
      to_layer: makes a layer of its name and its parts, in float32.
      order: the names of the LSTM layers from the user, where neither names nor widths determine their order.
      in_order: whether `found` is in the order of the model.
      numbered: whether names that differ by numbers alone are in the order of these numbers.
      transposed: whether the output layer's weights are [classes, hidden].

    Raises:
      WeightsError: a part is missing, there is no output layer, or the layers do not fit together.
    """
    cells: dict[str, dict[str, str]] = {}
    for name in found:
        if place := place_of(name):
            cells.setdefault(place[0], {})[place[1]] = name
    if not cells:
        raise WeightsError(f"There is no LSTM layer: no {' or '.join(form[0] for form in forms)}. {listing(found)}")
    layers = {}
    for name, parts in cells.items():
        form = max(forms, key=lambda form: len(parts.keys() & set(form)))
        if missing := [part for part in form if part not in parts]:
            raise WeightsError(f"The LSTM layer {name} lacks its {' and '.join(missing)}. {listing(found)}")
        layers[name] = to_layer(name, {part: _float32(found[parts[part]]) for part in form})
    names = order_layers(layers, found, order, in_order, numbered)
    floats = {name: array for name, array in found.items() if array.shape and "float" in str(array.dtype)}
    kernel, bias = output_layer({name: array for name, array in floats.items() if not place_of(name)}, found)
    dense = _float32(found[kernel])
    dense_name = re.sub(r"[/.](kernel|weight|vars/0)$", "", kernel)
    weights = Weights(tuple(layers[name] for name in names), dense.T if transposed else dense, _float32(found[bias]))
    return check(Imported(weights, (*names, dense_name)), found)


def _float32(array: Any) -> np.ndarray:
    """In float32; numbers beyond its range become infinite, which `check` refuses."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(np.float32)


def order_layers(
    cells: Mapping[str, Layer],
    found: Arrays,
    given: Sequence[str] = (),
    in_order: bool = False,
    numbered: bool = True,
) -> list[str]:
    """The names of LSTM layers from the input to the output: see `assemble`.

    They are sorted if they are `numbered` and differ by numbers alone, such as lstm_1 and lstm_2. Otherwise the order
    is the only one in which the input width of each layer is the output width of the one before.
    """
    names = sorted(cells, key=_natural)
    if given:
        if sorted(given, key=_natural) != names:
            raise WeightsError(f"--layer names {', '.join(given)}; the LSTM layers are {', '.join(names)}.")
        return list(given)
    if numbered and len({re.sub(r"[._]?\d+", "", name) for name in names}) == 1:
        return names
    if in_order:
        return list(cells)
    widths = {name: (cell.kernel.shape[:1], cell.recurrent_kernel.shape[:1]) for name, cell in cells.items()}
    fitting = [
        order
        for order in itertools.permutations(names if len(names) <= MAX_PERMUTED else ())
        if all(widths[before][1] == widths[after][0] for before, after in itertools.pairwise(order))
    ]
    if len(fitting) > 1 or len(names) > MAX_PERMUTED:
        raise WeightsError(
            f"Neither names nor widths determine the order of the LSTM layers {', '.join(names)}. Name them "
            f"from the input to the output: {' '.join(f'--layer {name}' for name in names)}. {listing(found)}"
        )
    return list(fitting[0]) if fitting else names


def ignoring(found: Arrays, patterns: Iterable[str]) -> dict[str, Any]:
    """The arrays whose names match none of these patterns of `fnmatch`. Raises WeightsError, also for absurd names."""
    for name in found:
        if len(name) > MAX_NAME or not name.isprintable():
            raise WeightsError(f"The file has an array with the name {name[:100]!r}, which no program gives.")
    for pattern in patterns:
        kept = {name: array for name, array in found.items() if not fnmatchcase(name, pattern)}
        if len(kept) == len(found):
            raise WeightsError(f"Nothing is called {pattern!r}, so it cannot be ignored. {listing(found)}")
        found = kept
    return dict(found)


def listing(found: Arrays) -> str:
    """The arrays of a file, as a sentence."""
    if not found:
        return "The file holds no arrays."
    items = [f"{name} {list(array.shape)}" for name, array in found.items()]
    more = f" and {len(items) - MAX_LISTED} more, which --list shows" if len(items) > MAX_LISTED else ""
    return f"Found: {', '.join(items[:MAX_LISTED])}{more}."


def _natural(name: str) -> list[tuple[int, str]]:
    """The sort key by which cell_10 comes after cell_9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
