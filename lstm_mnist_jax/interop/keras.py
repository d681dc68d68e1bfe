"""Keras 1, 2 and 3: `LSTM` or `GRU` layers and `Dense` ones, as a model, or as the contents of its files.

Keras's arrays are the kernel [in, gates * hidden], the recurrent kernel [hidden, gates * hidden] and the bias. The
order of an LSTM's gates, i, f, c, o, is that of this package; that of a GRU's is z, r, h. A `GRU` with
`reset_after=True` has the biases [2, 3 hidden], the second within the recurrent product.

- Keras 1 and 2 (and Keras 3's .h5) list the layers and their arrays in attributes: lstm_1/kernel:0 (Keras 2.0 to 2.3),
  lstm_1/lstm_cell/kernel:0 (TensorFlow 2.2 and later), lstm_1_W_i and eleven more (Keras 1, a matrix for each gate).
- Keras 3's .weights.h5 numbers the variables of a layer: layers/lstm/cell/vars/0, 1 and 2; layers/dense/vars/0 and 1.
  The layers are in the order of their numbers: lstm, lstm_1, lstm_2.
- The two cells of a `Bidirectional` layer are in it: bidirectional/forward_lstm/lstm_cell/kernel:0, or
  layers/bidirectional/forward_layer/cell/vars/0.
- CuDNNLSTM and CuDNNGRU store each gate's matrices transposed, and two biases in one array.
"""

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.config.json import differences
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.assembly import Arrays, Place, assemble, dense_name, ignoring, listing, natural
from lstm_mnist_jax.interop.files import KerasFile
from lstm_mnist_jax.interop.imported import Imported, refuse_unusual
from lstm_mnist_jax.interop.keras_config import (
    MODELS,
    POOLING,
    REASONS,
    RECURRENT,
    Architecture,
    ConfiguredLayer,
    has_layers,
    name_in_file,
    read_architecture,
)
from lstm_mnist_jax.interop.keras_folding import Folding
from lstm_mnist_jax.interop.weights import (
    GATES,
    Dense,
    Direction,
    Layer,
    Weights,
    direction,
    float32,
    from_params,
    pooling_of,
)
from lstm_mnist_jax.model import Params, bind
from lstm_mnist_jax.rnn.weights import KERAS_GATES, reorder_gates, to_keras

if TYPE_CHECKING:
    import keras

CELL_PARTS = ("kernel", "recurrent_kernel", "bias")
KERAS_1 = tuple(f"{kind}_{gate}" for kind in "WUb" for gate in "ifco")
FORMS = (CELL_PARTS[:2], CELL_PARTS, KERAS_1)
"""The parts of a cell: without and with bias, and of Keras 1's LSTM."""

DENSE_FORMS = (("kernel",), ("kernel", "bias"))
IN_KERAS_1 = {"W": "kernel", "U": "recurrent_kernel", "b": "bias"}

PART = re.compile(
    r"(recurrent_kernel|kernel|bias|gamma|beta|moving_mean|moving_variance|mean|variance|[WUb](?:_[a-z])?)(?:_\d+)?(?::0)?"
)
NUMBERED = re.compile(r"(.*(?:^|/)(?:layers|container\w*|\w+_dependencies)/[a-z_]*[a-z])(?:_\d+)?")
"""A layer of a list of layers in Keras 3's .weights.h5, named by its class, and numbered where there are several."""

DEFAULT_NAME = re.compile(r"(sequential|functional|model)(_\d+)?")
"""The names that Keras gives to Sequential and functional models."""

CELL = re.compile(r"/(?:[^/]*_)?cell(?:_\d+)?$")
DIRECTION = re.compile(r"(.+)/(forward|backward)_[^/]*$")
"""A cell's layer in a `Bidirectional` layer."""

POOLING_LAYERS = {pooling: layer for layer, pooling in POOLING.items()}


