"""The weights of the classifier as NumPy arrays, layer by layer: the common form of all formats.

A format has the names of its arrays and its order of the gates. From these, `assemble` makes the classifier: it finds
the order of the layers and the output layer, and checks that the shapes fit together.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lstm_mnist_jax.config import Config, ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.inputs import Inputs
from lstm_mnist_jax.model import CELL_NAMES, Params, runs_through_flax

MAX_LISTED = 40
"""The most names in an error."""

MAX_NAME = 1000
"""The longest name of an array."""

MAX_PERMUTED = 7
"""The most LSTM layers, and the most dense layers, whose order is searched by their widths."""

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


class Dense(NamedTuple):
    """A dense layer.

    Attributes:
      kernel: [in, out].
      bias: [out].
    """

    kernel: np.ndarray
    bias: np.ndarray


class Weights(NamedTuple):
    """All weights of the classifier.

    Attributes:
      layers: from the input to the output.
      dense_kernel: of the output layer, [in, classes].
      dense_bias: of the output layer, [classes].
      dense_hidden: the hidden dense layers before it. The first dense layer takes the last output [hidden], or the
        outputs of all steps [steps * hidden].
    """

    layers: tuple[Layer, ...]
    dense_kernel: np.ndarray
    dense_bias: np.ndarray
    dense_hidden: tuple[Dense, ...] = ()

    @property
    def dense(self) -> tuple[Dense, ...]:
        """All dense layers, the output layer last."""
        return (*self.dense_hidden, Dense(self.dense_kernel, self.dense_bias))

    @property
    def steps(self) -> int | None:
        """The number of steps whose outputs the dense layers take; None where they take those of the last."""
        steps = len(self.dense[0].kernel) // self.hidden_features[-1]
        return steps if steps > 1 else None

    @property
    def in_features(self) -> int:
        return self.layers[0].kernel.shape[0]

    @property
    def hidden_features(self) -> tuple[int, ...]:
        return tuple(layer.recurrent_kernel.shape[0] for layer in self.layers)

    @property
    def num_classes(self) -> int:
        return self.dense_bias.shape[0]

    @property
    def config(self) -> ModelConfig:
        """The network, as far as shapes show it: LSTM layers over the rows of an image, then dense layers."""
        return ModelConfig(
            hidden_features=self.hidden_features,
            pooling="last" if self.steps is None else "all",
            dense_features=tuple(len(layer.bias) for layer in self.dense_hidden),
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


INPUTS_ARE_KNOWN = (
    "The file determines what its inputs are: pixels of integers, or scaled by the network itself. Leave out "
    "--input-mean, --input-std and --input-scale."
)


class Imported(NamedTuple):
    """The classifier in a file.

    Attributes:
      weights: the weights.
      names: the names in the file of the LSTM layers, and of the dense layers, the output layer last.
      adam: the state of Adam, if the file has it.
      step: the number of training steps; 0 where it is not known.
      image_rows: the number of rows (time steps) of an image; None where it is not known.
      notes: what was assumed, and what the file has that was not imported, each as a line of text.
      forget_bias: what the cells of the other program add to their forget gates.
      network: fields of the `ModelConfig` that shapes do not show, such as `dense_activation`, as far as they are
        known from the file or from the user.
      inputs: the inputs that the network was trained with; `params` has them folded into the first layer.
      knows_inputs: whether the file determines what its inputs are, as the network scales them itself.
    """

    weights: Weights
    names: tuple[str, ...]
    adam: Adam | None = None
    step: int = 0
    image_rows: int | None = None
    notes: tuple[str, ...] = ()
    forget_bias: float = ModelConfig.forget_bias
    network: Mapping[str, Any] = MappingProxyType({})
    inputs: Inputs = Inputs()
    knows_inputs: bool = False

    @property
    def params(self) -> Params:
        """The model's parameters, for `lstm_mnist_jax.model.apply`."""
        return self.inputs.fold(to_params(self.weights))

    @property
    def config(self) -> ModelConfig:
        """The network: LSTM layers over the rows of an image, then dense layers."""
        return replace(self.weights.config, **self.network)

    def describe(self) -> list[str]:
        """The layers, the state of training and what was assumed, as lines of text."""
        weights, config = self.weights, self.config
        widths = (weights.in_features, *weights.hidden_features)
        pairs = zip(self.names, widths, widths[1:], strict=False)
        hidden = zip(self.names[len(weights.layers) :], weights.dense_hidden, strict=False)
        last = len(weights.dense_kernel)
        own = f", {config.activation} and {config.recurrent_activation}" if runs_through_flax(config) else ""

        def steps(number: int) -> str:
            return f"{number:,} step{'s' * (number != 1)}"

        return [
            *(f"LSTM {width_in} -> {width}{own}: {name}" for name, width_in, width in pairs),
            *(["the outputs of all steps, flattened"] if config.pooling == "all" else []),
            *([f"{config.pooling} pooling over all steps"] if config.pooling in ("mean", "max") else []),
            *(f"dense {len(d.kernel)} -> {len(d.bias)}, {config.dense_activation}: {name}" for name, d in hidden),
            f"output {last} -> {weights.num_classes} classes: {self.names[-1]}",
            "no optimizer state: Adam starts from zero"
            if self.adam is None
            else f"the state of Adam after {steps(self.adam.steps)}",
            f"trained for {steps(self.step)}" if self.step else "the number of training steps is not known",
            *self.notes,
        ]


