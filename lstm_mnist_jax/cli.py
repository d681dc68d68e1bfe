"""The command `lstm-mnist VERB ...`: parses, calls, prints. It decides nothing of its own.

JAX and what builds on it are imported in the verbs, so that `--help` and mistakes are answered at once.
"""

import itertools
import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lstm_mnist_jax.config import PRESETS, Config, DataConfig, Execution, ModelConfig, OptimizerConfig
from lstm_mnist_jax.errors import UserError
from lstm_mnist_jax.reporting.progress import say
from lstm_mnist_jax.version import __version__

if TYPE_CHECKING:
    from lstm_mnist_jax.training.evaluation import Evaluation

HELP = f"""lstm-mnist-jax {__version__}: a stacked LSTM reads MNIST row by row, in JAX.

usage: lstm-mnist VERB [OPTIONS]

  train [PRESET]     train a model (presets: {", ".join(PRESETS)}), or go on with --resume RUN_DIR
  evaluate RUN_DIR   loss and accuracy of a trained run, by split and class
  import FORMAT PATH --run-dir RUN_DIR
                     make a run of a model of tf1, torch, keras, flax or safetensors
  export FORMAT RUN_DIR PATH
                     write a run's model for tf1, torch, keras, flax, safetensors, onnx or stablehlo

lstm-mnist VERB --help tells the options of a verb; --version the version. With --debug, an error prints
its traceback.
"""


