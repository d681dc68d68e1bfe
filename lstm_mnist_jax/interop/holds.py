"""What the files of each format can hold of a network."""

from typing import Any

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.errors import WeightsError

NOT_IN_WEIGHTS = ("forget_bias", "chrono_steps", "dense_stddev", "dropout_rate", "precision")
"""Fields that matter to initialization and training alone, and how products are computed."""

NETWORK = ("activation", "recurrent_activation", "pooling", "dense_activation")
"""Fields of a `ModelConfig` that the shapes of weights do not show."""

READING = ("task", "sequence_length", "permutation_seed")
"""How an image is read."""

ANY = None
DENSE: dict[str, Any] = {"dense_features": ANY, "dense_activation": ANY}
ACTIVATIONS: dict[str, Any] = {"activation": ANY, "recurrent_activation": ANY}
CELLS: dict[str, Any] = {"cell": ("gru",), "recurrent_bias": ANY, "bidirectional": ANY}
HOLDS: dict[str, dict[str, Any]] = {
    "tf1": {},
    "torch": DENSE | CELLS | {"pooling": ANY},
    "keras": DENSE
    | CELLS
    | {
        "pooling": ("all", "mean", "max"),
        "activation": ("relu", "linear", "hard_sigmoid_keras3"),
        "recurrent_activation": ("hard_sigmoid_keras3",),
    },
    "flax": DENSE | CELLS | ACTIVATIONS | {"pooling": ANY},
    "safetensors": DENSE | CELLS | ACTIVATIONS | {"pooling": ANY} | dict.fromkeys(READING, ANY),
    "onnx": DENSE | CELLS | ACTIVATIONS | {"pooling": ANY} | dict.fromkeys(READING, ANY),
}
"""Of each format, the fields of a `ModelConfig` that may differ from the defaults, and their values."""

EXPORT_ENDINGS = {
    "tf1": "",
    "torch": ".safetensors",
    "keras": ".weights.h5",
    "flax": ".msgpack",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "stablehlo": ".stablehlo",
    "huggingface": "",
}
"""The ending of a file's name, for each format that can be exported; of huggingface it is the name of a folder."""


def unusual(format_name: str, config: ModelConfig) -> dict[str, Any]:
    """The fields of a config that the files of a format cannot hold, with their values."""
    if format_name in ("stablehlo", "huggingface"):
        return {}
    held: dict[str, Any] = dict.fromkeys(("hidden_features", *NOT_IN_WEIGHTS), ANY) | HOLDS[format_name]
    changed = {name: value for name, value in vars(config).items() if value != getattr(ModelConfig, name)}
    if config.task != "permuted":
        changed.pop("permutation_seed", None)
    return {
        name: value
        for name, value in changed.items()
        if name not in held or not (held[name] is ANY or value in held[name])
    }


def refuse_unusual(format_name: str, config: ModelConfig) -> None:
    """Raises WeightsError where the files of a format cannot hold this network."""
    if fields := unusual(format_name, config):
        listed = ", ".join(f"{name} {value}" for name, value in fields.items())
        others = [name for name in EXPORT_ENDINGS if not unusual(name, config)]
        raise WeightsError(
            f"Files for {format_name} cannot hold this model's {listed}. Such a model can be exported to "
            f"{' or '.join(others)}."
        )
