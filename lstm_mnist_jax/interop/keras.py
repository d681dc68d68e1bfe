"""Keras 1, 2 and 3: `LSTM` layers and a `Dense` one, as a model, or as the contents of its files.

Keras's gates i, f, c, o are those of this package: kernel [in, 4 hidden], recurrent_kernel [hidden, 4 hidden], bias.

- Keras 1 and 2 (and Keras 3's .h5) list the layers and their arrays in attributes: lstm_1/kernel:0 (Keras 2.0 to 2.3),
  lstm_1/lstm_cell/kernel:0 (TensorFlow 2.2 and later), lstm_1_W_i and eleven more (Keras 1, a matrix for each gate).
- Keras 3's .weights.h5 numbers the variables of a layer: layers/lstm/cell/vars/0, 1 and 2; layers/dense/vars/0 and 1.
  The layers are in the order of their numbers: lstm, lstm_1, lstm_2.
- CuDNNLSTM stores each gate's matrices transposed, and two biases.
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
from lstm_mnist_jax.interop.assembly import Arrays, Place, assemble, dense_name, ignoring, listing
from lstm_mnist_jax.interop.files import KerasFile
from lstm_mnist_jax.interop.holds import refuse_unusual
from lstm_mnist_jax.interop.imported import Imported
from lstm_mnist_jax.interop.keras_config import (
    MODELS,
    RECURRENT,
    ConfiguredLayer,
    has_layers,
    name_in_file,
    read_architecture,
)
from lstm_mnist_jax.interop.weights import Direction, direction, from_params, pooling_of
from lstm_mnist_jax.model import Params

if TYPE_CHECKING:
    import keras

KERAS_1 = tuple(f"{kind}_{gate}" for kind in "WUb" for gate in "ifco")
PARTS = Direction._fields[:3]
FORMS = (PARTS[:2], PARTS, KERAS_1, ("W", "U", "b"))
"""The parts of an LSTM layer: without and with bias; of Keras 1, and of it with consume_less="gpu"."""

BIASES = {"bias", "b", "b_i"}

PART = re.compile(r"(recurrent_kernel|kernel|bias|[WUb](?:_[a-z])?)(?:_\d+)?(?::0)?")
NUMBERED = re.compile(r"(.*(?:^|/)(?:layers|container\w*|\w+_dependencies)/[a-z_]*[a-z])(?:_(\d+))?")
"""A layer of a list of layers in Keras 3's .weights.h5, named by its class, and numbered where there are several."""

DEFAULT_NAME = re.compile(r"(sequential|functional|model)(_\d+)?")
"""The names that Keras gives to Sequential and functional models."""

CELL = re.compile(r"/(?:[^/]*_)?cell(?:_\d+)?$")


def to_model(
    params: Params, image_shape: tuple[int, int] = (28, 28), config: ModelConfig = ModelConfig()
) -> "keras.Model":
    """A Keras model with these parameters, on any backend. Needs Keras 3.

    It takes images as floats from 0 to 1, [batch, height, width], each row a time step, and returns logits
    [batch, classes].

    Args:
      params: the model's parameters.
      image_shape: (height, width) of an image.
      config: the network, whose activations the parameters do not hold.

    Raises:
      WeightsError: the parameters belong to images of another size, or `export keras` cannot hold such a network.
    """
    import keras

    refuse_unusual("keras", config)
    weights = from_params(params)
    pooling_of(weights, config)
    refuse_unusual("keras", weights.config)
    if image_shape[1] != weights.in_features:
        raise WeightsError(f"The parameters take rows of {weights.in_features} numbers, not of {image_shape[1]}.")
    if weights.steps not in (None, image_shape[0]):
        raise WeightsError(f"The parameters take images of {weights.steps} rows, not of {image_shape[0]}.")
    names = {name: name.removesuffix("_keras3") for name in (config.activation, config.recurrent_activation)}
    options = {"activation": names[config.activation], "recurrent_activation": names[config.recurrent_activation]}
    last = len(weights.layers) - 1 if weights.steps is None else len(weights.layers)
    layers = [
        keras.layers.LSTM(hidden, return_sequences=number < last, **options)
        for number, hidden in enumerate(weights.hidden_features)
    ]
    flatten = [] if weights.steps is None else [keras.layers.Flatten()]
    dense = [keras.layers.Dense(len(d.bias), activation=config.dense_activation) for d in weights.dense[:-1]]
    dense.append(keras.layers.Dense(weights.num_classes))
    model = keras.Sequential([keras.Input(image_shape), *layers, *flatten, *dense])
    cells = [layer.forward[:3] for layer in weights.layers]
    model.set_weights([array for arrays in (*cells, *weights.dense) for array in arrays])
    return model


