"""The architecture in the config of a Keras model, of any age: whether it is the classifier, layer by layer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.assembly import MAX_NAME

ACTIVATIONS = "this package's LSTM has no other"


class ConfiguredLayer(NamedTuple):
    """A layer of a model's config: its class, its name, and its settings."""

    kind: str
    name: str
    config: Mapping[str, Any]

    @property
    def has_bias(self) -> bool:
        return bool(self.config.get("use_bias", self.config.get("bias", True)))  # of Keras 2 and 3, and of Keras 1


MODELS = ("Sequential", "Functional", "Model")
"""The classes of models whose config determines what they compute."""

RECURRENT = ("LSTM", "CuDNNLSTM")

ORDINARY = {"go_backwards": (False,), "return_state": (False,), "time_major": (False,)}

HIDDEN = ("relu", "tanh", "linear")
"""The activations of hidden dense layers."""

POOLING = {"Flatten": "all", "GlobalMaxPooling1D": "max", "GlobalAveragePooling1D": "mean"}

LAYERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "LSTM": {
        "activation": ("tanh", "relu", "linear", "hard_sigmoid"),
        "recurrent_activation": ("sigmoid", "hard_sigmoid"),
        "inner_activation": ("sigmoid", "hard_sigmoid"),
        **ORDINARY,
    },
    "CuDNNLSTM": ORDINARY,
    "Dense": {"activation": ("linear", "softmax", "log_softmax", None)},
    "InputLayer": {},
    "Reshape": {},
    "Flatten": {"data_format": ("channels_last", None)},
    "GlobalMaxPooling1D": {"data_format": ("channels_last", None)},
    "GlobalAveragePooling1D": {"data_format": ("channels_last", None)},
    "Rescaling": {"scale": (1 / 255,), "offset": (0,)},
    **{kind: {} for kind in ("Dropout", "SpatialDropout1D", "AlphaDropout", "GaussianDropout", "GaussianNoise")},
    "ActivityRegularization": {},
    "Activation": {"activation": ("linear", "softmax", "log_softmax")},
    "Softmax": {"axis": (-1, 1)},
}
"""The layers that a model may have, and their settings."""

REASONS = {
    "Masking": "it skips the time steps whose pixels all have the masked value",
    "Embedding": "it reads whole numbers, not pixels",
    "Permute": "the model may read columns; if it does, save its weights alone, with "
    "model.save_weights('model.weights.h5'), and import these with --task columns",
    "GRU": "this import reads LSTM layers",
    "CuDNNGRU": "this import reads LSTM layers",
    "Bidirectional": "this import reads layers in one direction",
    "TimeDistributed": "its layer is applied to every time step",
}
"""Why a layer is not accepted, where its class does not say it."""


def has_layers(config: Mapping[str, Any]) -> bool:
    """Whether the config of a model lists its layers; that of a subclass of `keras.Model` may not."""
    inner = config.get("config")
    return config.get("class_name") in MODELS or (isinstance(inner, Mapping) and "layers" in inner)


def read_architecture(
    config: Mapping[str, Any], version: str
) -> tuple[list[ConfiguredLayer], dict[str, str], int | None]:
    """The layers in the config of a model, what they say of the network, and the number of rows where it is known.

    Args:
      config: decoded JSON with the class of the model and its config, which has layers.
      version: the version of Keras that wrote it; empty where it is not known.

    Returns:
      The layers from the input to the output; fields of the `ModelConfig`; the number of rows of an image, or None.

    Raises:
      WeightsError: it is not the classifier, or not a config as Keras writes it.
    """
    try:
        layers = list(_layers(config))
        return layers, check_architecture(layers, version), _image_rows(layers)
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
    layers = [
        ConfiguredLayer(
            name_in_file(item["class_name"]),
            name_in_file(item["config"].get("name", item["class_name"])),
            item["config"],
        )
        for item in items
    ]
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


