"""`lstm-mnist sweep`: several runs at once."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lstm_mnist_jax.cli import parsing
from lstm_mnist_jax.cli.arguments import Positional, as_called
from lstm_mnist_jax.config import (
    PRESETS,
    SWEEPABLE,
    AugmentationConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Processes,
)
from lstm_mnist_jax.errors import UserError
from lstm_mnist_jax.progress import say

if TYPE_CHECKING:
    from lstm_mnist_jax.sweeps import Space


Swept: Any = make_dataclass(
    "Swept",
    [(name, tuple[str, ...], ()) for name in SWEEPABLE],
    frozen=True,
    namespace={
        "documented_by": (OptimizerConfig, ModelConfig, AugmentationConfig, Config),
        "default_in_words": "(default: the preset's)",
    },
)
"""An option for each field that can be swept."""
Swept.__module__, Swept.__doc__ = __name__, "Each takes several values, or for numbers one interval."

KEPT = ("seed", "epochs", "batch_doubling_epochs", "selection_metric", "early_stopping_patience", "data", "checkpoints")
"""Fields of the config that are the same options as in `lstm-mnist train`."""


@dataclass(frozen=True)
class SweepArguments:
    """Train many settings and seeds at once, in few compiled programs. The best is selected on validation.

    An option that is swept takes several values (those of --hidden-features with commas: 32,64 64,128), or for
    numbers one interval: uniform:LOW:HIGH or loguniform:LOW:HIGH, from which --samples settings are drawn. Ctrl-C
    saves a checkpoint and stops; --resume continues.
    """

    common: ClassVar = (
        *("run_dir", "resume", "seeds", "samples", "optuna", "learning_rate", "hidden_features", "batch_size"),
        *("epochs", "source"),
    )

    preset: Positional[str] = parsing.DEFAULT_PRESET
    """The config to start from, by its name."""
    run_dir: Path | None = None
    """Folder for the sweep, new or empty. None makes one under runs/, named by preset and time."""
    resume: Path | None = None
    """Resume the sweep in this folder; --epochs can make it longer."""
    seeds: int = 1
    """The number of seeds of each setting: --seed and those after it."""
    samples: int | None = None
    """The number of settings to draw from the intervals; with --optuna the number of settings in all."""
    optuna: bool = False
    """Let Optuna choose the settings, round by round, by the validation results so far."""
    swept: Swept = field(default_factory=Swept)
    seed: int = Config.seed
    """The first seed."""
    epochs: int = Config.epochs
    """Epochs of every run."""
    batch_doubling_epochs: tuple[int, ...] = ()
    """Batch-size schedule: epochs after which the effective batch size doubles."""
    selection_metric: Literal["accuracy", "loss"] = "accuracy"
    """The metric for model selection, of an epoch and of a setting, on validation."""
    early_stopping_patience: int | None = None
    """Early stopping: stop a run after this many epochs without a better one on validation."""
    data: DataConfig = field(default_factory=DataConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    execution: parsing.CommandExecution = field(default_factory=parsing.CommandExecution)
    processes: Processes = field(default_factory=Processes)


def sweep(arguments: Sequence[str]) -> int:
    """`lstm-mnist sweep`."""

    def defaults(preset: str, config: Config) -> SweepArguments:
        kept = {name: getattr(config, name) for name in KEPT}
        return SweepArguments(preset, **kept)

    parsed, config = parsing.parse_with_preset(SweepArguments, arguments, defaults)
    from lstm_mnist_jax.config.space import Space
    from lstm_mnist_jax.training.run_folder import read_run_folder

    given = parsing.given_values(SweepArguments, arguments)
    axes = {name: words for name, words in vars(parsed.swept).items() if name in given}
    for name, words in axes.items():
        option = f"--{name.replace('_', '-')}"
        if name != "task" and words and words[-1] in PRESETS:  # there are a task and a preset rows
            raise UserError(f"{option} is {words[-1]!r}. The preset comes first: lstm-mnist sweep {words[-1]} {option}")
        if "features" not in name and (word := next((word for word in words if "," in word), None)):
            values = word.replace(",", " ")
            raise UserError(f"{option} is {word!r}, expected values with blanks between: {option} {values}.")
    options = {name: getattr(parsed, name) for name in ("seeds", "samples", "optuna")}
    if parsed.resume is None:
        if not axes and not options.keys() & given.keys():
            raise UserError(
                "Nothing is swept. Give an option several values, as --learning-rate 0.003 0.01, or --seeds."
            )
        space = Space(tuple(axes), tuple(axes.values()), **options)
    else:
        asked = [*axes, *(name for name, value in options.items() if value != getattr(SweepArguments, name))]
        if asked:
            raise UserError(f"A resumed sweep keeps its settings; leave out --{asked[0].replace('_', '-')}.")
        found = read_run_folder(parsed.resume.expanduser()).space
        if found is None:
            run_dir = parsed.resume
            raise UserError(f"{run_dir} is a single run: continue it with lstm-mnist train --resume {run_dir}.")
        space = found
    kept = {name: getattr(parsed, name) for name in KEPT}
    return run_sweep(parsed, replace(config, **kept), space)


def run_sweep(parsed: Any, config: Config, space: "Space") -> int:
    """Runs a sweep and prints its results; `parsed` are the arguments of `train` or of `sweep`."""
    from lstm_mnist_jax.sweeps import describe, sweep
    from lstm_mnist_jax.training.metrics import best_in_words

    parsing.start_jax(parsed.execution)
    console = parsing.TrainingConsole()
    with parsing.run_dir_of(parsed, f"{parsed.preset}-sweep") as run_dir:
        result = sweep(
            config,
            space,
            run_dir,
            resume=parsed.resume is not None,
            execution=parsed.execution,
            together=parsed.processes,
            console=console,
        )
    run_dir, console = result.run_dir, parsing.console_of_first()
    quoted = shlex.quote(str(run_dir))
    is_useful = result.learned or result.stopped_by is not None
    best = result.members[result.best] if result.best is not None and is_useful else None
    if best is not None:
        setting = describe({"seed": best.seed, **best.setting})
        so_far = " so far" if result.stopped_by is not None else ""
        say(console, f"{best_in_words(config)}{so_far}: run {best.member}, epoch {best.best_epoch}")
        say(console, f"  {setting}")
    if result.stopped_by is not None:
        say(console, "stopped and saved; continue with:")
        say(console, as_called(f"  lstm-mnist sweep --resume {quoted}"))
        return 128 + result.stopped_by
    if parsed.resume is not None and not result.trained:
        falls = config.optimizer.schedule != "constant" or "schedule" in space.names  # then there is no longer one
        say(console, f"complete after {config.epochs} epochs{'' if falls else '; train longer with --epochs'}")
    if best is None:
        say(console, f"saved in {run_dir} (results.csv)")
        return 0
    say(console, f"saved in {run_dir} (results.csv, results.png)")
    say(console, f"the best run is {run_dir / 'best'}:")
    say(console, as_called(f"  lstm-mnist evaluate {shlex.quote(str(run_dir / 'best'))}"))
    return 0
