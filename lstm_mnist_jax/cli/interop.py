"""`lstm-mnist import` and `lstm-mnist export`: models of other libraries."""

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lstm_mnist_jax.cli.parsing import CommandExecution, OutputConsole, parse, start_jax
from lstm_mnist_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from lstm_mnist_jax.errors import UserError
from lstm_mnist_jax.progress import say


@dataclass(frozen=True)
class ImportArguments:
    """Make a run of a model that another program trained: LSTM layers, with the last output through one dense layer.

    PATH is a TensorFlow 1 checkpoint (what was given to Saver.save, with the step that it added), a PyTorch state_dict
    or training checkpoint (.pt, .pth, .ckpt, .bin or .safetensors; nothing in it is executed), Keras's .weights.h5,
    .keras or .h5, a .msgpack of a Flax tree, or .safetensors of this package. The layers' widths are read from the
    shapes.
    """

    format: tyro.conf.Positional[Literal["tf1", "torch", "keras", "flax", "safetensors"]]
    """The format of the weights."""
    path: tyro.conf.Positional[Path]
    """The file, or the prefix of a checkpoint."""
    run_dir: Path | None = None
    """Folder for the run, new or empty."""
    list: bool = False
    """Only list the arrays in the file: names, shapes and types."""
    ignore: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A pattern of names to leave out, such as 'model2/*'. Can be repeated."""
    layer: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The names of the LSTM layers from the input to the output, each with --layer, where their order is unknown."""
    forget_bias: float | None = None
    """tf1: what the cells added to their forget gates. None is what the .meta file has; without one, 1."""
    recurrent_activation: Literal["sigmoid", "hard_sigmoid"] | None = None
    """keras: the activation of the gates, where the file holds weights alone."""
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
    .stablehlo (of jax.export).
    """

    format: tyro.conf.Positional[Literal["tf1", "torch", "keras", "flax", "safetensors", "onnx", "stablehlo"]]
    """The format to write."""
    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """The run's folder."""
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
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
    from lstm_mnist_jax.training import begin_run

    settings = formats.Settings(parsed.forget_bias, parsed.optimizer.b1, parsed.optimizer.b2)
    path = formats.locate(parsed.format, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # describe() has them
        imported = formats.read(
            parsed.format,
            path,
            ignore=parsed.ignore,
            layers=parsed.layer,
            settings=settings,
            recurrent_activation=parsed.recurrent_activation,
        )
    config = Config(
        seed=parsed.seed,
        epochs=parsed.epochs,
        batch_size=parsed.batch_size,
        selection_metric=parsed.selection_metric,
        data=parsed.data,
        model=ModelConfig(forget_bias=imported.forget_bias),
        optimizer=parsed.optimizer,
    )
    start_jax(parsed.execution, config.batch_size)
    origin, adam = f"imported from {parsed.format}: {path.absolute()}", imported.adam and imported.adam.to_optax()
    run = begin_run(
        imported.params,
        config,
        parsed.run_dir,
        parsed.execution,
        origin=origin,
        adam=adam,
        step=imported.step,
        image_rows=imported.image_rows,
    )
    console = OutputConsole()
    for line in [origin, *imported.describe()]:
        say(console, line)
    for name, evaluation in run.evaluations.items():
        say(console, f"{name} {evaluation.accuracy:.2%}")
    run_dir = shlex.quote(str(parsed.run_dir))
    say(console, f"saved in {run_dir}; evaluate it with: lstm-mnist evaluate {run_dir}")
    epochs = max(run.folder.config.epochs, run.epochs_done + 1)
    say(
        console,
        f"training would continue with learning rate {parsed.optimizer.learning_rate:g} and batches of "
        f"{parsed.batch_size}; for others, import with --learning-rate and --batch-size",
    )
    say(console, f"train it further, up to epoch {epochs}, with: lstm-mnist train --resume {run_dir} --epochs {epochs}")
    return 0


def export(arguments: Sequence[str]) -> int:
    """`lstm-mnist export`."""
    parsed = parse(ExportArguments, arguments)
    from lstm_mnist_jax.inference import load_run

    run = load_run(parsed.run_dir, parsed.checkpoint)
    run.export(parsed.format, parsed.file, overwrite=parsed.overwrite, like=parsed.like)
    forget_bias = f", for cells with forget_bias {run.folder.config.model.forget_bias:g}"
    forget_bias += "" if parsed.like is None else f", or with that of the graph beside {parsed.like}"
    print(
        f"{parsed.file}: the model of step {run.step:,} of {parsed.run_dir}, for {parsed.format}"
        + (forget_bias if parsed.format == "tf1" else "")
    )
    return 0