@dataclass(frozen=True)
class ImportedModel:
    """A classifier of any config, in a file that holds its network as well.

    Attributes:
      config: the network.
      unfolded: the parameters of the file.
      names: the names in the file of the recurrent layers, and of the dense layers.
      notes: what was assumed or changed, as lines of text; where the inputs are not known, theirs is the first.
      time_steps: the number of steps that the file's network reads; None where it is open.
      step: the number of training steps; 0 where it is not known.
      training: the config that it was trained with, if the file has it.
      knows_inputs: whether the file determines what its inputs are.
      inputs: those that it was trained with; folded into `params`.
      image_shape: (height, width) or (height, width, channels) of the images; None where the file does not hold it.
      class_names: one name a class; None where the file does not hold them.
    """

    config: ModelConfig
    unfolded: Params
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    time_steps: int | None = None
    step: int = 0
    training: Config | None = None
    knows_inputs: bool = True
    inputs: Inputs = Inputs()
    image_shape: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None

    adam = image_rows = None

    @property
    def forget_bias(self) -> float:
        return self.config.forget_bias

    @property
    def params(self) -> Params:
        """The model's parameters, for `lstm_mnist_jax.model.apply`."""
        return self.inputs.fold(self.unfolded)

    def with_inputs(self, inputs: Inputs) -> "ImportedModel":
        """With inputs that the user knows. Raises WeightsError where the file determines them."""
        if self.knows_inputs:
            raise WeightsError(INPUTS_ARE_KNOWN)
        note = f"trained on inputs of {inputs}: folded into the weights and biases of {self.names[0]}"
        return replace(self, inputs=inputs, notes=(note, *self.notes[1:]))

    def describe(self) -> list[str]:
        """The layers and what was assumed, as lines of text."""
        config, layers = self.config, self.unfolded["rnn"]["layers"]
        kind = "bidirectional " * config.bidirectional + CELL_NAMES[config.cell]
        own = f", {config.activation} and {config.recurrent_activation}" if runs_through_flax(config) else ""
        lines = []
        for number, (name, hidden) in enumerate(zip(self.names, config.hidden_features, strict=False)):
            width = len(_first_cell(layers[number])["dense_i"]["kernel"])
            lines.append(f"{kind} {width} -> {hidden}{own}: {name}")
        if config.pooling != "last":
            lines.append("the outputs of all steps" if config.pooling == "all" else f"{config.pooling} over time")
        for number, name in enumerate(self.names[len(layers) : -1]):
            kernel = self.unfolded["dense_hidden"][number]["kernel"]
            lines.append(f"dense {kernel.shape[0]} -> {kernel.shape[1]}, {config.dense_activation}: {name}")
        kernel = self.unfolded["dense"]["kernel"]
        lines.append(f"output {kernel.shape[0]} -> {kernel.shape[1]} classes: {self.names[-1]}")
        if config.task != "rows":
            lines.append(f"reads images as {config.task}")
        return [*lines, "no optimizer state: Adam starts from zero", *self.notes]

    def checked(self) -> "ImportedModel":
        """Itself, if all values are finite numbers. Raises WeightsError."""
        for path, array in jax.tree_util.tree_leaves_with_path(self.unfolded):
            if not np.isfinite(array).all():
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise WeightsError(f"{name} holds values that are not finite numbers; it cannot be of use.")
        return self


def _first_cell(layer: Any) -> Any:
    """The cell of a layer's forward direction."""
    return layer.get("forward_rnn", layer)["cell"]


def _is_lstm(cell: Any) -> bool:
    """Whether a cell of the parameters is an LSTM's, of which no other has the names and the shapes."""
    if {name: sorted(part) for name, part in cell.items()} != {"dense_i": ["kernel"], "dense_h": ["bias", "kernel"]}:
        return False
    hidden, gates = cell["dense_h"]["kernel"].shape
    return bool(gates == 4 * hidden)