def check_architecture(layers: Sequence[ConfiguredLayer], version: str) -> dict[str, str]:
    """The fields of the `ModelConfig` in a model's layers from the input to the output, apart from the widths.

    Raises:
      WeightsError: the model is not the classifier.
    """
    for kind, name, _ in layers:
        if kind not in LAYERS:
            reason = f": {REASONS[kind]}" if kind in REASONS else ""
            raise WeightsError(f"The layer {name} is a {kind}, which this classifier does not have{reason}.")
    trained = ["LSTM" if kind in RECURRENT else kind for kind, *_ in layers if kind in (*RECURRENT, "Dense")]
    before, lstms = (trained.index("LSTM") if "LSTM" in trained else 0), trained.count("LSTM")
    read = before + lstms  # layers up to the last LSTM
    if not lstms or trained[before:read] != ["LSTM"] * lstms or read == len(trained):
        raise WeightsError(f"Expected LSTM layers, then Dense layers; the model has {', '.join(trained) or 'none'}.")
    if sum(kind == "Softmax" or "softmax" in str(config.get("activation")) for kind, _, config in layers) > 1:
        raise WeightsError("The model has a softmax after a softmax, expected one at most.")
    pooling = next((POOLING[kind] for kind, *_ in layers if kind in POOLING), "last")
    stands = {"Reshape": 0, "Rescaling": 0, "Softmax": len(trained)} | dict.fromkeys(POOLING, read)
    done, hidden = 0, []
    for kind, name, config in layers:
        if stands.get(kind, done) != done:
            raise WeightsError(f"The layer {name}, a {kind}, stands where this classifier has none.")
        done += kind in (*RECURRENT, "Dense")
        found, settings = dict(config), LAYERS[kind]
        if kind in RECURRENT:
            returned: tuple[bool, ...] = (done < read or pooling != "last",)
            if done == read and pooling == "all":
                returned = (True, False)  # Flatten changes nothing after the last output
            settings = settings | {"return_sequences": returned}
            found.setdefault("return_sequences", False)
            if done == read and not found["return_sequences"]:
                pooling = "last"
        activation = found.get("activation") or "linear"
        if kind in ("Dense", "Activation") and done < len(trained):
            if done <= read and activation != "linear":
                where = "before the LSTM layers" if done <= before else "between the LSTM layers and the dense layers"
                raise WeightsError(
                    f"The layer {name} has activation={name_in_file(activation)} {where}, expected none."
                )
            settings = settings | {"activation": (*HIDDEN, None)}
            if done > read and kind == "Dense":
                hidden.append(activation)
            elif done > read and activation != "linear":
                if hidden[-1] != "linear":
                    raise WeightsError(f"The layer {name} is an activation after an activation, expected one.")
                hidden[-1] = activation
        for setting, values in settings.items():
            if setting in found and not any(found[setting] == value for value in values):
                value, expected = name_in_file(str(found[setting])), " or ".join(map(str, values[:4]))
                why = f": {ACTIVATIONS}" if setting.endswith("activation") and kind == "LSTM" else ""
                why = why or (": the last output alone enters the Dense layer" if setting == "return_sequences" else "")
                raise WeightsError(f"The {kind} layer {name} has {setting}={value}, expected {expected}{why}.")
    network = {"pooling": pooling} | _activations(layers, version)
    if len(set(hidden)) > 1:
        raise WeightsError(f"The hidden Dense layers have {', '.join(hidden)}, expected one activation for all.")
    return network | ({"dense_activation": hidden[0]} if hidden else {})


def _activations(layers: Sequence[ConfiguredLayer], version: str) -> dict[str, str]:
    """The activations of the LSTM layers, in the words of `ModelConfig`. Raises WeightsError where they differ."""
    found: dict[str, set[str]] = {"activation": set(), "recurrent_activation": set()}
    for layer in layers:
        if layer.kind in RECURRENT:
            usual = {"activation": "tanh"} | ({"recurrent_activation": "sigmoid"} if layer.kind == "CuDNNLSTM" else {})
            config = usual | {name.replace("inner_", "recurrent_"): value for name, value in layer.config.items()}
            for name, words in found.items():
                words.add(config.get(name, ""))
    for name, words in found.items():
        if len(words) > 1:
            raise WeightsError(f"The LSTM layers differ in {name}: {', '.join(sorted(words))}; expected one for all.")
    network = {name: words.pop() for name, words in found.items()}
    for name, word in network.items():
        if word == "hard_sigmoid":
            major = version.partition(".")[0]
            if not major.isdecimal():
                raise WeightsError(
                    f"The LSTM layers have {name}=hard_sigmoid, which differs between Keras 2 and 3, and the file does "
                    "not hold the version of Keras. Load the model in its Keras, and save it again."
                )
            network[name] = f"hard_sigmoid_keras{3 if int(major) > 2 else 2}"
    return {name: word for name, word in network.items() if word}


def _image_rows(layers: Sequence[ConfiguredLayer]) -> int | None:
    """The number of time steps of the first LSTM layer, if it is known. Raises WeightsError where none is a row."""
    shape: list[Any] = []
    for kind, name, config in layers:
        shape = next((list(config[key][1:]) for key in ("batch_shape", "batch_input_shape") if config.get(key)), shape)
        if kind == "Reshape":
            shape = _reshaped(shape, config["target_shape"])
        if kind in RECURRENT:
            if len(shape) == 2 and shape[1] == 1 and shape[0] != 1:
                raise WeightsError(
                    f"The LSTM layer {name} reads one number at a time, the pixels of an image; expected its rows. "
                    "Save the model's weights alone, with model.save_weights('model.weights.h5'), and import these "
                    "with --task pixels."
                )
            return shape[0] if len(shape) == 2 and type(shape[0]) is int else None
    return None


def _reshaped(shape: Sequence[Any], target: Sequence[Any]) -> list[Any]:
    """The shape after a Reshape layer, whose target may have one -1."""
    rest = math.prod(size for size in target if size != -1)
    known = bool(shape) and all(type(size) is int for size in shape) and rest > 0
    return [size if size != -1 else math.prod(shape) // rest if known else None for size in target]


def name_in_file(value: Any) -> str:
    """A text of a file for an error. Raises WeightsError for one that no program writes."""
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise WeightsError(f"The file has the name {repr(value)[:100]}, which no program gives.")
    return value
