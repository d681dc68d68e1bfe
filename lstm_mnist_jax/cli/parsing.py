"""Shared by the commands: parsing of arguments, the compilation cache, the console, and names of run folders."""

import itertools
import os
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lstm_mnist_jax.cli import interrupts
from lstm_mnist_jax.cli.arguments import Argument, arguments_of, built, command_of, help_of
from lstm_mnist_jax.config import PRESETS, Config, Execution
from lstm_mnist_jax.config.json import described, from_text
from lstm_mnist_jax.errors import ConfigError, RunError, UserError, did_you_mean, os_errors_as

DEFAULT_PRESET = "tutorial"

CACHE_BYTES = 1 << 30
"""The maximum size of the compilation cache."""

JAX_MIN_COMPILE_SECONDS = 1.0
"""JAX's default: programs that compile in less time are not cached."""


RENAMED = {
    "average-shifts": "tta-shift-pixels",
    "batch-ramp": "batch-doubling-epochs",
    "best-by": "selection-metric",
    "early-stop-epochs": "early-stopping-patience",
    "final-share": "final-fraction",
}
"""Options by their names in version 0.4, and their present names."""

ELSEWHERE = {
    "beta1": ("b1",),
    "beta2": ("b2",),
    "bs": ("batch-size",),
    "clip": ("clip-norm",),
    "cpus": ("devices",),
    "dataset": ("source",),
    "decay": ("weight-decay",),
    "dir": ("run-dir",),
    "dropout": ("dropout-rate",),
    "eps": ("epsilon",),
    "gpus": ("devices",),
    "grad-clip": ("clip-norm",),
    "hidden-dim": ("hidden-features",),
    "hidden-size": ("hidden-features",),
    "layers": ("hidden-features",),
    "logdir": ("run-dir",),
    "lr": ("learning-rate",),
    "lr-schedule": ("schedule",),
    "model": ("cell",),
    "num-epochs": ("epochs",),
    "num-layers": ("hidden-features",),
    "out": ("run-dir", "into"),
    "output": ("run-dir", "into"),
    "output-dir": ("run-dir", "into"),
    "patience": ("early-stopping-patience",),
    "rnn": ("cell",),
    "save-dir": ("run-dir",),
    "scheduler": ("schedule",),
    "steps": ("epochs",),
    "units": ("hidden-features",),
    "val-size": ("validation-examples",),
    "warmup": ("warmup-epochs",),
    "wd": ("weight-decay",),
    "workers": ("num-processes",),
}
"""Names that other programs give to options, and ours."""


def parse(cls: type, arguments: Sequence[str]) -> Any:
    """The arguments of a command. Prints its help, and ends the program, where they ask for that.

    Args:
      cls: the class of the arguments: a dataclass, some of whose fields may be dataclasses.
      arguments: the words of the command line.

    Raises:
      UserError: a word is wrong.
    """
    _print_help(cls, arguments, None)
    return built(cls, None, given_values(cls, arguments))


def parse_with_preset(
    cls: type, arguments: Sequence[str], defaults: Callable[[str, Config], Any]
) -> tuple[Any, Config]:
    """Parses the arguments of a command, with defaults from the preset, or from the run to resume.

    Args:
      cls: the class of the arguments.
      arguments: the words of the command line.
      defaults: (name of the preset, config) -> the default arguments.

    Returns:
      The arguments, and the config that gave the defaults.
    """
    named = next((word for word in arguments if word in PRESETS), DEFAULT_PRESET)
    _print_help(cls, arguments, defaults(named, PRESETS[named]))
    given = given_values(cls, arguments)
    preset = given.get("preset", DEFAULT_PRESET)
    config = PRESETS[preset]
    if given.get("resume") is not None:
        if given.get("run_dir") is not None:
            raise UserError("--resume names the run folder already; leave out --run-dir.")
        if "preset" in given:
            raise UserError("A resumed run has its own config; leave out the preset.")
        from lstm_mnist_jax.training.run_folder import read_run_folder  # imports JAX

        config = read_run_folder(given["resume"].expanduser()).config
    return built(cls, defaults(preset, config), given), config


def _print_help(cls: type, arguments: Sequence[str], default: Any) -> None:
    if asked := {"-h", "--help", "--help-all"} & set(arguments):
        print(help_of(cls, default, everything="--help-all" in asked), end="", flush=True)
        raise SystemExit(0)


