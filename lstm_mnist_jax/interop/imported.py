"""What a file of another program held: the network, its parameters, and what is known of its training and inputs."""

from dataclasses import dataclass, replace

from lstm_mnist_jax.config import Config, ModelConfig
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.inputs import Inputs
from lstm_mnist_jax.interop.weights import Adam, Weights, cells_of, from_params
from lstm_mnist_jax.model import CELL_NAMES, Params, runs_through_flax


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