def from_model(model: "keras.Model") -> Params:
    """The parameters of a built `Sequential` or functional Keras model: `LSTM` layers, then `Dense` layers.

    Parameters do not hold activations and pooling. They are those of a `ModelConfig` with the widths of the model:
    tanh and sigmoid in the LSTM layers, relu after hidden `Dense` layers, and the last output, or with `Flatten` all
    outputs. For a model with others, save it, and read the file with `lstm_mnist_jax.interop.formats.read`, which gives
    the config as well.

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
    weights = from_params(params)
    refuse_unusual("keras", weights.config)
    arrays: dict[str, np.ndarray] = {}
    for number, layer in enumerate(weights.layers):
        name = f"lstm_{number}" if number else "lstm"
        arrays |= {f"layers/{name}/cell/vars/{place}": array for place, array in enumerate(layer.forward[:3])}
    for number, dense in enumerate(weights.dense):
        name = f"dense_{number}" if number else "dense"
        arrays |= {f"layers/{name}/vars/{place}": array for place, array in enumerate(dense)}
    return arrays


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
      order: the names of the LSTM layers from the input to the output, where the file does not determine their order:
        it has neither the model's config nor a list of the layers, and the widths allow several orders.
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
    layers: list[ConfiguredLayer] = []
    network, time_steps = dict[str, str](), None
    if has_layers(config):
        version = name_in_file(file.version) or name_in_file(config.get("keras_version", ""))
        layers, network, time_steps = read_architecture(config, version)
        input_activation = "linear"  # as the config has been checked
    places = _places(arrays, file.layers)
    stored: dict[str, dict[str, str]] = {}
    for path, (layer, part) in places.items():
        stored.setdefault(layer, {})[part] = path
    if file.layers:
        stored = {layer: stored[layer] for layer in file.layers if layer in stored}
    lstms = [layer for layer, parts in stored.items() if _is_recurrent(parts, arrays)]
    notes = []
    class_name = name_in_file(config.get("class_name", ""))
    if layers:
        if class_name not in MODELS:
            notes.append(f"the model is of the class {class_name}: it is assumed to compute what its layers say")
        known = _in_config_order(layers, stored, lstms, arrays, by_name=bool(file.layers))
        if order and list(order) not in (known, [name for name in known if name in lstms]):
            raise WeightsError(f"--layer names {', '.join(order)}; the order in the file is {', '.join(known)}.")
    else:
        known = list(order) if order or config else _stored_order(file, lstms)
        but = f", but its class, {class_name}" if class_name else ""
        notes.append(
            f"the file does not hold what the model computes{but}: assumed are LSTM layers one after another, "
            "which read the rows from the top, without masking, and a dense layer on the last output"
        )
    unknown = "recurrent_activation" not in network and recurrent_activation is None
    if unknown and not all(_is_cudnn(stored[name], arrays) for name in lstms):
        notes.append(_assumed_activation(file, [path for name in lstms for path in stored[name].values()]))
    named = {
        layer: dense_name(parts.get("kernel") or parts["W"]) for layer, parts in stored.items() if _is_dense(parts)
    }
    order = [name if name in lstms else named.get(name, name) for name in known]
    cells = {path: Place(*place) for path, place in places.items() if place[0] in lstms}
    options: dict[str, Any] = {"order": order, "numbered": False, "input_activation": input_activation}
    imported = assemble(arrays, cells.get, FORMS, _to_direction, **options)
    layer_of = {name: layer for layer, name in named.items()}
    for note in notes:
        if note.startswith("warning"):
            warnings.warn(note, UserWarning, stacklevel=2)
    return replace(
        imported.with_network(**network),
        names=tuple(layer_of.get(name, name) for name in imported.names),
        time_steps=time_steps,
        notes=(*notes, *imported.notes),
        knows_inputs=any(layer.kind == "Rescaling" for layer in layers),
    )


def _is_dense(parts: Mapping[str, str]) -> bool:
    return parts.keys() <= {"kernel", "bias", "W", "b"} and bool({"kernel", "W"} & parts.keys())


def _relevant(found: Arrays, file: KerasFile) -> dict[str, Any]:
    """The weights: without what the file does not list, the optimizer's state, and whole numbers such as seeds."""
    listed = {path for paths in file.layers.values() for path in paths}
    return {
        path: array
        for path, array in found.items()
        if (path in listed if listed else not path.startswith(("optimizer", "metrics/")))
        and ("float" in str(array.dtype) or _in_cell(path) or _named_part(path.rpartition("/")[2]))
    }