def to_model(
    params: Params, image_shape: tuple[int, int] = (28, 28), config: ModelConfig = ModelConfig()
) -> "keras.Model":
    """A Keras model with these parameters, on any backend. Needs Keras 3.

    It takes images as floats from 0 to 1, [batch, height, width], each row a time step, and returns logits
    [batch, classes].

    Args:
      params: the model's parameters.
      image_shape: (height, width) of an image.
      config: the network, whose activations and pooling the parameters do not hold.

    Raises:
      WeightsError: the parameters belong to images of another size, or `export keras` cannot hold such a network.
    """
    import keras

    refuse_unusual("keras", config)
    weights = _held(params)
    if image_shape[1] != weights.in_features:
        raise WeightsError(f"The parameters take rows of {weights.in_features} numbers, not of {image_shape[1]}.")
    if weights.steps not in (None, image_shape[0]):
        raise WeightsError(f"The parameters take images of {weights.steps} rows, not of {image_shape[0]}.")
    pooling = pooling_of(weights, config)
    options = {}
    if weights.cell == "lstm":
        names = {name: name.removesuffix("_keras3") for name in (config.activation, config.recurrent_activation)}
        options = {"activation": names[config.activation], "recurrent_activation": names[config.recurrent_activation]}
    layers = [keras.Input(image_shape)]
    for number, layer in enumerate(weights.layers):
        sequences = number + 1 < len(weights.layers) or pooling != "last"
        kind = keras.layers.LSTM if weights.cell == "lstm" else keras.layers.GRU
        made = kind(layer.hidden, return_sequences=sequences, **options)
        layers.append(made if layer.backward is None else keras.layers.Bidirectional(made))
    if pooling in POOLING_LAYERS:
        layers.append(getattr(keras.layers, POOLING_LAYERS[pooling])())
    layers += [keras.layers.Dense(len(dense.bias), activation=config.dense_activation) for dense in weights.dense[:-1]]
    model = keras.Sequential([*layers, keras.layers.Dense(weights.num_classes)])
    model.set_weights(list(to_arrays(params).values()))
    return model


def from_model(model: "keras.Model") -> Params:
    """The parameters of a built `Sequential` or functional Keras model: `LSTM` or `GRU` layers, then `Dense` layers.

    Parameters do not hold activations and pooling. They are those of a `ModelConfig` with the widths of the model:
    tanh and sigmoid in the recurrent layers, relu after hidden `Dense` layers, and the last output, or with `Flatten`
    all outputs. Layers that scale features, such as `Rescaling`, are folded into them, and say what the inputs are: see
    docs/weights.md. For a model with others, save it, and read the file with `lstm_mnist_jax.interop.formats.read`,
    which gives the config as well.

    Raises:
      WeightsError: it is another network, or has another activation or pooling.
    """
    if type(model).__name__ not in MODELS:
        raise WeightsError(
            f"The model is of the class {type(model).__name__}, whose program decides what it computes; expected a "
            "Sequential or functional model."
        )
    arrays: dict[str, np.ndarray] = {}
    layers: dict[str, list[str]] = {}
    for layer in model.layers:
        paths = [f"{layer.name}/{getattr(variable, 'path', variable.name)}" for variable in layer.weights]
        layers[layer.name] = paths
        arrays |= zip(paths, layer.get_weights(), strict=True)
    config = json.loads(model.to_json())
    imported = from_file(KerasFile(arrays, layers, config, str(config.get("keras_version", ""))))
    if unusual := differences(imported.weights.config, imported.config):
        fields = ", ".join(f"{name} {value}" for name, (_, value) in unusual.items())
        raise WeightsError(
            f"The model has {fields}, which parameters alone do not hold. Save it with model.save('model.keras'), and "
            "take the params and the config of formats.read('keras', path), or use `lstm-mnist import keras`."
        )
    return imported.params


def to_arrays(params: Params) -> dict[str, np.ndarray]:
    """The arrays of a .weights.h5 file, by their paths in it, as `keras.Sequential` names its layers there."""
    weights = _held(params)
    layers = bind(params, weights.config, (weights.steps or 1, weights.in_features)).rnn
    arrays, of_cells = dict[str, np.ndarray](), iter(to_keras(layers))
    for number, layer in enumerate(weights.layers):
        name = weights.cell if layer.backward is None else "bidirectional"
        name = f"layers/{name}_{number}" if number else f"layers/{name}"
        scopes = [name] if layer.backward is None else [f"{name}/forward_layer", f"{name}/backward_layer"]
        for scope in scopes:
            arrays |= {f"{scope}/cell/vars/{place}": next(of_cells) for place in range(len(CELL_PARTS))}
    for number, dense in enumerate(weights.dense):
        name = f"dense_{number}" if number else "dense"
        arrays |= {f"layers/{name}/vars/{place}": array for place, array in enumerate(dense)}
    return arrays