@dataclass(frozen=True)
class TrainArguments:
    """Train a stacked LSTM. The result is a run folder: config, metrics, checkpoints, TensorBoard events.

    Ctrl-C saves and stops; --resume goes on, to the same result as if it had never stopped.
    """

    preset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRESET")] = "tutorial"
    """The config to start from: tutorial or smoke (seconds, for a first try). The options below change it."""
    run_dir: Path | None = None
    """Folder for the run, new or empty. None makes one under runs/, named by preset and time."""
    resume: Path | None = None
    """Go on with the run in this folder, with its own config; --epochs can make it longer."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluate a trained run: loss, accuracy and accuracy by class, on each split of its data."""

    run_dir: tyro.conf.Positional[Path]
    """The run's folder."""
    checkpoint: str = "best"
    """best (on validation), last, or the step of a checkpoint."""
    source: str | None = None
    """Where the run's data are now, if they have moved: see train --help."""
    data_dir: str | None = None
    """Where prepared TFDS data are now, if they have moved."""
    json: bool = False
    """Print one JSON object instead of a table."""
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True)
class ImportArguments:
    """Make a run of a model that another program trained: LSTM layers, the last output through one dense layer.

    PATH is a TensorFlow 1 checkpoint (what was given to Saver.save, with the step that it added), a .safetensors
    file of a PyTorch state_dict, Keras's .weights.h5, .keras or .h5, a .msgpack of a Flax tree, or .safetensors
    of this package. The layers' widths are read from the shapes.
    """

    format: tyro.conf.Positional[Literal["tf1", "torch", "keras", "flax", "safetensors"]]
    """Which program's weights they are."""
    path: tyro.conf.Positional[Path]
    """The file, or the prefix of a checkpoint."""
    run_dir: Path | None = None
    """Folder for the run, new or empty."""
    list: bool = False
    """Only list the arrays in the file: names, shapes and types."""
    ignore: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A pattern of names to leave out, such as 'model2/*'. Can be given again."""
    layer: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Where nothing else tells the order of the LSTM layers: their names, each with --layer, from the input on."""
    forget_bias: float = ModelConfig.forget_bias
    """tf1: what the cells added to their forget gates; no checkpoint says it."""
    seed: int = Config.seed
    """Decides the order of the data where training goes on."""
    epochs: int = Config.epochs
    """Epochs in all, those before the import included."""
    batch_size: int = Config.batch_size
    """Examples a step."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True)
class ExportArguments:
    """Write a run's model as a file of another program.

    The endings: none for tf1 (PATH is the prefix of a checkpoint), .safetensors for torch (a state_dict) and
    safetensors (this package's own names), .weights.h5 for keras, .msgpack for flax (a tree of Linen), .onnx, and
    .stablehlo (of jax.export).
    """

    format: tyro.conf.Positional[Literal["tf1", "torch", "keras", "flax", "safetensors", "onnx", "stablehlo"]]
    """The program to write for."""
    run_dir: tyro.conf.Positional[Path]
    """The run's folder."""
    path: tyro.conf.Positional[Path]
    """The file to write."""
    checkpoint: str = "best"
    """best (on validation), last, or the step of a checkpoint."""
    overwrite: bool = False
    """Replace what is at PATH."""
    like: Path | None = None
    """tf1: a checkpoint of the same network, whose names are taken rather than the tutorial's."""


def train(arguments: Sequence[str]) -> int:
    """`lstm-mnist train`."""
    parsed = _parse_train(arguments)
    from lstm_mnist_jax.training import train

    console = Console()
    resume = parsed.resume is not None
    run_dir = parsed.resume or parsed.run_dir or _new_run_dir(parsed.preset)
    result = train(parsed.config, run_dir, resume=resume, execution=parsed.execution, console=console)
    if result.best is not None:
        say(
            console,
            f"best on validation: epoch {result.best.epoch}, validation {result.best.validation_accuracy:.2%}, "
            f"test {result.best.test_accuracy:.2%}",
        )
    elif result.best_step is not None:
        say(console, f"best on validation: the checkpoint of step {result.best_step:,}, from before")
    if result.stopped_by is not None:
        say(console, f"stopped and saved; go on with: lstm-mnist train --resume {shlex.quote(str(run_dir))}")
        return 128 + result.stopped_by
    if resume and not result.trained:
        say(console, f"complete after {parsed.config.epochs} epochs; train longer with --epochs")
    say(console, f"saved in {run_dir}; evaluate it with: lstm-mnist evaluate {shlex.quote(str(run_dir))}")
    return 0


def _new_run_dir(preset: str) -> Path:
    name = time.strftime(f"{preset}-%Y%m%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def _parse_train(arguments: Sequence[str]) -> TrainArguments:
    """Parses in the light of the preset, or of the run to resume, whose config gives the defaults."""
    preset, given = "tutorial", len(arguments)
    if arguments and arguments[0] in PRESETS:
        preset, *arguments = arguments
    parsed = _parse(TrainArguments, arguments, TrainArguments(preset, config=PRESETS[preset]))
    if parsed.resume is not None:
        if parsed.run_dir is not None:
            raise UserError("--resume names the run folder already; leave out --run-dir.")
        if len(arguments) < given or parsed.preset != preset:
            raise UserError("A resumed run has its own config; leave out the preset.")
        from lstm_mnist_jax.training.run_folder import read_run_folder

        config = read_run_folder(parsed.resume.expanduser()).config
        return _parse(TrainArguments, arguments, TrainArguments(preset, config=config))
    if parsed.preset not in PRESETS:
        raise UserError(f"Unknown preset {parsed.preset!r}; expected one of {', '.join(PRESETS)}.")
    if parsed.preset != preset:  # it stands behind the options
        return _parse(TrainArguments, arguments, TrainArguments(parsed.preset, config=PRESETS[parsed.preset]))
    return parsed


def evaluate(arguments: Sequence[str]) -> int:
    """`lstm-mnist evaluate`."""
    parsed = _parse(EvaluateArguments, arguments)
    from lstm_mnist_jax.inference import load_run
    from lstm_mnist_jax.training.mesh import prepare
    from lstm_mnist_jax.training.run_folder import read_run_folder

    prepare(parsed.execution, read_run_folder(parsed.run_dir.expanduser()).config.batch_size)
    run = load_run(parsed.run_dir, parsed.checkpoint)
    evaluations = run.evaluate(parsed.execution, source=parsed.source, data_dir=parsed.data_dir)
    if parsed.json:
        splits = _as_json(run.class_names, evaluations)
        print(json.dumps({"run_dir": str(parsed.run_dir), "step": run.step, "splits": splits}))
    else:
        _print_evaluations(f"{parsed.run_dir}, checkpoint of step {run.step:,}", run.class_names, evaluations)
    return 0


def import_(arguments: Sequence[str]) -> int:
    """`lstm-mnist import`."""
    parsed = _parse(ImportArguments, arguments)
    path = parsed.path.expanduser()
    if parsed.list and parsed.run_dir is not None:
        raise UserError("--list makes no run; leave out --run-dir.")
    if not parsed.list and parsed.run_dir is None:
        raise UserError("Give --run-dir, the folder for the run, or --list, to see what the file holds.")
    from lstm_mnist_jax.interop import formats

    if parsed.list:
        for name, array in formats.list_arrays(parsed.format, path, parsed.ignore).items():
            print(f"{name}  {list(array.shape)}  {array.dtype}")
        return 0
    from lstm_mnist_jax.training import GivenWeights, begin_run

    config = Config(
        seed=parsed.seed,
        epochs=parsed.epochs,
        batch_size=parsed.batch_size,
        data=parsed.data,
        model=ModelConfig(forget_bias=parsed.forget_bias),
        optimizer=parsed.optimizer,
    )
    settings = formats.Settings(parsed.forget_bias, parsed.optimizer.b1, parsed.optimizer.b2)
    path = formats.locate(parsed.format, path)
    imported = formats.read(parsed.format, path, ignore=parsed.ignore, layers=parsed.layer, settings=settings)
    given = GivenWeights(
        params=imported.params,
        adam=imported.adam and imported.adam.to_optax(),
        step=imported.step,
        origin=f"imported from {parsed.format}: {path.absolute()}",
    )
    run = begin_run(given, config, parsed.run_dir, parsed.execution)
    console = Console()
    for line in [given.origin, *imported.describe()]:
        say(console, line)
    for name, evaluation in run.evaluations.items():
        say(console, f"{name} {evaluation.accuracy:.2%}")
    run_dir = shlex.quote(str(parsed.run_dir))
    say(console, f"saved in {run_dir}; evaluate it with: lstm-mnist evaluate {run_dir}")
    epochs = max(run.folder.config.epochs, run.epochs_done + 1)
    say(
        console,
        f"training would go on with learning rate {parsed.optimizer.learning_rate:g} and batches of "
        f"{parsed.batch_size}; for others, import with --learning-rate and --batch-size",
    )
    say(console, f"train it on, up to epoch {epochs}, with: lstm-mnist train --resume {run_dir} --epochs {epochs}")
    return 0


def export(arguments: Sequence[str]) -> int:
    """`lstm-mnist export`."""
    parsed = _parse(ExportArguments, arguments)
    from lstm_mnist_jax.inference import load_run

    run = load_run(parsed.run_dir, parsed.checkpoint)
    run.export(parsed.format, parsed.path, overwrite=parsed.overwrite, like=parsed.like)
    forget_bias = f", for cells with forget_bias {run.folder.config.model.forget_bias:g}"
    print(
        f"{parsed.path}: the model of step {run.step:,} of {parsed.run_dir}, for {parsed.format}"
        + (forget_bias if parsed.format == "tf1" else "")
    )
    return 0


def _quieten_libraries() -> None:
    """Keeps libraries from printing tracebacks of errors that they raise all the same."""
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    # What nobody can catch, such as the callbacks of tensorstore's other writes after the first has failed.
    sys.unraisablehook = lambda unraisable: None


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "import": import_,
    "export": export,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The program: exits with 0, with 2 after a mistake of the user's, with 1 after one of ours."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    sys.exit(_run(words, debug))


def _run(words: list[str], debug: bool) -> int:
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if verb == "--version":
        print(__version__)
        return 0
    try:
        if verb not in VERBS:
            raise UserError(f"Unknown verb {verb!r}; expected one of {', '.join(VERBS)}. See lstm-mnist --help.")
        if not debug:
            _quieten_libraries()
        return VERBS[verb](words[1:])
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"lstm-mnist: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read what we print has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("lstm-mnist: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(
            f"lstm-mnist: unexpected {type(error).__name__}: {error}\nThis is a fault of the program, not yours. "
            "Run the command again with --debug and report what it prints.",
            file=sys.stderr,
        )
        return 1


def _parse(cls: type, arguments: Sequence[str], default: Any = None) -> Any:
    verb = cls.__name__.removesuffix("Arguments").lower()
    options: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        cls, prog=f"lstm-mnist {verb}", args=list(arguments), config=(tyro.conf.OmitArgPrefixes,), **options
    )


def _as_json(class_names: tuple[str, ...], evaluations: "dict[str, Evaluation]") -> dict[str, Any]:
    return {
        split: {
            "examples": int(evaluation.count.sum()),
            "loss": evaluation.loss,
            "accuracy": evaluation.accuracy,
            "accuracy_by_class": dict(zip(class_names, _by_class(evaluation), strict=True)),
        }
        for split, evaluation in evaluations.items()
    }


def _by_class(evaluation: "Evaluation") -> list[float | None]:
    """Accuracy of each class; None for a class of which the split has no example."""
    pairs = zip(evaluation.correct.tolist(), evaluation.count.tolist(), strict=True)
    return [correct / count if count else None for correct, count in pairs]


def _print_evaluations(title: str, class_names: tuple[str, ...], evaluations: "dict[str, Evaluation]") -> None:
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for split in evaluations:
        table.add_column(split, justify="right")
    table.add_row("examples", *(f"{int(e.count.sum()):,}" for e in evaluations.values()))
    table.add_row("loss", *(f"{e.loss:.4f}" for e in evaluations.values()))
    table.add_row("accuracy", *(f"{e.accuracy:.2%}" for e in evaluations.values()), end_section=True)
    columns = [_by_class(evaluation) for evaluation in evaluations.values()]
    for name, accuracies in zip(class_names, zip(*columns, strict=True), strict=True):
        table.add_row(Text(f"class {name}"), *("-" if a is None else f"{a:.2%}" for a in accuracies))
    Console().print(table)