def from_params(params: Params) -> Weights:
    """The weights in the model's parameters. Raises WeightsError where these are of another network."""
    params = jax.tree.map(np.asarray, params)
    modules = [params["rnn"]["layers"][number] for number in sorted(params["rnn"]["layers"])]
    cells = [module.get("cell", {}) for module in modules]
    if not all(map(_is_lstm, cells)) or params.keys() - {"rnn", "dense", "dense_hidden"}:
        raise WeightsError(
            "The parameters are not those of LSTM layers in one direction, then dense layers: other cells, a second "
            "direction, or attention pooling. Give the config of the network to what can hold it: "
            "interop.export.to_stablehlo, or `lstm-mnist export huggingface`."
        )
    layers = tuple(Layer(c["dense_i"]["kernel"], c["dense_h"]["kernel"], c["dense_h"]["bias"]) for c in cells)
    hidden = params.get("dense_hidden", {})
    hidden = tuple(Dense(hidden[number]["kernel"], hidden[number]["bias"]) for number in sorted(hidden))
    return Weights(layers, params["dense"]["kernel"], params["dense"]["bias"], hidden)


def to_params(weights: Weights) -> Params:
    """The model's parameters with these weights, in float32."""
    layers = {
        number: {"cell": {"dense_i": {"kernel": kernel}, "dense_h": {"kernel": recurrent_kernel, "bias": bias}}}
        for number, (kernel, recurrent_kernel, bias) in enumerate(weights.layers)
    }
    *hidden, dense = [layer._asdict() for layer in weights.dense]
    params: Params = {"rnn": {"layers": layers}, "dense": dense}
    if hidden:
        params["dense_hidden"] = dict(enumerate(hidden))
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
    before = "last LSTM layer"
    for number, (name, (kernel, bias)) in enumerate(zip(names[len(weights.layers) :], weights.dense, strict=True)):
        kind = "hidden dense" if number < len(weights.dense_hidden) else "output"
        # The outputs of all steps may be flattened before the first dense layer.
        steps = kernel.shape[0] // width if kernel.ndim == 2 and width and not number else 1
        if bias.ndim != 1 or kernel.shape != (max(1, steps) * (width or 0), len(bias)):
            raise WeightsError(
                f"The {kind} layer {name} has weights {list(kernel.shape)} and biases {list(bias.shape)}, but the "
                f"{before} gives {width} features. {listing(found)}"
            )
        width, before = len(bias), "layer before"
    if weights.num_classes == 1:
        raise WeightsError(
            f"The output layer {names[-1]} has one output, as for a number or for two classes by a sigmoid. Expected "
            "one output for each class."
        )
    for name, arrays in zip(names, [*weights.layers, *weights.dense], strict=True):
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
    input_activation: str | None = None,
    as_stored: bool = False,
) -> Imported:
    """The classifier in arrays by name.

    Dense layers after the LSTM layers are hidden dense layers and the output layer, in the order in which their widths
    fit together. Biases that are missing are zero. A dense layer before the LSTM layers is folded into the first.

    Args:
      found: all arrays; scalars and other types than floats (counters, seeds) are ignored.
      place_of: of an array's name, the name of its LSTM layer and which part of it this is; None of other arrays.
      forms: lists of the parts that a layer has; where there are several, each layer has one of them. Shorter lists
        stand before longer ones with the same parts.
      to_layer: makes a layer of its name and its parts, in float32.
      order: the names of the LSTM layers from the user, where neither names nor widths determine their order; with all
        dense layers, where their widths do not determine their order.
      in_order: whether `found` is in the order of the model.
      numbered: whether names that differ by numbers alone are in the order of these numbers.
      transposed: whether the weights of dense layers are [out, in].
      input_activation: what the user says of the activation after a dense layer before the LSTM layers: "linear".
      as_stored: whether `found` is in the order in which a program made its layers. This does not order them, but a
        dense layer between LSTM layers is refused. Where neither is known, its widths give a note.

    Raises:
      WeightsError: a part is missing, there is no output layer, the layers do not fit together, there is a dense layer
        before the LSTM layers and the user has not said that no activation follows it, or one between them.
    """
    cells: dict[str, dict[str, str]] = {}
    for name in found:
        if place := place_of(name):
            cells.setdefault(place[0], {})[place[1]] = name
    if not cells:
        firsts = dict.fromkeys(form[0] for form in forms)
        raise WeightsError(f"There is no LSTM layer: no {' or '.join(firsts)}. {listing(found)}")
    layers, notes = dict[str, Layer](), []
    for name, parts in cells.items():
        form = max(forms, key=lambda form: len(parts.keys() & set(form)))
        if missing := [part for part in form if part not in parts]:
            raise WeightsError(f"The LSTM layer {name} lacks its {' and '.join(missing)}. {listing(found)}")
        layers[name] = to_layer(name, {part: _float32(found[parts[part]]) for part in form})
        if not any("b" in part for part in form):
            notes.append(f"{name} has no biases: they are zero here, and would be trained")
    names = order_layers(layers, found, [name for name in order if name in layers], in_order, numbered)
    floats = {name: array for name, array in found.items() if array.shape and "float" in str(array.dtype)}
    dense, without = _dense_layers({n: array for n, array in floats.items() if not place_of(n)}, found, transposed)
    notes += [f"{name} has no bias: it is zero here, and would be trained" for name in without]
    inputs, outputs = layers[names[0]].kernel.shape[:1], layers[names[-1]].recurrent_kernel.shape[:1]
    all_named = bool(set(order) - set(layers))
    before, after = _order_dense(dense, inputs, outputs, order if all_named else (), names, found)
    if not all_named and (in_order or as_stored):
        stored = dict.fromkeys(place[0] if (place := place_of(name)) else dense_name(name) for name in found)
        _refuse_between([name for name in stored if name in layers or name in dense], names, after)
    elif not all_named:
        notes += _may_stand_between([layers[name] for name in names], names, {name: dense[name] for name in after[:-1]})
    if before:
        listed = ", ".join(before)
        if input_activation != "linear":
            raise WeightsError(
                f"The model has a dense layer before its LSTM layers: {listed}. Where no activation follows it, it is "
                "folded into the LSTM: confirm this with --input-activation linear. With an activation this classifier "
                "cannot hold it. (Without it the weights are of no use: do not --ignore it.)"
            )
        layers[names[0]] = _folded([dense[name] for name in before], layers[names[0]])
        notes.append(f"{listed}, before the LSTM layers, is folded into the weights and biases of {names[0]}")
    *hidden, output = (dense[name] for name in after)
    weights = Weights(tuple(layers[name] for name in names), *output, tuple(hidden))
    return check(Imported(weights, (*names, *after), notes=tuple(notes)), found)