def _held(params: Params) -> Weights:
    """The weights in parameters, if Keras has such layers. Raises WeightsError."""
    weights = from_params(params)
    refuse_unusual("keras", weights.config)
    return weights


def from_arrays(found: Arrays, order: Sequence[str] = ()) -> Imported:
    """The classifier in arrays by their paths in a file; for `order` see `from_file`. Raises WeightsError."""
    return from_file(KerasFile(dict(found), {}), order=order)


def from_file(
    file: KerasFile,
    *,
    ignore: Iterable[str] = (),
    order: Sequence[str] = (),
    recurrent_activation: str | None = None,
    input_activation: str | None = None,
) -> Imported:
    """The classifier in the contents of a file.

    Args:
      file: see `lstm_mnist_jax.interop.files.read_hdf5`.
      ignore: patterns of paths to leave out.
      order: the names of the recurrent layers from the input to the output, where the file does not determine their
        order: it has neither the model's config nor a list of the layers, and the widths allow several orders.
      recurrent_activation: the activation of the gates where the file has no config, as in a `ModelConfig`; None
        assumes sigmoid, with a warning where Keras's default was hard_sigmoid (before 2.3, and in TensorFlow 1).
      input_activation: see `assemble`; a config holds it.

    Returns:
      The classifier. Its `notes` say what was assumed.

    Raises:
      WeightsError: it is another network, or the order of the layers is not known.

    Examples:
      >>> import numpy as np
      >>> from lstm_mnist_jax.interop.files import KerasFile
      >>> from lstm_mnist_jax.interop.keras import from_file
      >>> shapes = {"lstm/kernel:0": (28, 64), "lstm/recurrent_kernel:0": (16, 64), "lstm/bias:0": (64,)}
      >>> shapes |= {"dense/kernel:0": (16, 10), "dense/bias:0": (10,)}
      >>> arrays = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
      >>> from_file(KerasFile(arrays, {}, version="2.3.1")).names
      ('lstm', 'dense')
    """
    for layer in file.layers:
        name_in_file(layer)
    arrays = _relevant(ignoring(file.arrays, ignore), file)
    config = file.config if isinstance(file.config, Mapping) else {}
    stored: dict[str, dict[Place, str]] = {}
    for path, place in _places(arrays, file.layers).items():
        stored.setdefault(place.layer, {})[place] = path
    if file.layers:
        stored = {layer: stored[layer] for layer in file.layers if layer in stored}
    class_name = name_in_file(config.get("class_name", ""))
    if not has_layers(config):
        return _from_weights(file, arrays, stored, class_name, order, recurrent_activation, input_activation)
    version = name_in_file(file.version) or name_in_file(config.get("keras_version", ""))
    imported = _from_config(read_architecture(config, version), file, arrays, stored, order)
    if class_name in MODELS:
        return imported
    note = f"the model is of the class {class_name}: it is assumed to compute what its layers say"
    return replace(imported, notes=(note, *imported.notes))


def _from_config(
    architecture: Architecture,
    file: KerasFile,
    arrays: Arrays,
    stored: Mapping[str, Mapping[Place, str]],
    order: Sequence[str],
) -> Imported:
    """The classifier in a file whose config determines what it computes."""
    names = _names_in_file(architecture.layers, stored, by_name=bool(file.layers))
    trained = [layer for layer in architecture.layers if layer.kind in (*RECURRENT, "Dense")]
    recurrent = [names[layer.name] for layer in trained if layer.kind in RECURRENT]
    known = [names[layer.name] for layer in trained]
    if order and list(order) not in (known, recurrent):
        raise WeightsError(f"--layer names {', '.join(order)}; the order in the file is {', '.join(known)}.")
    folding = Folding()
    for layer in architecture.layers:
        name = names.get(layer.name, layer.name)
        cells: tuple[dict[str, np.ndarray], ...] = ({}, {})
        for place, path in stored.get(name, {}).items():
            cells[place.backward][place.part] = float32(arrays[path])
        if layer.kind in (*RECURRENT, "Dense"):
            _check_parts(layer, name, cells)
        if layer.kind in RECURRENT:
            folding.recurrent(name, Layer(*(_to_direction(name, cell, layer.kind) for cell in cells if cell)))
        elif layer.kind == "Dense":
            kernel = cells[0]["kernel"]
            bias = cells[0].get("bias", np.zeros(kernel.shape[-1:], np.float32))
            folding.dense(name, Dense(kernel, bias), layer.activation)
        else:
            folding.other(layer, cells[0])
        if layer.kind in (*RECURRENT, "Dense") and not layer.has_bias:
            several = "has no biases: they are" if layer.kind in RECURRENT else "has no bias: it is"
            folding.notes.append(f"{name} {several} zero here, and would be trained")
    return folding.imported(architecture, arrays)


