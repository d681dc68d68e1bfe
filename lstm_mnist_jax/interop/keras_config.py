"""The architecture in the config of a Keras model, of any age: whether it is the classifier, layer by layer."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.assembly import MAX_NAME


class ConfiguredLayer(NamedTuple):
    """A layer of a model's config; of a `Bidirectional` layer, the layer in it.

    Attributes:
      kind: its class.
      name: its name; that of the `Bidirectional` layer.
      config: its settings.
      numbered: its name in Keras 3's .weights.h5.
      bidirectional: whether it is in a `Bidirectional` layer.
    """

    kind: str
    name: str
    config: Mapping[str, Any]
    numbered: str
    bidirectional: bool = False

    @property
    def has_bias(self) -> bool:
        return bool(self.config.get("use_bias", self.config.get("bias", True)))  # of Keras 2 and 3, and of Keras 1

    @property
    def array_names(self) -> list[str]:
        """Of a layer that scales features, the arrays that the file has of it."""
        if self.kind == "BatchNormalization":
            parts = {"gamma": self.config.get("scale", True), "beta": self.config.get("center", True)}
            return [name for name, present in parts.items() if present] + ["moving_mean", "moving_variance"]
        fixed = self.kind != "Normalization" or self.config.get("mean") is not None
        return [] if fixed else ["mean", "variance"]

    @property
    def has_arrays(self) -> bool:
        return self.kind in (*RECURRENT, "Dense") or bool(self.array_names)

    @property
    def activation(self) -> str:
        """Of a `Dense` layer, or a layer of an activation alone."""
        if self.kind == "Softmax":
            return "softmax"
        return "relu" if self.kind == "ReLU" else str(self.config.get("activation") or "linear")


MODELS = ("Sequential", "Functional", "Model")
"""The classes of models whose config determines what they compute."""

RECURRENT = {"LSTM": "lstm", "CuDNNLSTM": "lstm", "GRU": "gru", "CuDNNGRU": "gru"}
"""The cells of recurrent layers, by class."""

HIDDEN = ("relu", "tanh", "linear")
"""The activations of hidden dense layers."""

OUTPUT = ("linear", "softmax", "log_softmax")

POOLING = {"Flatten": "all", "GlobalMaxPooling1D": "max", "GlobalAveragePooling1D": "mean"}

AFFINE = ("Rescaling", "Normalization", "BatchNormalization")
"""Layers that multiply each feature by a number and add another; they are folded into the layer after them."""

WITHOUT_EFFECT = (
    *("Dropout", "SpatialDropout1D", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization"),
)
"""Layers that compute nothing after training."""

ORDINARY = {"go_backwards": (False,), "return_state": (False,), "time_major": (False,)}
CHANNELS = {"data_format": ("channels_last", None)}
LAYERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "LSTM": {
        "activation": ("tanh", "relu", "linear", "hard_sigmoid"),
        "recurrent_activation": ("sigmoid", "hard_sigmoid"),
        "inner_activation": ("sigmoid", "hard_sigmoid"),
        **ORDINARY,
    },
    "CuDNNLSTM": ORDINARY,
    "GRU": {
        "reset_after": (True,),
        "activation": ("tanh",),
        "recurrent_activation": ("sigmoid",),
        "inner_activation": ("sigmoid",),
        **ORDINARY,
    },
    "CuDNNGRU": ORDINARY,
    "Dense": {},
    "InputLayer": {},
    "Reshape": {},
    "Flatten": CHANNELS,
    "GlobalMaxPooling1D": CHANNELS | {"keepdims": (False,)},
    "GlobalAveragePooling1D": CHANNELS | {"keepdims": (False,)},
    **{kind: {} for kind in (*AFFINE, *WITHOUT_EFFECT)},
    "Activation": {},
    "ReLU": {"max_value": (None,), "negative_slope": (0, None), "threshold": (0, None)},
    "Softmax": {"axis": (-1, 1)},
}
"""The layers that a model may have, and their settings."""

UNNAMED = {"GRU": {"reset_after": False}}
"""The settings of layers in whose configs they are missing, as in those of old versions."""

OWN = "this package's LSTM has no other, and its GRU only tanh and sigmoid"
REASONS = {
    "activation": OWN,
    "recurrent_activation": OWN,
    "inner_activation": OWN,
    "reset_after": "its reset gate multiplies the state before the product with the recurrent kernel, and that of this "
    "classifier's GRU multiplies the product",
    "Masking": "it skips the time steps whose pixels all have the masked value",
    "Embedding": "it reads whole numbers, not pixels",
    "Permute": "the model may read columns; if it does, save its weights alone, with "
    "model.save_weights('model.weights.h5'), and import these with --task columns",
    "TimeDistributed": "its layer is applied to every time step",
    **dict.fromkeys(
        ("Lambda", "GetItem", "SlicingOpLambda"),
        "if it takes the outputs at the last step, outputs[:, -1], save the model's weights alone, with "
        "model.save_weights('model.weights.h5'), and import these; of Bidirectional layers, with --pooling last_step",
    ),
}
"""Why a layer or a setting is not accepted, where its name does not say it."""

SAME = ("units", "output_dim", "activation", "recurrent_activation", "inner_activation", "use_bias", "reset_after")
"""The settings that the two layers of a `Bidirectional` layer share."""


SHAPES = ("batch_shape", "batch_input_shape")


class Architecture(NamedTuple):
    """What a model computes.

    Attributes:
      layers: from the input to the output.
      network: fields of the `ModelConfig`, apart from the widths.
      image_rows: the number of rows of an image, where it is known.
    """

    layers: list[ConfiguredLayer]
    network: dict[str, Any]
    image_rows: int | None


def has_layers(config: Mapping[str, Any]) -> bool:
    """Whether the config of a model lists its layers; that of a subclass of `keras.Model` may not."""
    inner = config.get("config")
    return config.get("class_name") in MODELS or (isinstance(inner, Mapping) and "layers" in inner)


def read_architecture(config: Mapping[str, Any], version: str) -> Architecture:
    """What the config of a model determines.

    Args:
      config: decoded JSON with the class of the model and its config, which has layers.
      version: the version of Keras that wrote it; empty where it is not known.

    Raises:
      WeightsError: it is not the classifier, or not a config as Keras writes it.
    """
    try:
        layers = list(_layers(config))
        return Architecture(layers, check_architecture(layers, version), _image_rows(layers))
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"The config of the model is not as Keras writes it ({type(error).__name__}: {name_in_file(str(error))})."
        ) from error


def _layers(config: Mapping[str, Any]) -> Iterator[ConfiguredLayer]:
    """The layers of a model from its input to its output."""
    inner = config["config"]
    items = inner["layers"] if isinstance(inner, Mapping) else inner  # a list in Sequential models before Keras 2.2.3
    counts = Counter[str]()
    layers = [_layer(item, counts) for item in items]
    if len({layer.name for layer in layers}) < len(layers) or not layers:
        raise WeightsError("The config of the model has no layers, or two of one name.")
    is_graph = config["class_name"] in MODELS or any("inbound_nodes" in item for item in items)
    if config["class_name"] == "Sequential" or not is_graph:
        yield from layers
        return
    after: dict[str, ConfiguredLayer] = {}
    for layer, item in zip(layers, items, strict=True):
        inputs = list(_tensors(item.get("inbound_nodes", [])))
        if len(inputs) > 1 or (inputs or [""])[0] in after:
            raise WeightsError(
                f"The layer {layer.name} is not in a chain: expected a model in which each layer reads the output of "
                "the one before, once."
            )
        after[(inputs or [""])[0]] = layer
    name = ""
    for _ in layers:
        if name not in after:
            raise WeightsError(f"No layer reads the output of {name or 'the input'}; expected a chain of layers.")
        layer = after[name]
        yield layer
        name = layer.name
    outputs = list(_tensors(inner.get("output_layers", [])))
    if outputs not in ([], [name]):
        raise WeightsError(f"The outputs of the model are those of {', '.join(outputs)}, expected that of {name}.")


def _layer(item: Mapping[str, Any], counts: Counter[str]) -> ConfiguredLayer:
    """A layer of a config. `counts` is of the layers before it, by their classes in snake case."""
    kind, config = name_in_file(item["class_name"]), item["config"]
    name = name_in_file(config.get("name", kind))
    snake = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
    numbered = f"{snake}_{counts[snake]}" if counts[snake] else snake
    counts[snake] += 1
    if kind != "Bidirectional":
        return ConfiguredLayer(kind, name, config, numbered)
    forward, backward = config["layer"], config.get("backward_layer") or {}
    kind, inner = name_in_file(forward["class_name"]), forward["config"]
    other = backward.get("config", inner | {"go_backwards": True})
    if config.get("merge_mode", "concat") != "concat":
        raise WeightsError(
            f"The Bidirectional layer {name} has merge_mode={name_in_file(str(config['merge_mode']))}, expected "
            "concat: the next layer of this classifier takes the outputs of both directions side by side."
        )
    if kind not in RECURRENT or inner.get("go_backwards") or not other.get("go_backwards"):
        raise WeightsError(
            f"The Bidirectional layer {name} has a {kind} that does not read forwards, or one that does not read "
            "backwards; expected an LSTM or a GRU and the same backwards."
        )
    if backward.get("class_name", kind) != kind or any(inner.get(key) != other.get(key) for key in SAME):
        raise WeightsError(
            f"The two directions of the Bidirectional layer {name} differ; this classifier has equal ones."
        )
    shapes = {key: config[key] for key in SHAPES if key in config}
    return ConfiguredLayer(kind, name, inner | shapes, numbered, bidirectional=True)


def _tensors(node: Any) -> Iterator[str]:
    """The names of the layers whose outputs a node of a functional model reads, in the notation of any Keras."""
    if isinstance(node, Mapping):
        yield from _tensors(
            node["config"]["keras_history"] if "__keras_tensor__" in node.values() else [*node.values()]
        )
    elif isinstance(node, list | tuple):
        if len(node) >= 3 and isinstance(node[0], str) and all(type(number) is int for number in node[1:3]):
            yield name_in_file(node[0])
            node = node[3:]
        for part in node:
            yield from _tensors(part)


def check_architecture(layers: Sequence[ConfiguredLayer], version: str) -> dict[str, Any]:
    """The fields of the `ModelConfig` in a model's layers from the input to the output, apart from the widths.

    Raises:
      WeightsError: the model is not the classifier.
    """
    for layer in layers:
        _check_settings(layer)
    recurrent = [layer for layer in layers if layer.kind in RECURRENT]
    kinds = [layer.kind for layer in layers if layer.kind in (*RECURRENT, "Dense")]
    first = next((place for place, kind in enumerate(kinds) if kind in RECURRENT), 0)
    after = first + len(recurrent)  # the place of the first Dense layer after them
    if not recurrent or "Dense" in kinds[first:after] or after == len(kinds):
        found = ", ".join(kinds) or "none"
        raise WeightsError(f"Expected LSTM or GRU layers, then Dense layers; the model has {found}.")
    return _activations(recurrent, version) | _order(layers, first, after)


def _check_settings(layer: ConfiguredLayer) -> None:
    """Raises WeightsError where a layer, or a setting of it, is one that the classifier does not have."""
    kind, name, config = layer[:3]
    if kind not in LAYERS:
        reason = f": {REASONS[kind]}" if kind in REASONS else ""
        raise WeightsError(f"The layer {name} is a {kind}, which this classifier does not have{reason}.")
    found = {**UNNAMED.get(kind, {}), **config}
    for setting, values in LAYERS[kind].items():
        if setting in found and not any(found[setting] == value for value in values):
            why = f": {REASONS[setting]}" if setting in REASONS else ""
            raise _unexpected(layer, setting, found[setting], values, why)


def _unexpected(layer: ConfiguredLayer, setting: str, value: Any, values: Sequence[Any], why: str = "") -> WeightsError:
    expected = " or ".join(map(str, values[:4]))
    return WeightsError(
        f"The {layer.kind} layer {layer.name} has {setting}={name_in_file(str(value))}, expected {expected}{why}."
    )


def _order(layers: Sequence[ConfiguredLayer], first: int, after: int) -> dict[str, Any]:
    """The pooling, and the activation of the hidden dense layers: what the order of the layers determines.

    The first `first` of the dense and recurrent layers stand before the recurrent layers, and `after` before the dense
    layers that follow these.
    """
    done, pooling, sequence = 0, "last", True
    activations: list[str] = []  # after each dense layer that follows the recurrent ones
    for layer in layers:
        kind, name, config = layer[:3]
        fits = True
        if kind in RECURRENT:
            done += 1
            last, sequence = layer, bool(config.get("return_sequences", False))
            if done < after and not sequence:
                raise _unexpected(layer, "return_sequences", sequence, (True,))
        elif kind == "Dense" and done < first:
            done += 1
            if layer.activation != "linear":
                raise _has_activation(layer, "before the recurrent layers")
        elif kind == "Dense":
            if sequence:
                why = ": the last output alone enters the Dense layer"
                raise _unexpected(last, "return_sequences", sequence, (False,), why)
            activations.append(layer.activation)
        elif kind in POOLING or (kind == "Reshape" and done == after):
            fits = done == after and (sequence or kind == "Flatten") and len(config.get("target_shape", [0])) == 1
            if sequence:
                pooling, sequence = POOLING.get(kind, "all"), False
        elif kind == "Reshape":
            fits = not done
        elif kind in AFFINE:
            axis, last_axis = config.get("axis", -1), 2 if sequence else 1
            if (axis if isinstance(axis, list) else [axis]) not in ([], [None], [-1], [last_axis]):
                raise _unexpected(layer, "axis", axis, (-1,), ": one number for each feature")
        elif kind in ("Activation", "ReLU", "Softmax") and layer.activation != "linear":
            if not activations:
                before = (
                    "before the recurrent layers"
                    if done <= first
                    else "between the recurrent layers and the dense layers"
                )
                raise _has_activation(layer, before)
            if activations[-1] != "linear":
                softmax = "softmax" in activations[-1] and "softmax" in layer.activation
                twice = f"The layer {name} is an activation after an activation, expected one."
                raise WeightsError("The model has a softmax after a softmax, expected one." if softmax else twice)
            activations[-1] = layer.activation
        if not fits:
            raise WeightsError(f"The layer {name}, a {kind}, stands where this classifier has none.")
    hidden = activations[:-1]
    dense = [layer for layer in layers if layer.kind == "Dense"][first:]
    for layer, activation in zip(dense, activations, strict=True):
        expected = OUTPUT if layer is dense[-1] else HIDDEN
        if activation not in expected:
            raise _unexpected(layer, "activation", activation, expected)
    if len(set(hidden)) > 1:
        raise WeightsError(f"The hidden Dense layers have {', '.join(hidden)}, expected one activation for all.")
    return {"pooling": pooling} | ({"dense_activation": hidden[0]} if hidden else {})


def _has_activation(layer: ConfiguredLayer, where: str) -> WeightsError:
    return WeightsError(
        f"The layer {layer.name} has activation={name_in_file(layer.activation)} {where}, expected none."
    )


def _activations(layers: Sequence[ConfiguredLayer], version: str) -> dict[str, str]:
    """The activations of the recurrent layers, in the words of `ModelConfig`. Raises WeightsError where they differ."""
    network = {"activation": "tanh", "recurrent_activation": "sigmoid"}  # those of CuDNN layers, which have no others
    for name, usual in network.items():
        words = {
            usual
            if layer.kind.startswith("CuDNN")
            else layer.config.get(name.replace("recurrent", "inner")) or layer.config[name]
            for layer in layers
        }
        if len(words) > 1:
            raise WeightsError(
                f"The recurrent layers differ in {name}: {', '.join(sorted(words))}; expected one for all."
            )
        (word,) = words
        if word == "hard_sigmoid":
            major = version.partition(".")[0]
            if not major.isdecimal():
                raise WeightsError(
                    f"The recurrent layers have {name}=hard_sigmoid, which differs between Keras 2 and 3, and the file "
                    "does not hold the version of Keras. Load the model in its Keras, and save it again."
                )
            word = f"hard_sigmoid_keras{3 if int(major) > 2 else 2}"
        network[name] = word
    return network


def _image_rows(layers: Sequence[ConfiguredLayer]) -> int | None:
    """The number of time steps of the first recurrent layer, if it is known. Raises WeightsError: none is a row."""
    shape: list[Any] = []
    for layer in layers:
        kind, name, config = layer[:3]
        shape = next((list(config[key][1:]) for key in SHAPES if config.get(key)), shape)
        if kind == "Reshape":
            target = config["target_shape"]
            rest = math.prod(size for size in target if size != -1)
            known = bool(shape) and all(type(size) is int for size in shape) and rest > 0
            shape = [size if size != -1 else math.prod(shape) // rest if known else None for size in target]
        if kind in RECURRENT:
            if len(shape) == 2 and shape[1] == 1 and shape[0] != 1:
                raise WeightsError(
                    f"The layer {name} reads one number at a time, the pixels of an image; expected its rows. "
                    "Save the model's weights alone, with model.save_weights('model.weights.h5'), and import these "
                    "with --task pixels."
                )
            return shape[0] if len(shape) == 2 and type(shape[0]) is int else None
    return None


def name_in_file(value: Any) -> str:
    """A text of a file for an error. Raises WeightsError for one that no program writes."""
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise WeightsError(f"The file has the name {repr(value)[:100]}, which no program gives.")
    return value
