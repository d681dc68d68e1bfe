"""What a file of another program held: network, parameters, training, inputs; and what files can hold of a network."""

from dataclasses import dataclass, replace
from typing import Any

from lstm_mnist_jax.config import Config, ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.inputs import Inputs
from lstm_mnist_jax.interop.weights import Adam, Weights, cells_of, from_params
from lstm_mnist_jax.model import CELL_NAMES, Params, runs_through_flax

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


@dataclass(frozen=True)
class Imported:
    """The classifier in a file.

    Attributes:
      config: the network. What neither the file nor the user determines has its default.
      unfolded: the parameters of the file.
      names: the names in the file of the recurrent layers, and of the dense layers, the output layer last.
      notes: what was assumed or changed, and what the file has that was not imported, each as a line of text.
      known: the fields of `config` that shapes do not show, and that the file determines.
      adam: the state of Adam, if the file has it.
      step: the number of training steps; 0 where it is not known.
      training: the config that it was trained with, if the file has it.
      time_steps: the number of steps that the network reads; None where the file does not determine it.
      image_shape: (height, width) or (height, width, channels) of the images; None where the file does not hold it.
      class_names: one name a class; None where the file does not hold them.
      inputs: those that the network was trained with; folded into `params`.
      knows_inputs: whether the file determines what its inputs are, as the network scales them itself.
      input_note: what was assumed of the inputs, as a line of text; empty where nothing is to be said.
    """

    config: ModelConfig
    unfolded: Params
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    known: frozenset[str] = frozenset()
    adam: Adam | None = None
    step: int = 0
    training: Config | None = None
    time_steps: int | None = None
    image_shape: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    inputs: Inputs = Inputs()
    knows_inputs: bool = False
    input_note: str = ""

    @property
    def params(self) -> Params:
        """The model's parameters, for `lstm_mnist_jax.model.apply`."""
        return self.inputs.fold(self.unfolded)

    @property
    def weights(self) -> Weights:
        """The parameters in the common form of all formats. Raises WeightsError for cells that it does not have."""
        return from_params(self.params)

    def with_network(self, **fields: object) -> "Imported":
        """With fields of the config that the file determines."""
        config = replace(self.config, **fields)  # type: ignore[arg-type]
        return replace(self, config=config, known=self.known.union(fields))

    def with_inputs(self, inputs: Inputs) -> "Imported":
        """With inputs that the user knows. Raises WeightsError where the file determines them."""
        if inputs == Inputs():
            return self
        if self.knows_inputs:
            raise WeightsError(
                "The file determines what its inputs are: pixels of integers, or scaled by the network itself. Leave "
                "out --input-mean, --input-std and --input-scale."
            )
        note = f"trained on inputs of {inputs}: folded into the weights and biases of {self.names[0]}"
        notes = self.notes
        if self.adam is not None:
            notes += ("the state of Adam is left out: it belongs to the weights in the file",)
        return replace(self, inputs=inputs, input_note=note, adam=None, notes=notes)

    def describe(self) -> list[str]:
        """The layers, the state of training and what was assumed, as lines of text."""
        config, layers = self.config, self.unfolded["rnn"]["layers"]
        kind = "bidirectional " * config.bidirectional + CELL_NAMES[config.cell]
        own = f", {config.activation} and {config.recurrent_activation}" if runs_through_flax(config) else ""
        own += ", with recurrent biases" * config.recurrent_bias
        lines = []
        for number, (name, hidden) in enumerate(zip(self.names, config.hidden_features, strict=False)):
            width = len(cells_of(layers[number])[0]["dense_i"]["kernel"])
            lines.append(f"{kind} {width} -> {hidden}{own}: {name}")
        assumed = "" if "pooling" in self.known else " (assumed, as the file does not hold it: see --pooling)"
        lines.append(f"{pooled(config)}{assumed}")
        for number, name in enumerate(self.names[len(layers) : -1]):
            kernel = self.unfolded["dense_hidden"][number]["kernel"]
            lines.append(f"dense {kernel.shape[0]} -> {kernel.shape[1]}, {config.dense_activation}: {name}")
        kernel = self.unfolded["dense"]["kernel"]
        lines.append(f"output {kernel.shape[0]} -> {counted(kernel.shape[1], 'class', 'es')}: {self.names[-1]}")
        if config.task != ModelConfig.task:
            lines.append(f"reads images as {config.task}")
        return [
            *lines,
            "no optimizer state: Adam starts from zero"
            if self.adam is None
            else f"the state of Adam after {counted(self.adam.steps, 'step')}",
            f"trained for {counted(self.step, 'step')}" if self.step else "the number of training steps is not known",
            *([self.input_note] if self.input_note else []),
            *self.notes,
        ]


def pooled(config: ModelConfig) -> str:
    """What the first dense layer takes of the last recurrent layer."""
    match config.pooling:
        case "last":
            return "the final states of both directions, joined" if config.bidirectional else "the last output"
        case "last_step":
            return "the outputs of both directions at the last step"
        case "all":
            return "the outputs of all steps, flattened"
    return f"{config.pooling} pooling over all steps"


def counted(number: int, word: str, plural: str = "s") -> str:
    return f"{number:,} {word}{plural * (number != 1)}"


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