def _places(arrays: Arrays, layers: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, str]]:
    """The layer and the part of each array."""
    owner = {path: layer for layer, paths in layers.items() for path in paths}
    places = {}
    for path in arrays:
        scope, _, last = path.rpartition("/")
        if re.search(r"(^|/)backward_", path):
            raise WeightsError(
                f"The layer of {path} reads both directions (Bidirectional), which importing Keras's files does not "
                "support."
            )
        if scope.endswith("/vars") and last.isdecimal() and not owner:
            layer, number = scope.removesuffix("/vars"), int(last)
            second = arrays.get(f"{scope}/1")
            is_dense = not CELL.search(f"/{layer}") and (second is None or len(second.shape) == 1)
            fields = ("kernel", "bias") if is_dense else PARTS
            places[path] = CELL.sub("", layer), fields[number] if number < len(fields) else f"vars/{last}"
            continue
        if (named := _named_part(last)) is None:
            places[path] = owner.get(path, scope), last
            continue
        prefix, part = named
        scope = "/".join(filter(None, [scope, prefix]))
        places[path] = owner.get(path, CELL.sub("", scope)), part
    by_place = {place: path for path, place in places.items()}
    for path, place in places.items():
        if by_place[place] != path:
            raise WeightsError(
                f"The layer {place[0]} has several layers in it, with {path} and {by_place[place]}; expected each LSTM "
                "layer to be a layer of the model."
            )
    return places


def _named_part(last: str) -> tuple[str, str] | None:
    """What stands before the name of a part, such as lstm_1 in lstm_1_W_i, and the part."""
    match = PART.fullmatch(last) or re.fullmatch(f"(.*?)_{PART.pattern}", last)
    return None if match is None else (match[1] if match.re is not PART else "", match.groups()[-1])


def _in_cell(path: str) -> bool:
    return CELL.search("/" + path.rpartition("/vars/")[0]) is not None


def _is_recurrent(parts: Mapping[str, str], arrays: Arrays) -> bool:
    """Whether these are the parts of an LSTM layer. Raises WeightsError where they are of another recurrent layer."""
    name = next(iter(parts.values()))
    if "W_z" in parts or "W_r" in parts:
        raise WeightsError(f"The layer of {name} is that of a GRU, expected an LSTM.")
    known = {part for form in FORMS for part in form}
    recurrent = any(map(_in_cell, parts.values())) or bool({"recurrent_kernel", "U", "U_i"} & parts.keys())
    if recurrent and (other := parts.keys() - known):
        raise WeightsError(f"The layer of {name} has more than an LSTM: {', '.join(sorted(other))}. {listing(arrays)}")
    return recurrent


def _is_cudnn(parts: Mapping[str, str], arrays: Arrays) -> bool:
    if set(parts) != set(PARTS):
        return False
    bias, recurrent = (arrays[parts[part]].shape for part in ("bias", "recurrent_kernel"))
    return len(recurrent) == 2 and bias == (8 * recurrent[0],)


def _to_direction(name: str, arrays: dict[str, np.ndarray]) -> Direction:
    if set(arrays) == set(KERAS_1):
        parts = [[arrays[f"{kind}_{gate}"] for gate in "ifco"] for kind in "WUb"]
        if any(len({gate.shape for gate in part}) > 1 or not part[0].ndim for part in parts):
            raise WeightsError(f"The gates of the layer {name} are of different shapes.")
        return direction(name, *(np.concatenate(part, axis=-1) for part in parts))
    kernel, recurrent, *biases = arrays.values()
    bias = biases[0] if biases else np.zeros(recurrent.shape[-1:], np.float32)
    hidden = recurrent.shape[0] if recurrent.ndim else 0
    if hidden and kernel.shape[1:] == recurrent.shape[1:] == (3 * hidden,):
        raise WeightsError(f"The layer {name} is that of a GRU, expected an LSTM.")
    fits = kernel.ndim == 2 and kernel.shape[1:] == (4 * hidden,) and recurrent.shape == (hidden, 4 * hidden)
    if fits and bias.shape == (8 * hidden,):  # as Keras converts CuDNNLSTM to LSTM
        kernel = np.concatenate([gate.T.reshape(gate.shape, order="F") for gate in np.split(kernel, 4, axis=1)], axis=1)
        recurrent = np.concatenate([gate.T for gate in np.split(recurrent, 4, axis=1)], axis=1)
        bias = bias[: 4 * hidden] + bias[4 * hidden :]
    return direction(name, kernel, recurrent, bias)