def _names_in_file(layers: Sequence[ConfiguredLayer], stored: Mapping[str, Any], by_name: bool) -> dict[str, str]:
    """The names in the file of the layers of a config that have arrays. Raises WeightsError where they do not match."""
    found = {name: name for name in stored}
    if not by_name:  # they are numbered by class
        places = {name: NUMBERED.fullmatch(name) for name in stored}
        one_list = len({name.rpartition("/")[0] for name in stored}) == 1
        found = {name.rpartition("/")[2]: name for name, place in places.items() if place and one_list}
    with_arrays = [layer for layer in layers if layer.has_arrays]
    names = {layer.name: found.get(layer.name if by_name else layer.numbered, "") for layer in with_arrays}
    if sorted(names.values()) != sorted(stored):
        raise WeightsError(
            f"The config of the model names the layers {', '.join(names)}, but the file has the arrays of "
            f"{', '.join(stored) or 'none'}."
        )
    return names


def _check_parts(layer: ConfiguredLayer, name: str, cells: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Raises WeightsError where the arrays of a recurrent or a dense layer are others than its config says."""
    is_dense = layer.kind == "Dense"
    forms = DENSE_FORMS if is_dense else FORMS
    expected = 2 if layer.bidirectional else 1
    found = [cell for cell in cells if cell]
    if len(found) != expected or any(set(cell) not in map(set, forms) for cell in found):
        parts = ", ".join(part for cell in cells for part in cell)
        raise WeightsError(
            f"The {layer.kind} layer {name} has the arrays {parts}; expected {' or '.join(map(', '.join, forms))}"
            f"{', in each direction' * layer.bidirectional}."
        )
    for cell in found:
        if layer.has_bias != bool({"bias", "b_i"} & cell.keys()):
            raise WeightsError(f"The {layer.kind} layer {name} lacks its bias, or has one that its config excludes.")
        if layer.kind.startswith("CuDNN") and not _is_cudnn(cell):
            raise WeightsError(
                f"The layer {name} is a {layer.kind}, but its arrays are not: expected biases "
                f"[{2 * len(GATES[RECURRENT[layer.kind]])} hidden]."
            )


def _is_cudnn(cell: Mapping[str, Any]) -> bool:
    """Whether the arrays of a cell are those of a CuDNN layer."""
    if set(cell) != set(CELL_PARTS) or len(cell["recurrent_kernel"].shape) != 2:
        return False
    hidden, columns = cell["recurrent_kernel"].shape
    return columns in (3 * hidden, 4 * hidden) and cell["bias"].shape == (2 * columns,)


def _to_direction(name: str, arrays: Mapping[str, np.ndarray], kind: str = "") -> Direction:
    """The cell of these arrays. `kind`: the class of the layer, where it is known."""
    if set(arrays) == set(KERAS_1):
        parts = [[arrays[f"{part}_{gate}"] for gate in "ifco"] for part in "WUb"]
        if any(len({gate.shape for gate in part}) > 1 or not part[0].ndim for part in parts):
            raise WeightsError(f"The gates of the LSTM layer {name} are of different shapes.")
        arrays = dict(zip(CELL_PARTS, (np.concatenate(part, axis=-1) for part in parts), strict=True))
    kernel, recurrent, bias = arrays["kernel"], arrays["recurrent_kernel"], arrays.get("bias")
    hidden = recurrent.shape[0] if recurrent.ndim else 0
    cell = "gru" if hidden and recurrent.shape == (hidden, 3 * hidden) else "lstm"
    if kind and cell != RECURRENT[kind]:
        raise WeightsError(f"The layer {name} is a {kind} with weights {list(recurrent.shape)} for its state.")
    gates = len(GATES[cell])
    biases = [] if bias is None else list(bias) if cell == "gru" and bias.ndim == 2 else [bias]
    # As Keras converts CuDNNLSTM to LSTM.
    if bias is not None and _is_cudnn(arrays) and kernel.shape[1:] == recurrent.shape[1:]:
        kernel = np.concatenate(
            [gate.T.reshape(gate.shape, order="F") for gate in np.split(kernel, gates, axis=1)], axis=1
        )
        recurrent = np.concatenate([gate.T for gate in np.split(recurrent, gates, axis=1)], axis=1)
        biases = np.split(bias, 2)
    if cell == "gru":
        if bias is None and not kind:
            raise WeightsError(
                f"The layer {name} is a GRU without biases, of which weights alone do not show whether it has "
                "reset_after=True. Save the whole model, with model.save('model.keras'), and import that."
            )
        if len(biases) > 2 or any(array.shape[-1:] != (3 * hidden,) for array in (kernel, *biases)):
            raise WeightsError(f"The layer {name}, a GRU, does not fit together. {listing(arrays)}")
        if len(biases) == 1:
            raise WeightsError(f"The layer {name} is a GRU with reset_after=False: {REASONS['reset_after']}.")
        order = KERAS_GATES[GATES[cell]], GATES[cell]
        kernel, recurrent, *biases = (reorder_gates(array, *order) for array in (kernel, recurrent, *biases))
    return direction(name, kernel, recurrent, *biases)


def _from_weights(
    file: KerasFile,
    arrays: Arrays,
    stored: Mapping[str, Mapping[Place, str]],
    class_name: str,
    order: Sequence[str],
    recurrent_activation: str | None,
    input_activation: str | None,
) -> Imported:
    """The classifier in a file of weights alone, or of a model whose config does not show what it computes."""
    recurrent = [layer for layer, parts in stored.items() if _is_recurrent(parts, arrays)]
    known = list(order) if order or class_name else _stored_order(file, recurrent)
    but = f", but its class, {class_name}" if class_name else ""
    notes = [
        f"the file does not hold what the model computes{but}: assumed are recurrent layers one after another, which "
        "read the rows from the top, without masking, and a dense layer on the last output"
    ]
    cells = [{place.part: arrays[path] for place, path in stored[name].items()} for name in recurrent]
    if recurrent_activation is None and not all(map(_is_cudnn, cells)):
        notes.append(_assumed_activation(file, [path for name in recurrent for path in stored[name].values()]))
    if any(place.backward for name in recurrent for place in stored[name]):
        notes.append("of the Bidirectional layers merge_mode=concat is assumed, Keras's default")
    named = {}
    for layer, parts in stored.items():
        paths = {place.part: path for place, path in parts.items()}
        if layer not in recurrent and set(paths) in map(set, DENSE_FORMS):
            named[layer] = dense_name(paths["kernel"])
    places = {path: place for layer in recurrent for place, path in stored[layer].items()}
    imported = assemble(
        {path: arrays[path] for parts in stored.values() for path in parts.values()},
        places.get,
        FORMS,
        _to_direction,
        order=[named.get(name, name) for name in known],
        numbered=False,
        input_activation=input_activation,
        as_stored=bool(file.layers),
    )
    layer_of = {name: layer for layer, name in named.items()}
    for note in notes:
        if note.startswith("warning"):
            warnings.warn(note, UserWarning, stacklevel=3)
    names = tuple(layer_of.get(name, name) for name in imported.names)
    return replace(imported, names=names, notes=(*notes, *imported.notes))


def _relevant(found: Arrays, file: KerasFile) -> dict[str, Any]:
    """The weights: without what the file does not list, the optimizer's state, and whole numbers such as seeds."""
    listed = {path for paths in file.layers.values() for path in paths}
    return {
        path: array
        for path, array in found.items()
        if (path in listed if listed else not path.startswith(("optimizer", "metrics/")))
        and ("float" in str(array.dtype) or _in_cell(path) or _named_part(path.rpartition("/")[2]))
    }


def _places(arrays: Arrays, layers: Mapping[str, Sequence[str]]) -> dict[str, Place]:
    """Where each array belongs. The parts of dense and other layers have places too."""
    owner = {path: layer for layer, paths in layers.items() for path in paths}
    scopes: dict[str, tuple[str, str]] = {}  # of each array, and the part
    for path in arrays:
        scope, _, last = path.rpartition("/")
        if scope.endswith("/vars") and last.isdecimal() and not owner:
            scope, number = scope.removesuffix("/vars"), int(last)
            second = arrays.get(f"{scope}/vars/1")
            is_dense = not CELL.search(f"/{scope}") and (second is None or len(second.shape) == 1)
            fields = CELL_PARTS[::2] if is_dense else CELL_PARTS
            scopes[path] = CELL.sub("", scope), fields[number] if number < len(fields) else f"vars/{last}"
        elif (named := _named_part(last)) is None:
            scopes[path] = scope, last
        else:
            scopes[path] = CELL.sub("", "/".join(filter(None, [scope, named[0]]))), named[1]
    matches = {scope: DIRECTION.fullmatch(scope) for scope, _ in scopes.values()}
    ways = {(match[1], match[2]) for match in matches.values() if match}
    places: dict[str, Place] = {}
    taken: dict[Place, str] = {}
    for path, (scope, part) in scopes.items():
        layer, backward = scope, False
        if (match := matches[scope]) and {(match[1], "forward"), (match[1], "backward")} <= ways:
            layer, backward = match[1], match[2] == "backward"
        place = Place(owner.get(path, layer), part, backward)
        if place in taken:
            raise WeightsError(
                f"The layer {place.layer} has several layers in it, with {taken[place]} and {path}; expected each "
                "recurrent layer to be a layer of the model."
            )
        places[path] = place
        taken[place] = path
    return places


def _named_part(last: str) -> tuple[str, str] | None:
    """What stands before the name of a part, such as lstm_1 in lstm_1_W_i, and the part."""
    match = PART.fullmatch(last) or re.fullmatch(f"(.*?)_{PART.pattern}", last)
    if match is None:
        return None
    prefix, part = (match[1] if match.re is not PART else ""), match.groups()[-1]
    return prefix, IN_KERAS_1.get(part, part)


def _in_cell(path: str) -> bool:
    return CELL.search("/" + path.rpartition("/vars/")[0]) is not None


def _is_recurrent(parts: Mapping[Place, str], arrays: Arrays) -> bool:
    """Whether these are the parts of an LSTM or a GRU. Raises WeightsError where they are of another such layer."""
    name, found = next(iter(parts.values())), {place.part for place in parts}
    if found & {"W_z", "W_r"}:
        raise WeightsError(f"The layer of {name} is a GRU of Keras 1: {REASONS['reset_after']}.")
    recurrent = any(map(_in_cell, parts.values())) or bool({"recurrent_kernel", "U_i"} & found)
    if recurrent and (other := found - {part for form in FORMS for part in form}):
        raise WeightsError(
            f"The layer of {name} has more than an LSTM or a GRU: {', '.join(sorted(other))}. {listing(arrays)}"
        )
    return recurrent


def _stored_order(file: KerasFile, recurrent: Sequence[str]) -> list[str]:
    """The order of the layers in a file without config; [] where the file does not determine it.

    The lists of layers are in the order of the network in Sequential and functional models. In others, which the names
    of the model or of its variables show, they are in the order in which the program made the layers.
    """
    if not file.layers:
        lists = {match and match[1] for match in map(NUMBERED.fullmatch, recurrent)}
        is_list = len(lists) == 1 and None not in lists
        return sorted(recurrent, key=natural) if is_list and DEFAULT_NAME.fullmatch(file.name) else []
    for layer in recurrent:
        for path in file.layers[layer]:
            first, _, rest = path.partition(f"{layer}/")[2].partition("/")
            if rest and not first.startswith(layer) and not DEFAULT_NAME.fullmatch(first):
                return []
    return list(recurrent)


def _assumed_activation(file: KerasFile, paths: Sequence[str]) -> str:
    """What is assumed of the gates of a file that does not hold their activation."""
    version = name_in_file(file.version) or ("1" if any(path.endswith(("_U_i", "_U_i:0")) for path in paths) else "")
    numbers = re.match(r"(\d+)(?:\.(\d+))?", version)
    recent = numbers is not None and (int(numbers[1]), int(numbers[2] or 0)) >= (2, 3)
    if recent or any(re.search(r"(lstm|gru)_cell(_\d+)?/|/cell/|/vars/", path) for path in paths):
        return "the file does not hold the activations: assumed are Keras's defaults, sigmoid in the gates and tanh"
    by = f"Keras {version}" if version else "a version of Keras that it does not name"
    return (
        f"warning: the file holds no activations. It is by {by}; before Keras 2.3 and in TensorFlow 1 the gates had "
        "hard_sigmoid unless the program set another. sigmoid and tanh are assumed: if that is wrong, the model "
        "computes something else. Look for recurrent_activation (Keras 1: inner_activation) in the program, and "
        "say it with --recurrent-activation sigmoid or hard_sigmoid_keras2."
    )
