"""`lstm-mnist import` and `lstm-mnist export`: models of other libraries."""

import os
import shlex
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from lstm_mnist_jax.cli.arguments import Positional, Repeated, as_called
from lstm_mnist_jax.cli.parsing import CommandExecution, OutputConsole, given_values, parse, start_jax
from lstm_mnist_jax.config import Config, DataConfig, Execution, OptimizerConfig
from lstm_mnist_jax.errors import DataError, UserError
from lstm_mnist_jax.progress import say


@dataclass(frozen=True)
class ImportArguments:
    """Make a run of a model that another program trained: LSTM or GRU layers, then dense layers.

    PATH is a TensorFlow 1 checkpoint (what was given to Saver.save, with the step that it added), a PyTorch state_dict
    or training checkpoint (.pt, .pth, .ckpt, .bin or .safetensors; nothing in it is executed), Keras's .weights.h5,
    .keras or .h5, a .msgpack of a Flax tree, .safetensors of this package, an .onnx graph of any exporter, or a folder
    of `export huggingface`. The layers' widths are read from the shapes.
    """

    common: ClassVar = (
        *("run_dir", "list", "ignore", "layer", "dense_activation", "task", "input_mean", "input_std", "source"),
        "validation_examples",
    )

    format: Positional[Literal["tf1", "torch", "keras", "flax", "safetensors", "onnx", "huggingface"]]
    """The format of the weights."""
    path: Positional[Path]
    """The file, or the prefix of a checkpoint."""
    run_dir: Path | None = None
    """Folder for the run, new or empty."""
    list: bool = False
    """Only list the arrays in the file: names, shapes and types."""
    ignore: Repeated[str] = ()
    """A pattern of names to leave out, such as 'model2/*'. Can be repeated."""
    layer: Repeated[str] = ()
    """The names of the recurrent layers from the input to the output, each with --layer, where their order is unknown;
    with those of all dense layers, where their order is unknown."""
    dense_activation: Literal["relu", "tanh", "linear"] | None = None
    """The activation after each hidden dense layer, where the file does not hold it. linear is none."""
    input_activation: Literal["linear"] | None = None
    """linear: no activation follows a dense layer before the recurrent layers, which is then folded into them."""
    activation: Literal["tanh", "relu", "linear", "hard_sigmoid_keras2", "hard_sigmoid_keras3"] | None = None
    """The activation of the LSTM, where the file does not hold it. None is tanh."""
    recurrent_activation: Literal["sigmoid", "hard_sigmoid_keras2", "hard_sigmoid_keras3"] | None = None
    """The activation of the LSTM's gates, where the file does not hold it. None is sigmoid."""
    pooling: Literal["last", "last_step", "mean", "max", "attention"] | None = None
    """Pooling over time before the dense layers, where the file does not hold it. None is last, the last output. With
    two directions, last are the final states of both (h_n[-2] and h_n[-1] in PyTorch), and last_step is outputs[:, -1].
    (all, the outputs of all steps, is found from the shapes.)"""
    forget_bias: float | None = None
    """tf1: what the cells added to their forget gates. None is what the .meta file has; without one, 1."""
    task: Literal["rows", "columns", "pixels"] = "rows"
    """How the network reads an image: rows from the top, columns from the left, or pixels row by row."""
    input_mean: float = 0.0
    """The network was trained on inputs (pixel / input_scale - input_mean) / input_std. This is folded exactly into its
    first layer. For PyTorch's Normalize((0.1307,), (0.3081,)): --input-mean 0.1307 --input-std 0.3081. One number for
    all pixels; those of each channel are not supported."""
    input_std: float = 1.0
    """See --input-mean."""
    input_scale: float = 255.0
    """See --input-mean. 255 is for inputs from 0 to 1, and 1 for pixels from 0 to 255."""
    seed: int = Config.seed
    """Seed of the order of the data, if the run is trained further."""
    epochs: int = Config.epochs
    """Epochs in all, with those before the import."""
    batch_size: int = Config.batch_size
    """Examples per step."""
    selection_metric: Literal["accuracy", "loss"] = "accuracy"
    """The metric for model selection on validation, if the run is trained further."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    execution: CommandExecution = field(default_factory=CommandExecution)


@dataclass(frozen=True)
class ExportArguments:
    """Write a run's model in the file format of another library.

    The endings: none for tf1 (FILE is the prefix of a checkpoint), .safetensors for torch (a state_dict) and
    safetensors (this package's own names), .weights.h5 for keras, .msgpack for flax (a tree of Linen), .onnx, and
    .stablehlo (of jax.export). For huggingface FILE is a folder: weights, config and model card; nothing is uploaded.
    """

    format: Positional[Literal["tf1", "torch", "keras", "flax", "safetensors", "onnx", "stablehlo", "huggingface"]]
    """The format to write."""
    run_dir: Positional[Path]
    """The run's folder."""
    file: Positional[Path]
    """The file to write."""
    checkpoint: str = "best"
    """best (on validation), last, or the step of a checkpoint."""
    overwrite: bool = False
    """Replace an existing file."""
    like: Path | None = None
    """tf1: a checkpoint of the same network, whose names are taken instead of the tutorial's."""


def import_(arguments: Sequence[str]) -> int:
    """`lstm-mnist import`."""
    parsed = parse(ImportArguments, arguments)
    path = parsed.path.expanduser()
    if parsed.list and parsed.run_dir is not None:
        raise UserError("--list makes no run; leave out --run-dir.")
    if not parsed.list and parsed.run_dir is None:
        raise UserError("Give --run-dir, the folder for the run, or --list, to list the arrays of the file.")
    from lstm_mnist_jax.interop import formats

    if parsed.list:
        for name, array in formats.list_arrays(parsed.format, path, parsed.ignore).items():
            print(f"{name}  {list(array.shape)}  {array.dtype}")
        return 0
    from lstm_mnist_jax.interop.inputs import LOW_ACCURACY, Inputs, likely_causes
    from lstm_mnist_jax.model import SLOWER, runs_through_flax
    from lstm_mnist_jax.training import begin_run

    words = given_values(ImportArguments, arguments)
    settings = formats.Settings(parsed.forget_bias, parsed.optimizer.b1, parsed.optimizer.b2)
    given = formats.Given(**{name: getattr(parsed, name) for name in vars(formats.Given())})
    path = formats.locate(parsed.format, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # describe() has them
        imported = formats.read(
            parsed.format,
            path,
            ignore=parsed.ignore,
            layers=parsed.layer,
            settings=settings,
            given=given,
            inputs=Inputs(parsed.input_mean, parsed.input_std, parsed.input_scale),
        )
    network = imported.config
    if "task" in words and parsed.task != network.task:
        if "task" in imported.known:
            raise UserError(f"--task is {parsed.task}, but the network of the file reads {network.task}. Leave it out.")
        network = replace(network, task=parsed.task)
    own = {name: getattr(parsed, name) for name in vars(Config()) if hasattr(parsed, name)}
    config = Config(model=network, **own)
    if imported.training:
        config = _with_options(imported.training, config, words)
    start_jax(parsed.execution, config.batch_size)
    origin, adam = f"imported from {parsed.format}: {path.absolute()}", imported.adam and imported.adam.to_optax()
    origin += "" if imported.inputs == Inputs() else f"; trained on inputs of {imported.inputs}"
    try:
        run = begin_run(
            imported.params,
            config,
            parsed.run_dir,
            parsed.execution,
            origin=origin,
            adam=adam,
            step=imported.step,
            time_steps=imported.time_steps,
            image_shape=imported.image_shape,
            class_names=imported.class_names,
            network=network,
        )
    except DataError as error:
        if parsed.format != "huggingface" or "source" in words:
            raise
        raise DataError(f"{error} The model's folder names its data so; give their place with --source.") from error
    console = OutputConsole()
    for line in [origin, *imported.describe(), *([SLOWER] if runs_through_flax(config.model) else [])]:
        say(console, line)
    for name, evaluation in run.evaluations.items():
        say(console, f"{name} {evaluation.accuracy:.2%}")
    low = min(evaluation.accuracy for evaluation in run.evaluations.values()) < LOW_ACCURACY
    if low and not imported.knows_inputs and len(imported.unfolded["dense"]["bias"]) == 10:
        for line in likely_causes(imported.unfolded, run.folder.config.model, run.dataset.validation, imported.inputs):
            say(console, line)
    cut = () if parsed.format == "huggingface" else run.dataset.cut_splits  # that format holds the split of its run
    for name in cut:
        count, option = len(run.dataset.splits[name]), "examples" if name == "validation" else "fraction"
        say(console, f"{name}: {count:,} of the training examples, as the data have no {name} split")
        say(console, f"  (too high if the model was trained on them: give its own by --{name}-{option})")
    run_dir = shlex.quote(str(parsed.run_dir))
    say(console, as_called(f"saved in {run_dir}; evaluate it with: lstm-mnist evaluate {run_dir}"))
    epochs = max(run.folder.config.epochs, run.epochs_done + 1)
    rate = config.optimizer.learning_rate
    say(console, f"training would continue with learning rate {rate:g} and batches of {config.batch_size}; for others,")
    say(console, "import with --learning-rate and --batch-size")
    say(console, f"train it further, up to epoch {epochs}, with:")
    say(console, as_called(f"  lstm-mnist train --resume {run_dir} --epochs {epochs}"))
    return 0


def _with_options(training: Config, options: Config, given: Collection[str]) -> Config:
    """The config of a file with the options that were given, by name. Imported runs have one batch size throughout."""

    def mixed(stored: Any, options: Any) -> dict[str, Any]:
        return {name: getattr(options if name in given else stored, name) for name in vars(stored)}

    parts = {
        "data": DataConfig(**mixed(training.data, options.data)),
        "optimizer": OptimizerConfig(**mixed(training.optimizer, options.optimizer)),
    }
    return Config(**mixed(training, options) | parts | {"model": training.model, "batch_doubling_epochs": ()})


def export(arguments: Sequence[str]) -> int:
    """`lstm-mnist export`."""
    parsed = parse(ExportArguments, arguments)
    if not os.path.isdir(parsed.run_dir.expanduser()) and os.path.isfile(parsed.file.expanduser() / "config.json"):
        swapped = f"lstm-mnist export {parsed.format} {parsed.file} {parsed.run_dir}"
        raise UserError(f"The run comes first, the file to write after it: {swapped}")
    from lstm_mnist_jax.inference import load_run
    from lstm_mnist_jax.interop import formats

    start_jax(Execution(devices=1))
    run = load_run(parsed.run_dir, parsed.checkpoint)
    run.export(parsed.format, parsed.file, overwrite=parsed.overwrite, like=parsed.like)
    forget_bias = f", for cells with forget_bias {run.folder.config.model.forget_bias:g}"
    forget_bias += "" if parsed.like is None else f", or with that of the graph beside {parsed.like}"
    print(
        f"{parsed.file}: the model of step {run.step:,} of {parsed.run_dir}, for {parsed.format}"
        + (forget_bias if parsed.format == "tf1" else "")
    )
    if needed := formats.not_in_file(parsed.format, run.folder.config.model):
        print(f"the program that reads it must have {', '.join(needed)}: the file does not hold this")
    return 0