def _stored_order(file: KerasFile, lstms: Sequence[str]) -> list[str]:
    """The order of the layers in a file without config; [] where the file does not determine it.

    The lists of layers are in the order of the network in Sequential and functional models. In others, which the names
    of the model or of its variables show, they are in the order in which the program made the layers.
    """
    if not file.layers:
        return _in_numbered_order(lstms) if DEFAULT_NAME.fullmatch(file.name) else []
    for layer in lstms:
        for path in file.layers[layer]:
            first, _, rest = path.partition(f"{layer}/")[2].partition("/")
            if rest and not first.startswith(layer) and not DEFAULT_NAME.fullmatch(first):
                return []
    return list(lstms)


def _in_numbered_order(lstms: Sequence[str]) -> list[str]:
    """The layers of one list in Keras 3's .weights.h5 in the order of their numbers; [] of others."""
    matches = {name: NUMBERED.fullmatch(name) for name in lstms}
    if not all(matches.values()) or len({match[1] for match in matches.values() if match}) != 1:
        return []
    return sorted(lstms, key=lambda name: int((matches[name] or ["", "", "0"])[2] or 0))


def _in_config_order(
    layers: Sequence[ConfiguredLayer],
    stored: Mapping[str, Mapping[str, str]],
    lstms: Sequence[str],
    arrays: Arrays,
    by_name: bool,
) -> list[str]:
    """The names in the file of the LSTM and Dense layers, in the order of the config. Raises WeightsError."""
    trained = [layer for layer in layers if layer.kind in (*RECURRENT, "Dense")]
    names = [layer.name for layer in trained if layer.kind in RECURRENT]
    dense = [layer.name for layer in trained if layer.kind == "Dense"]
    if by_name:
        if set(names) != set(lstms) or stored.keys() != {*names, *dense}:
            raise WeightsError(
                f"The config of the model names the LSTM layers {', '.join(names)} and the Dense layer "
                f"{', '.join(dense)}, but the file has the arrays of {', '.join(stored) or 'none'}."
            )
        order = [layer.name for layer in trained]
    else:
        kinds = {layer.kind for layer in trained if layer.kind in RECURRENT}
        rest = [name for name in stored if name not in lstms]
        numbered = (_in_numbered_order(lstms) if len(kinds) == 1 else [], lstms), (_in_numbered_order(rest), rest)
        found = [numbers or (list(them) if len(them) == 1 else []) for numbers, them in numbered]
        if (len(found[0]), len(found[1])) != (len(names), len(dense)):
            raise WeightsError(
                f"The config of the model names the LSTM layers {', '.join(names)}, but the file has the arrays of "
                f"{', '.join(stored) or 'none'}, which cannot be matched to them."
            )
        of_lstms, of_dense = map(iter, found)
        order = [next(of_lstms if layer.kind in RECURRENT else of_dense) for layer in trained]
    for layer, name in zip(trained, order, strict=True):
        if layer.has_bias != bool(BIASES & stored[name].keys()):
            kind = "LSTM" if layer.kind in RECURRENT else layer.kind
            raise WeightsError(f"The {kind} layer {name} lacks its bias, or has one that its config excludes.")
        if layer.kind == "CuDNNLSTM" and not _is_cudnn(stored[name], arrays):
            raise WeightsError(f"The layer {name} is a CuDNNLSTM, but its arrays are not: expected biases [8 hidden].")
    return order


def _assumed_activation(file: KerasFile, paths: Sequence[str]) -> str:
    """What is assumed of the gates of a file that does not hold their activation."""
    version = name_in_file(file.version) or ("1" if any(path.endswith(("_U_i", "_U_i:0")) for path in paths) else "")
    numbers = re.match(r"(\d+)(?:\.(\d+))?", version)
    recent = numbers is not None and (int(numbers[1]), int(numbers[2] or 0)) >= (2, 3)
    if recent or any("cell/" in path or "lstm_cell" in path or "/vars/" in path for path in paths):
        return "the file does not hold the activations: assumed are Keras's defaults, sigmoid in the gates and tanh"
    by = f"Keras {version}" if version else "a version of Keras that it does not name"
    return (
        f"warning: the file holds no activations. It is by {by}; before Keras 2.3 and in TensorFlow 1 the gates of "
        "an LSTM had hard_sigmoid unless the program set another. sigmoid and tanh are assumed: if that is wrong, the "
        "model computes something else. Look for recurrent_activation (Keras 1: inner_activation) in the program, and "
        "say it with --recurrent-activation sigmoid or hard_sigmoid_keras2."
    )