def given_values(cls: type, arguments: Sequence[str]) -> dict[str, Any]:
    """The values of the arguments that are given, by field.

    Raises:
      UserError: a word is wrong, or an argument is missing.
    """
    found = arguments_of(cls)
    given, words = _options(cls, found, arguments)
    for argument in [argument for argument in found if argument.is_positional]:
        if argument.takes_several:
            given[argument.field] = _value(argument, argument.name, [word for word, _ in words])
            words = []
        elif words:
            word, hint = words.pop(0)
            if argument.field == "preset" and word not in PRESETS:
                raise UserError(_unexpected(cls, found, word, hint))
            given[argument.field] = _value(argument, argument.name, [word])
        elif argument.default is MISSING:
            command, positional = command_of(cls), [argument.usage() for argument in found if argument.is_positional]
            expected = f"{command} {' '.join(positional)}".removesuffix(" ...")
            raise UserError(f"An argument is missing, expected {expected}. See {command} --help.")
    if words:
        word, hint = words[0]
        if word in PRESETS and "preset" in given:
            raise UserError(f"There are two presets, {given['preset']} and {word}; name one.")
        raise UserError(_unexpected(cls, found, word, hint))
    return given


def _options(
    cls: type, found: Sequence[Argument], arguments: Sequence[str]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The values of the options that are given, by field; and the words that belong to none, each with a hint.

    A hint is on the option before the word, which takes fewer values.
    """
    options = {argument.name: argument for argument in found if not argument.is_positional}
    given, others, rest, hint = dict[str, Any](), list[tuple[str, str]](), list(arguments), ""
    while rest:
        word = rest.pop(0)
        if word == "--":  # only arguments follow
            return given, others + [(word, "") for word in rest]
        if not word.startswith("-") or word == "-":
            others.append((word, hint and f"{hint}: leave out {word!r}."))
            continue
        name, equals, value = word.partition("=")
        name = name.removeprefix("--").replace("_", "-")
        option = options.get(name) or options.get(name.removeprefix("no-"))
        if name in RENAMED:
            raise UserError(f"--{name} is --{RENAMED[name]} since version 0.5.0.")
        if not word.startswith("--") or option is None or (option.name != name and option.hint is not bool):
            raise UserError(f"Unknown option {word.split('=')[0]}{_nearest_option(options, word)} {_see(cls)}")
        if option.hint is bool:
            hint = f"--{name} takes no value"
            if equals:
                raise UserError(f"{hint}: leave out {value!r}.")
            given[option.field] = name == option.name
            continue
        hint, values = f"--{name} takes one value", [value] * bool(equals)
        while rest and not rest[0].startswith("--") and (option.takes_several or not values):
            values.append(rest.pop(0))
        if "repeated" in option.markers:
            given[option.field] = (*given.get(option.field, ()), *_value(option, f"--{name}", values))
        else:
            given[option.field] = _value(option, f"--{name}", values)
    return given, others


def _value(argument: Argument, name: str, words: Sequence[str]) -> Any:
    """The value of an argument; integers may have commas between them, as well as spaces.

    Raises:
      ConfigError: a word is no value of it.
      UserError: there is none.
    """
    if words == [""] or not (words or argument.takes_several):  # "" is often a variable of the shell that is not set
        from lstm_mnist_jax.config.space import values_in_words  # imports NumPy

        expected = (
            values_in_words(argument.field) if argument.is_swept else described(argument.hint).removesuffix(" or None")
        )
        raise UserError(f"{name} has no value, expected {expected}.")
    if typing.get_origin(argument.hint) is not tuple:
        return from_text(argument.hint, words[0], name)
    kind = typing.get_args(argument.hint)[0]
    if kind is int:
        words = " ".join(words).replace(",", " ").split()
    found = []
    for word in words:
        try:
            found.append(from_text(kind, word, name))
        except ConfigError:
            last = " The preset comes first." if word in PRESETS else ""
            raise UserError(
                f"{name} is {word!r}, expected integers with commas or spaces between, such as 32,64.{last}"
            ) from None
    return tuple(found)


def _see(cls: type) -> str:
    return f"See {command_of(cls)} {'--help-all' if hasattr(cls, 'common') else '--help'}."


def _nearest_option(options: Mapping[str, Argument], word: str) -> str:
    """The end of a message: the option that a mistyped one, or one of another program, may mean."""
    name = word.split("=")[0].lstrip("-").replace("_", "-").lower()
    flags = [f"no-{name}" for name, option in options.items() if option.hint is bool]
    meant = [f"--{option}" for option in ELSEWHERE.get(name, ()) if option in options]
    if meant:
        return f"; did you mean {' or '.join(meant)}?"
    if len(name) == 1:
        return ". Options are whole words with two dashes."
    return did_you_mean(name, [*options, *flags, "help", "help-all", "debug"]).replace("mean ", "mean --")


def _unexpected(cls: type, found: Sequence[Argument], word: str, hint: str) -> str:
    """What is wrong with a word that is no argument, or is taken for a preset but is none."""
    takes_preset = found[0].field == "preset"
    nearest = did_you_mean(word, PRESETS if takes_preset else ())
    if "no value" in hint or (hint and nearest == "."):
        of_sweep = takes_preset and "Sweep" not in cls.__name__ and "no value" not in hint
        return hint + " Several values of an option are for lstm-mnist sweep." * of_sweep
    if not takes_preset:
        return f"Unexpected argument {word!r}. {_see(cls)}"
    name, equals, value = word.partition("=")
    if equals and (option := name.replace("_", "-")) in [argument.name for argument in found]:
        return f"{word!r} is no preset; for the option, write --{option} {value}."
    if Path(word, "config.json").is_file():
        return f"{word!r} is a run folder, but a preset was expected. To train that run further, use --resume {word}."
    return f"Unknown preset {word!r}; expected one of {', '.join(PRESETS)}{nearest}"


@dataclass(frozen=True)
class CommandExecution(Execution):
    """How to execute, on which devices. Changes no result beyond float32 rounding."""

    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, for a faster start the next time."""


def start_jax(execution: Execution, batch_size: int | None = None) -> None:
    """Sets JAX's compilation cache and the number of CPU devices: for commands, not for library functions.

    Call it after the command's imports: from here on, a Ctrl-C is a KeyboardInterrupt again. A folder, or a minimal
    compile time, that JAX's environment variables or its config already set stays.

    Args:
      execution: the number of devices, and for a `CommandExecution` whether there is a cache.
      batch_size: examples that the devices share; None for a whole batch each, as in a sweep.

    Raises:
      UserError: there is a memory limit, but no sweep.
    """
    import jax

    from lstm_mnist_jax.rnn.native.build import user_cache_folder
    from lstm_mnist_jax.training.mesh import use_cpu_devices

    interrupts.raise_again()
    if batch_size is not None and execution.memory_limit is not None:
        raise UserError("--memory-limit has no effect here: it is for the runs of a sweep. Leave it out.")
    use_cpu_devices(execution, batch_size)
    options = jax.config.values
    if isinstance(execution, CommandExecution) and not execution.compilation_cache:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if options["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(user_cache_folder() / "compiled"))
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    if options["jax_persistent_cache_min_compile_time_secs"] == JAX_MIN_COMPILE_SECONDS:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@contextmanager
def run_dir_of(parsed: Any, name: str) -> Iterator[Path]:
    """The folder that the arguments name; else a new one under runs/, which is removed if it is empty at the end.

    It is made here, so that programs that start at the same time get folders of their own.
    """
    if named := parsed.resume or parsed.run_dir:
        yield named
        return
    runs, name = Path("runs"), time.strftime(f"{name}-%Y%m%d-%H%M%S")
    with os_errors_as(RunError, runs, "written to"):
        for number in itertools.count(1):
            path = runs / (name if number == 1 else f"{name}-{number}")
            runs.mkdir(exist_ok=True)
            with suppress(FileExistsError, FileNotFoundError):  # another program may just have removed runs/
                path.mkdir()
                break
    try:
        yield path
    finally:
        with suppress(OSError):  # they are not empty
            path.rmdir()
            runs.rmdir()


class OutputConsole(Console):
    """A console where a closed output raises BrokenPipeError, which `main` handles."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class TrainingConsole(Console):
    """A console for training. Where its reader has closed it (`train ... | head`), the run is saved and stops.

    That is what SIGHUP does, which is sent where a terminal is closed. Under nohup, which ignores it, the run goes on.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
        handler = signal.SIG_IGN if hang_up is None else signal.getsignal(hang_up)
        if handler == signal.SIG_DFL:  # nothing is trained at the moment
            raise BrokenPipeError
        if hang_up is None or handler == signal.SIG_IGN:
            print("lstm-mnist: the output is closed; the training run goes on without it", file=sys.stderr)
        else:
            print("lstm-mnist: the output is closed; the run is saved and stops (--resume goes on)", file=sys.stderr)
            signal.raise_signal(hang_up)


def console_of_first() -> TrainingConsole:
    """A console that prints in process 0 only."""
    from lstm_mnist_jax.training import processes

    return TrainingConsole(quiet=not processes.is_first())