def _refuse_between(stored: Sequence[str], lstms: Sequence[str], after: Sequence[str]) -> None:
    """Raises WeightsError where the file has a dense layer between the first and the last LSTM layer."""
    places = [place for place, name in enumerate(stored) if name in lstms]
    if between := [name for name in stored[places[0] : places[-1]] if name not in lstms]:
        options = " ".join(f"--layer {name}" for name in [*lstms, *after])
        raise WeightsError(
            f"The file has {', '.join(between)} between its LSTM layers: {', '.join(stored)}. This classifier has no "
            "dense layer there. If the program computes them in another order than that of the file, name all layers "
            f"from the input to the output, such as: {options}."
        )


def _may_stand_between(layers: Sequence[Layer], names: Sequence[str], hidden: Mapping[str, Dense]) -> list[str]:
    """A note for the first two LSTM layers of different modules between which a hidden dense layer has the widths."""
    modules = [re.sub(r"(^|\.)l\d+$", "", name) for name in names]  # of the layers of one nn.LSTM, the same
    for number, (below, above) in enumerate(itertools.pairwise(layers)):
        shape = (len(below.recurrent_kernel), len(above.kernel))
        if modules[number] == modules[number + 1]:
            continue
        if fitting := [name for name, dense in hidden.items() if dense.kernel.shape == shape]:
            return [
                f"the file does not hold where its dense layers stand: {', '.join(fitting)} is assumed to follow all "
                f"LSTM layers, and not to stand between {names[number]} and {names[number + 1]}"
            ]
    return []


