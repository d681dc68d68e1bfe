"""Keras 3: `LSTM` layers and a `Dense` one, as a model, or as the arrays of its weights files.

Keras's gates i, f, c, o are those of this package: kernel [in, 4 hidden], recurrent_kernel [hidden, 4 hidden], bias.
A .weights.h5 file numbers the variables of a layer: layers/lstm/cell/vars/0, 1 and 2; layers/dense/vars/0 and 1.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.weights import Arrays, Imported, Layer, Weights, assemble, check, from_params, to_params
from lstm_mnist_jax.model import Params

if TYPE_CHECKING:
    import keras

CELL = re.compile(r"((?:.*/)?[^/]*cell[^/]*)/(?:vars/([0-2])|(kernel|recurrent_kernel|bias)(?::0)?)")


def to_model(params: Params, image_shape: tuple[int, int] = (28, 28)) -> "keras.Model":
    """A Keras model with these parameters, on any backend. Needs Keras 3.

    It takes images as floats from 0 to 1, [batch, height, width], each row a time step, and returns logits
    [batch, classes].

    Raises:
      WeightsError: the parameters belong to images of another width.
    """
    import keras

    weights = from_params(params)
    if image_shape[1] != weights.in_features:
        raise WeightsError(f"The parameters take rows of {weights.in_features} numbers, not of {image_shape[1]}.")
    last = len(weights.layers) - 1
    layers = [
        keras.layers.LSTM(hidden, return_sequences=number < last)
        for number, hidden in enumerate(weights.hidden_features)
    ]
    model = keras.Sequential([keras.Input(image_shape), *layers, keras.layers.Dense(weights.num_classes)])
    model.set_weights([array for layer in weights.layers for array in layer] + list(weights[1:]))
    return model


def from_model(model: "keras.Model") -> Params:
    """The parameters of a built Keras model: `LSTM` layers and one `Dense` layer, with their biases.

    Raises:
      WeightsError: it is another network.
    """
    check_architecture([(type(layer).__name__, layer.get_config()) for layer in model.layers])
    arrays = {layer.name: layer.get_weights() for layer in model.layers}
    found = {f"{name}/{number}": array for name, items in arrays.items() for number, array in enumerate(items)}
    trained = {name: items for name, items in arrays.items() if items}
    for name, items in trained.items():
        if len(items) != (2 if name == list(trained)[-1] else 3):
            raise WeightsError(f"The layer {name} has {len(items)} arrays; every layer must have its bias.")
    *layers, dense = trained.values()
    weights = Weights(tuple(Layer(*items) for items in layers), *dense)
    return to_params(check(Imported(weights, tuple(trained)), found).weights)


def to_arrays(params: Params) -> dict[str, np.ndarray]:
    """The arrays of a .weights.h5 file, by their paths in it, as `keras.Sequential` names its layers there."""
    weights = from_params(params)
    arrays: dict[str, np.ndarray] = {}
    for number, layer in enumerate(weights.layers):
        name = f"lstm_{number}" if number else "lstm"
        arrays |= {f"layers/{name}/cell/vars/{place}": array for place, array in enumerate(layer)}
    return arrays | {f"layers/dense/vars/{place}": array for place, array in enumerate(weights[1:])}


def from_arrays(found: Arrays, order: Sequence[str] = ()) -> Imported:
    """The classifier in arrays by their paths in a file; for `order` see `assemble`. Raises WeightsError."""
    found = {name: array for name, array in found.items() if not name.startswith(("optimizer", "metrics/"))}
    return assemble(found, _place_of, [Layer._fields], lambda _, arrays: Layer(**arrays), order=order)


def _place_of(name: str) -> tuple[str, str] | None:
    """The layer and the part of an array."""
    if (match := CELL.fullmatch(name)) is None:
        return None
    scope, number, part = match.groups()
    if "backward_layer" in scope or "/backward_" in scope:
        raise WeightsError(f"The layer of {scope} reads both directions, which this classifier does not.")
    return scope.removesuffix("/cell"), part or Layer._fields[int(number)]


LAYERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "LSTM": {"activation": ("tanh",), "recurrent_activation": ("sigmoid",), "go_backwards": (False,)},
    "Dense": {"activation": ("linear", "softmax")},
    "InputLayer": {},
    "Reshape": {},
    "Rescaling": {"scale": (1 / 255,), "offset": (0,)},
    "Dropout": {},
    "Activation": {"activation": ("linear", "softmax")},
    "Softmax": {"axis": (-1,)},
}
"""The layers that a model may have, and their settings."""


def check_architecture(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raises WeightsError where a model, by the kind and the config of each layer, is another than the classifier."""
    for kind, config in layers:
        if kind not in LAYERS:
            raise WeightsError(f"The layer {config.get('name')} is a {kind}, which this classifier does not have.")
    trained = [kind for kind, _ in layers if kind in ("LSTM", "Dense")]
    if len(trained) < 2 or trained != ["LSTM"] * (len(trained) - 1) + ["Dense"]:
        raise WeightsError(f"Expected LSTM layers, then one Dense layer; the model has {', '.join(trained) or 'none'}.")
    done = 0
    for kind, config in layers:
        name = config.get("name", kind)
        place = {"Reshape": 0, "Rescaling": 0, "Activation": len(trained), "Softmax": len(trained)}.get(kind, done)
        if place != done:
            raise WeightsError(f"The layer {name}, a {kind}, stands where this classifier has none.")
        done += kind in ("LSTM", "Dense")
        settings = LAYERS[kind] | ({"return_sequences": (done < len(trained) - 1,)} if kind == "LSTM" else {})
        for setting, values in settings.items():
            if setting in config and config[setting] not in values:
                expected = " or ".join(map(str, values))
                raise WeightsError(f"The {kind} layer {name} has {setting}={config[setting]}, expected {expected}.")
