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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lstm_mnist_jax.config import (
    PRESETS,
    CheckpointConfig,
    Config,
    DataConfig,
    Execution,
    ModelConfig,
    OptimizerConfig,
    Processes,
)
from lstm_mnist_jax.errors import UserError
from lstm_mnist_jax.reporting.progress import say
from lstm_mnist_jax.version import __version__

if TYPE_CHECKING:
    from lstm_mnist_jax.sweeps import Space
    from lstm_mnist_jax.training.evaluation import Evaluation

HELP = f"""lstm-mnist-jax {__version__}: a stacked LSTM reads MNIST row by row, in JAX.

usage: lstm-mnist VERB [OPTIONS]

  train [PRESET]     train a model (presets: {", ".join(PRESETS)}), or go on with --resume RUN_DIR
  sweep [PRESET]     train many at once: seeds, learning rates, widths
  extract RUN_DIR [MEMBER] --run-dir NEW_DIR
                     make one training of a sweep a run of its own
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
    seeds: int = 1
    """Train so many seeds at once, --seed and those after it: a population, with means and 95 % intervals."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    execution: Execution = field(default_factory=Execution)
    processes: Processes = field(default_factory=Processes)


@dataclass(frozen=True)
class SweepArguments:
    """Train many settings and seeds at once, in few compiled programs. The best is chosen on validation alone.

    An option that is swept takes several values, or for numbers one interval: uniform:LOW:HIGH or
    loguniform:LOW:HIGH, from which --samples settings are drawn. Ctrl-C saves and stops; --resume goes on.
    """

    preset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRESET")] = "tutorial"
    """The config to start from: tutorial or smoke."""
    run_dir: Path | None = None
    """Folder for the sweep, new or empty. None makes one under runs/, named by preset and time."""
    resume: Path | None = None
    """Go on with the sweep in this folder, as it was asked for; --epochs can make it longer."""
    seeds: int = 1
    """How many seeds each setting is trained with: --seed and those after it."""
    samples: int | None = None
    """How many settings to draw from the intervals; with --optuna how many to try in all."""
    optuna: bool = False
    """Let Optuna choose the settings, round by round, from how good the former were."""
    learning_rate: tuple[str, ...] = ()
    """Swept: step sizes, such as 0.003 0.01 or loguniform:0.001:0.1."""
    b1: tuple[str, ...] = ()
    """Swept: decays of the running mean of the gradient."""
    b2: tuple[str, ...] = ()
    """Swept: decays of the running mean of its square."""
    epsilon: tuple[str, ...] = ()
    """Swept: epsilon hats."""
    hidden_features: tuple[str, ...] = ()
    """Swept: widths of the layers, each stack with commas: 32,64 64,128."""
    forget_bias: tuple[str, ...] = ()
    """Swept: initial biases of the forget gates."""
    batch_size: tuple[str, ...] = ()
    """Swept: examples a step."""
    seed: int = Config.seed
    """The first seed."""
    epochs: int = Config.epochs
    """Epochs of every training."""
    data: DataConfig = field(default_factory=DataConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    execution: Execution = field(default_factory=Execution)
    processes: Processes = field(default_factory=Processes)


@dataclass(frozen=True)
class ExtractArguments:
    """Make one training of a sweep a run of its own: to evaluate, export, or train on. The sweep stays as it is."""

    population: tyro.conf.Positional[Path]
    """The sweep's folder."""
    member: tyro.conf.Positional[str] = "best"
    """Which training: best (on validation), or its number in results.csv."""
    run_dir: Path | None = None
    """Folder for the run, new or empty."""


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
    parsed, _ = _parse_with_preset(
        TrainArguments, arguments, lambda preset, config: TrainArguments(preset, config=config)
    )
    from lstm_mnist_jax.sweeps.folder import is_population, read_population_folder

    resume = parsed.resume is not None
    if resume and parsed.seeds != 1:
        raise UserError("What is resumed has its seeds already; leave out --seeds.")
    if resume and is_population(population := parsed.resume.expanduser()):
        return _sweep(parsed, parsed.config, read_population_folder(population).space)
    if parsed.seeds != 1:
        from lstm_mnist_jax.sweeps.space import Space

        return _sweep(parsed, parsed.config, Space(seeds=parsed.seeds))
    from lstm_mnist_jax.training import train

    console = Console()
    run_dir = parsed.resume or parsed.run_dir or _new_run_dir(parsed.preset)
    result = train(
        parsed.config,
        run_dir,
        resume=resume,
        execution=parsed.execution,
        together=parsed.processes,
        console=console,
    )
    run_dir, console = result.run_dir, _console_of_first()
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


def sweep(arguments: Sequence[str]) -> int:
    """`lstm-mnist sweep`."""

    def defaults(preset: str, config: Config) -> SweepArguments:
        kept = {name: getattr(config, name) for name in ("seed", "epochs", "data", "checkpoints")}
        return SweepArguments(preset, **kept)

    parsed, config = _parse_with_preset(SweepArguments, arguments, defaults)
    from lstm_mnist_jax.sweeps import SWEEPABLE, Space, read_population_folder

    axes = {name: getattr(parsed, name) for name in SWEEPABLE if getattr(parsed, name)}
    options = {name: getattr(parsed, name) for name in ("seeds", "samples", "optuna")}
    if parsed.resume is None:
        space = Space(tuple(axes), tuple(axes.values()), **options)
    else:
        asked = [*axes, *(name for name, value in options.items() if value != getattr(SweepArguments, name))]
        if asked:
            raise UserError(f"A resumed sweep goes on as it was asked for; leave out --{asked[0].replace('_', '-')}.")
        space = read_population_folder(parsed.resume.expanduser()).space
    kept = {name: getattr(parsed, name) for name in ("seed", "epochs", "data", "checkpoints")}
    return _sweep(parsed, replace(config, **kept), space)


def _sweep(parsed: TrainArguments | SweepArguments, config: Config, space: "Space") -> int:
    from lstm_mnist_jax.sweeps import describe, sweep

    console = Console()
    run_dir = parsed.resume or parsed.run_dir or _new_run_dir(f"{parsed.preset}-sweep")
    result = sweep(
        config,
        space,
        run_dir,
        resume=parsed.resume is not None,
        execution=parsed.execution,
        together=parsed.processes,
        console=console,
    )
    run_dir, console = result.run_dir, _console_of_first()
    quoted = shlex.quote(str(run_dir))
    if result.best is not None:
        best = result.members[result.best]
        setting = describe({"seed": best.seed, **best.setting})
        so_far = " so far" if result.stopped_by is not None else ""
        say(console, f"best on validation{so_far}: training {best.member} ({setting}), epoch {best.best_epoch}")
    if result.stopped_by is not None:
        say(console, f"stopped and saved; go on with: lstm-mnist sweep --resume {quoted}")
        return 128 + result.stopped_by
    if parsed.resume is not None and not result.trained:
        say(console, f"complete after {config.epochs} epochs; train longer with --epochs")
    say(console, f"saved in {run_dir} (results.csv, results.png); make the best a run of its own with:")
    say(console, f"lstm-mnist extract {quoted} --run-dir {shlex.quote(f'{run_dir}-best')}")
    return 0


def extract(arguments: Sequence[str]) -> int:
    """`lstm-mnist extract`."""
    parsed = _parse(ExtractArguments, arguments)
    if parsed.run_dir is None:
        raise UserError("Give --run-dir, the folder for the run.")
    if parsed.member != "best" and not parsed.member.isdecimal():
        raise UserError(f"There is no training {parsed.member!r}; expected best, or a number in results.csv.")
    from lstm_mnist_jax.sweeps import describe, extract

    extracted = extract(parsed.population, parsed.run_dir, None if parsed.member == "best" else int(parsed.member))
    setting = describe({"seed": extracted.folder.config.seed, **extracted.setting})
    print(f"training {extracted.member} ({setting}) at step {extracted.step:,} is a run of its own in {parsed.run_dir}")
    print(f"evaluate it with: lstm-mnist evaluate {shlex.quote(str(parsed.run_dir))}")
    return 0


def _console_of_first() -> Console:
    """Where the first of several processes speaks, for all."""
    from lstm_mnist_jax.training import processes

    return Console(quiet=not processes.is_first())


def _new_run_dir(preset: str) -> Path:
    name = time.strftime(f"{preset}-%Y%m%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def _parse_with_preset(
    cls: type, arguments: Sequence[str], defaults: Callable[[str, Config], Any]
) -> tuple[Any, Config]:
    """Parses in the light of the preset, or of what is to be resumed: these give the defaults.

    Args:
      cls: the arguments of a verb.
      arguments: its words.
      defaults: from the preset's name and a config to the defaults.

    Returns:
      The arguments, and the config that gave the defaults.
    """
    preset, given = "tutorial", len(arguments)
    if arguments and arguments[0] in PRESETS:
        preset, *arguments = arguments
    config = PRESETS[preset]
    parsed = _parse(cls, arguments, defaults(preset, config))
    if parsed.resume is not None:
        if parsed.run_dir is not None:
            raise UserError("--resume names the run folder already; leave out --run-dir.")
        if len(arguments) < given or parsed.preset != preset:
            raise UserError("A resumed run has its own config; leave out the preset.")
        config = _config_of(parsed.resume.expanduser())
    elif parsed.preset not in PRESETS:
        several = parsed.preset.replace(".", "").replace("-", "").replace("e", "").isdecimal()
        hint = " Several values of an option are for lstm-mnist sweep." if several else ""
        raise UserError(f"Unknown preset {parsed.preset!r}; expected one of {', '.join(PRESETS)}.{hint}")
    elif parsed.preset != preset:  # it stands behind the options
        preset, config = parsed.preset, PRESETS[parsed.preset]
    else:
        return parsed, config
    return _parse(cls, arguments, defaults(preset, config)), config


def _config_of(run_dir: Path) -> Config:
    from lstm_mnist_jax.sweeps.folder import is_population, read_population_folder
    from lstm_mnist_jax.training.run_folder import read_run_folder

    return (read_population_folder if is_population(run_dir) else read_run_folder)(run_dir).config


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
    "sweep": sweep,
    "extract": extract,
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
        return _failed(2)
    except BrokenPipeError:  # whoever read what we print has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _failed(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print("lstm-mnist: interrupted", file=sys.stderr)
        return _failed(128 + signal.SIGINT)
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(
            f"lstm-mnist: unexpected {type(error).__name__}: {error}\nThis is a fault of the program, not yours. "
            "Run the command again with --debug and report what it prints.",
            file=sys.stderr,
        )
        return _failed(1)


def _failed(code: int) -> int:
    """The exit code of a failure. One of several processes ends here: an orderly end would wait for the others."""
    if "jax" in sys.modules:
        from lstm_mnist_jax.training import processes

        if processes.are_joined():
            processes.leave(code)
    return code


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
