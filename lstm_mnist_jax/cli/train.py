"""`lstm-mnist train`."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from lstm_mnist_jax.cli import parsing
from lstm_mnist_jax.cli.arguments import Positional, as_called
from lstm_mnist_jax.cli.sweep import run_sweep
from lstm_mnist_jax.config import Config, Processes
from lstm_mnist_jax.config.json import differences
from lstm_mnist_jax.config.options import refuse_without_effect
from lstm_mnist_jax.errors import UserError
from lstm_mnist_jax.progress import say
from lstm_mnist_jax.statistics import Share


@dataclass(frozen=True)
class TrainArguments:
    """Train a stacked LSTM. The result is a run folder: config, metrics, checkpoints, TensorBoard events.

    Ctrl-C saves and stops; --resume continues, with the same result as without a stop.
    """

    common: ClassVar = (
        *("run_dir", "resume", "epochs", "batch_size", "learning_rate", "hidden_features", "cell", "seed", "source"),
        "devices",
    )

    preset: Positional[str] = parsing.DEFAULT_PRESET
    """The config to start from, by its name. The options below change it."""
    run_dir: Path | None = None
    """Folder for the run, new or empty. None makes one under runs/, named by preset and time."""
    resume: Path | None = None
    """Resume the run in this folder, with its own config; --epochs can make it longer."""
    seeds: int = 1
    """Train this many seeds at once, --seed and those after it: a sweep, with means and 95 % confidence intervals."""
    config: Config = field(default_factory=Config)
    execution: parsing.CommandExecution = field(default_factory=parsing.CommandExecution)
    processes: Processes = field(default_factory=Processes)


def train(arguments: Sequence[str]) -> int:
    """`lstm-mnist train`."""
    parsed, preset = parsing.parse_with_preset(
        TrainArguments, arguments, lambda preset, config: TrainArguments(preset, config=config)
    )
    from lstm_mnist_jax.training.run_folder import read_run_folder

    resume = parsed.resume is not None
    if not resume:
        refuse_without_effect([name.split(".")[-1] for name in differences(preset, parsed.config)], parsed.config)
    if resume and parsed.seeds != 1:
        raise UserError("A resumed run or sweep has its seeds already; leave out --seeds.")
    if resume and (folder := read_run_folder(parsed.resume.expanduser())).is_sweep:
        assert folder.space is not None
        return run_sweep(parsed, parsed.config, folder.space)
    if parsed.seeds != 1:
        from lstm_mnist_jax.config.space import Space

        return run_sweep(parsed, parsed.config, Space(seeds=parsed.seeds))
    from lstm_mnist_jax.training import train
    from lstm_mnist_jax.training.metrics import best_in_words

    parsing.start_jax(parsed.execution, parsed.config.batch_size)
    console = parsing.TrainingConsole()
    with parsing.run_dir_of(parsed, parsed.preset) as run_dir:
        try:
            result = train(
                parsed.config,
                run_dir,
                resume=resume,
                execution=parsed.execution,
                together=parsed.processes,
                console=console,
            )
        except KeyboardInterrupt:
            made = run_dir.expanduser()
            if resume or (made / "checkpoints").exists():
                raise
            if not (made / "config.json").exists():
                raise KeyboardInterrupt("nothing was saved yet, so start the run again with the same command") from None
            again = f"lstm-mnist train --resume {shlex.quote(str(run_dir))}"
            raise KeyboardInterrupt(f"no step was saved yet; begin with: {again}") from None
    run_dir, console = result.run_dir, parsing.console_of_first()
    best = best_in_words(parsed.config)
    if result.best is not None:
        loss = f" (loss {result.best.validation_loss:.4f})" if parsed.config.selection_metric == "loss" else ""
        test = Share(round(result.best.test_accuracy * result.test_examples), result.test_examples)
        low, high = test.interval
        say(
            console,
            f"{best}: epoch {result.best.epoch}, validation {result.best.validation_accuracy:.2%}{loss}, "
            f"test {test.value:.2%}",
        )
        interval = f"{100 * low:.2f} to {100 * high:.2f}"
        say(console, f"95 % confidence interval of the test accuracy ({test.count:,} images): {interval} %")
    elif result.best_step is not None:
        say(console, f"{best}: the weights of step {result.best_step:,}, which were imported")
    if result.warning is not None and result.stopped_by is None:
        say(console, result.warning)
    if result.stopped_by is not None:
        say(console, "stopped and saved; continue with:")
        say(console, as_called(f"  lstm-mnist train --resume {shlex.quote(str(run_dir))}"))
        return 128 + result.stopped_by
    done = result.epochs[-1].epoch if result.epochs else 0  # imported weights may begin later than at 0
    if done < parsed.config.epochs and result.trained:
        say(
            console,
            f"stopped early: {parsed.config.early_stopping_patience} epochs without a better one on validation",
        )
    complete = done >= parsed.config.epochs
    # A schedule of the learning rate ends with the run, and a run that stopped early needs no more epochs.
    can_go_on = parsed.config.optimizer.schedule == "constant" and complete
    if resume and not result.trained:
        option = "--early-stopping-patience" if not complete else "--epochs" if can_go_on else None
        longer = f"; train longer with {option}" if option else ""
        say(console, f"complete after {done} epochs{longer}")
    say(console, f"saved in {run_dir}; next steps:")
    draw = "draw a digit" if read_run_folder(run_dir).data.form == "digit" else "draw or open a picture"
    _say_what_next(console, parsed.config, shlex.quote(str(run_dir)), can_go_on, draw)
    return 0


def _say_what_next(console: Console, config: Config, run_dir: str, can_go_on: bool, draw: str) -> None:
    commands = {
        f"report {run_dir} --html {run_dir}/report.html": f"HTML page: {draw}, see curves and errors",
        f"predict {run_dir} PICTURE": "classify an image",
    }
    if can_go_on:
        commands[f"train --resume {run_dir} --epochs {2 * config.epochs}"] = "train for longer"
    else:
        commands[f"evaluate {run_dir}"] = "loss and accuracy by split and by class"
    for command, what in commands.items():
        say(console, f"  # {what}")
        say(console, as_called(f"  lstm-mnist {command}"))