def _dense_layers(rest: Arrays, found: Arrays, transposed: bool) -> tuple[dict[str, Dense], list[str]]:
    """The dense layers in the arrays that belong to no LSTM layer, and the names of those without bias.

    A matrix and a vector whose names differ in the last part are a layer; so are the only matrix and the only vector.
    """
    scopes: dict[str, list[str]] = {}
    alone = sorted(len(array.shape) for array in rest.values()) == [1, 2]
    for name in rest:
        scopes.setdefault("" if alone else re.sub(r"[/.]?(vars/\d+|[^/.]+)$", "", name), []).append(name)
    layers, without = {}, []
    for names in scopes.values():
        matrices = [name for name in names if len(rest[name].shape) == 2]
        vectors = [name for name in names if len(rest[name].shape) == 1]
        if not matrices and len(scopes) == 1:
            break
        fits = len(matrices) == 1 and len(vectors) == len(names) - 1 <= 1
        if not fits:
            raise WeightsError(
                "Expected LSTM layers and dense layers, each with a matrix and at most one vector, but there is more "
                f"besides the LSTM layers: {', '.join(names)}. If the model does without these, leave them out with "
                f"--ignore NAME; otherwise this classifier cannot hold it. {listing(found)}"
            )
        kernel = _float32(found[matrices[0]])
        kernel = kernel.T if transposed else kernel
        name = dense_name(matrices[0])
        if not vectors:
            without.append(name)
        layers[name] = Dense(kernel, _float32(found[vectors[0]]) if vectors else np.zeros(kernel.shape[1], np.float32))
    if not layers:
        raise WeightsError(
            "The output layer is missing: expected a matrix and a vector besides the LSTM layers, there are "
            f"{', '.join(rest) or 'none'}. {listing(found)}"
        )
    return layers, without


def dense_name(matrix: str) -> str:
    """The name of a dense layer, by the name of its matrix."""
    return re.sub(r"[/.](kernel|weight|vars/0)(:0)?$", "", matrix)


def _order_dense(
    dense: Mapping[str, Dense],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    given: Sequence[str],
    lstms: Sequence[str],
    found: Arrays,
) -> tuple[list[str], list[str]]:
    """The names of the dense layers before and after the LSTM layers, each from the input to the output.

    Args:
      dense: the dense layers.
      inputs: the width that the first LSTM layer takes.
      outputs: the width that the last LSTM layer gives.
      given: the names of all layers from the user, or none.
      lstms: the names of the LSTM layers.
      found: all arrays, for messages.
    """
    if given:
        if missing := [name for name in lstms if name not in given]:
            raise WeightsError(f"--layer names dense layers, but not the LSTM layers {', '.join(missing)}.")
        named = [name for name in given if name not in lstms]
        if sorted(named) != sorted(dense):
            raise WeightsError(
                f"--layer names {', '.join(named)} besides the LSTM layers; the dense layers are {', '.join(dense)}."
            )
        first = min(given.index(name) for name in lstms)
        if any(name in named for name in given[first : first + len(lstms)]):
            raise WeightsError(f"--layer names a dense layer between the LSTM layers: {', '.join(given)}.")
        return [n for n in given[:first] if n in named], [n for n in given[first:] if n in named]
    if len(dense) == 1:
        return [], list(dense)
    widths = {name: layer.kernel.shape for name, layer in dense.items()}
    fitting = []
    for order in itertools.permutations(dense if len(dense) <= MAX_PERMUTED else ()):
        pairs = [widths[before][1] == widths[after][0] for before, after in itertools.pairwise(order)]
        for place in range(len(order)):  # of the LSTM layers
            joined = all(pairs[: max(0, place - 1)]) and all(pairs[place:])
            fits = not place or widths[order[place - 1]][1:] == inputs
            if joined and fits and outputs and widths[order[place]][0] % outputs[0] == 0:
                fitting.append((list(order[:place]), list(order[place:])))
    names = sorted(dense, key=_natural)
    if len(fitting) > 1 and len({re.sub(r"[._]?\d+", "", name) for name in names}) == 1 and ([], names) in fitting:
        return [], names
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1 or len(dense) > MAX_PERMUTED:
        options = " ".join(f"--layer {name}" for name in [*lstms, *names])
        raise WeightsError(
            f"Neither names nor widths determine the order of the dense layers {', '.join(names)}. Name all layers "
            f"from the input to the output: {options}. {listing(found)}"
        )
    shapes = ", ".join(f"{name} {widths[name][0]} -> {widths[name][1]}" for name in names)
    raise WeightsError(
        f"Expected dense layers that fit together and to the LSTM layers, which take {inputs[0]} features and give "
        f"{outputs[0]}, but there is more besides the LSTM layers: {shapes}. If the model does without some of these, "
        f"leave them out with --ignore NAME. {listing(found)}"
    )


def _folded(before: Sequence[Dense], layer: Layer) -> Layer:
    """An LSTM layer that takes the inputs of the dense layers before it, which have no activations."""
    kernel, bias = layer.kernel.astype(np.float64), layer.bias.astype(np.float64)
    for dense in reversed(before):
        bias = bias + dense.bias.astype(np.float64) @ kernel
        kernel = dense.kernel.astype(np.float64) @ kernel
    return Layer(_float32(kernel), layer.recurrent_kernel, _float32(bias))


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
