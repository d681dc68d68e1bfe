"""Shared by the commands: parsing of arguments, the compilation cache, the console, and names of run folders."""

import contextlib
import dataclasses
import io
import itertools
import os
import signal
import sys
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from lstm_mnist_jax.cli.arguments import arguments_of, command_of, default_of, help_of
from lstm_mnist_jax.config import PRESETS, Config, Execution
from lstm_mnist_jax.config.json import described, from_text
from lstm_mnist_jax.errors import ConfigError, UserError, did_you_mean

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


def parse(cls: type, arguments: Sequence[str], default: Any = None) -> Any:
    """The arguments of a command. Prints its help, and ends the program, where they ask for that.

    Args:
      cls: the class of the arguments: a dataclass, some of whose fields may be dataclasses.
      arguments: the words of the command line.
      default: an object of the class, with the values of the options that are not given; None takes the class's own.

    Raises:
      UserError: a word is wrong.
    """
    for word in arguments:
        name = word.split("=")[0].removeprefix("--").removeprefix("no-").replace("_", "-")
        if word.startswith("--") and name in RENAMED:
            raise UserError(f"--{name} is --{RENAMED[name]} since version 0.5.0.")
    command = command_of(cls)
    if asked := {"-h", "--help", "--help-all"} & set(arguments):
        print(help_of(cls, default, everything="--help-all" in asked), end="", flush=True)
        raise SystemExit(0)
    arguments = _without_commas(cls, arguments)
    options: dict[str, Any] = {} if default is None else {"default": default}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed, unknown = tyro.cli(
                cls,
                prog=command,
                args=arguments,
                add_help=False,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=REGISTRY,
                return_unknown_args=True,
                **options,
            )
    except SystemExit as end:
        cause: BaseException | None = end
        while (cause := cause and cause.__context__) is not None:
            if isinstance(cause, UserError):  # of a dataclass, which tyro would print in a frame
                raise cause from None
        raise UserError(_fault(cls, command, arguments, printed.getvalue())) from None
    _refuse_unknown(cls, arguments, unknown)
    return parsed


def _refuse_unknown(cls: type, arguments: Sequence[str], unknown: Sequence[str]) -> None:
    """Raises UserError where words belong to no option and no argument."""
    see = f"See {command_of(cls)} {'--help-all' if hasattr(cls, 'common') else '--help'}."
    for word in unknown:
        if word.startswith("-") and word != "-":
            raise UserError(f"Unknown option {word.split('=')[0]}{_nearest_option(cls, word)} {see}")
    if unknown:
        presets = [word for word in arguments if word in PRESETS]
        if hasattr(cls, "preset") and unknown[0] in PRESETS and len(presets) > 1:
            raise UserError(f"There are two presets, {presets[0]} and {presets[1]}; name one.")
        raise UserError(f"Unexpected argument {unknown[0]!r}. {_flag_before(cls, arguments, unknown[0]) or see}")


def _nearest_option(cls: type, word: str) -> str:
    """The end of a message: the option that a mistyped one, or one of another program, may mean."""
    options = _hints(cls)
    name = word.split("=")[0].lstrip("-").replace("_", "-").lower()
    flags = [f"no-{option}" for option, hint in options.items() if hint is bool]
    meant = [f"--{option}" for option in ELSEWHERE.get(name, ()) if option in options]
    if meant:
        return f"; did you mean {' or '.join(meant)}?"
    if len(name) == 1:
        return ". Options are whole words with two dashes."
    return did_you_mean(name, [*options, *flags, "help", "help-all", "debug"]).replace("mean ", "mean --")


def _without_commas(cls: type, arguments: Sequence[str]) -> list[str]:
    """The words, where integers of one option may have commas between them (32,64), each a word of its own."""
    several = {name for name, hint in _hints(cls).items() if hint == tuple[int, ...]}
    found, is_list = list[str](), False
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, values = argument.partition("=")
            is_list = name[2:].replace("_", "-") in several
            found += [name, *values.replace(",", " ").split()] if is_list and equals else [argument]
        elif is_list:
            found += argument.replace(",", " ").split()
        else:
            found.append(argument)
    return found


def _hints(cls: type) -> dict[str, Any]:
    """The types of the options of a command, by their names without dashes."""
    return {argument.name: argument.hint for argument in arguments_of(cls) if not argument.is_positional}


REGISTRY = tyro.constructors.ConstructorRegistry()


@REGISTRY.struct_rule
def _own_dataclass(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    """Our classes without their help texts, which `arguments` prints."""
    cls: Any = info.type
    if not dataclasses.is_dataclass(cls) or not cls.__module__.startswith(__package__.split(".")[0]):
        return None
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = tuple(
        tyro.constructors.StructFieldSpec(
            name=field.name,
            type=hints[field.name],
            default=default_of(field, info.default),
            helptext=None,
        )
        for field in dataclasses.fields(cls)
    )
    return tyro.constructors.StructConstructorSpec(typing.cast(Any, cls), fields)


def given_options(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The options among the words of a command line, by their names without dashes, each with the words after it."""
    found, words = dict[str, list[str]](), list[str]()
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            words = found[name.replace("_", "-")] = [value] if equals else []
        else:
            words.append(argument)
    return found


def _fault(cls: Any, command: str, arguments: Sequence[str], printed: str) -> str:
    """What is wrong with the arguments that could not be parsed; if it is not found, what tyro printed.

    Raises:
      ConfigError: a word is no value of its option.
    """
    found = arguments_of(cls)
    if found[0].is_positional and found[0].choices and arguments and not arguments[0].startswith("-"):
        from_text(found[0].hint, arguments[0], found[0].name)
    for name, words in given_options(arguments).items():
        hint = _hints(cls).get(name, str)
        if hint is bool:
            continue
        several = typing.get_origin(hint) is tuple
        if not words and not several:
            return f"--{name} has no value, expected {described(hint)}."
        for word in words if several else words[:1]:
            try:
                from_text(typing.get_args(hint)[0] if several else hint, word, f"--{name}")
            except ConfigError:
                if not several:
                    raise
                last = " The preset comes first." if word in PRESETS else ""
                return f"--{name} is {word!r}, expected integers with commas or spaces between, such as 32,64.{last}"
    if "(required)" in printed:
        names = " ".join(argument.usage() for argument in found if argument.is_positional).removesuffix(" ...")
        return f"An argument is missing, expected {command} {names}. See {command} --help."
    title, *lines = (line.strip("│╭╮╰╯─- ") for line in printed.splitlines())
    message = " ".join(line for line in lines if line).split("For full helptext")[0].strip()
    return f"{title}: {message}"


def _flag_before(cls: type, arguments: Sequence[str], word: str) -> str | None:
    """A hint where a word follows an option that takes no value."""
    flags = [name for name, hint in _hints(cls).items() if hint is bool]
    for name, words in given_options(arguments).items():
        if name.removeprefix("no-") in flags and words[:1] == [word]:
            return f"--{name} takes no value: leave out {word!r}."
    return None


def _unknown_preset(cls: type, arguments: Sequence[str], word: str) -> str:
    """What is wrong with a word that is taken for a preset, but is none."""
    if hint := _flag_before(cls, arguments, word):
        return hint
    for name, words in given_options(arguments).items():
        if word in words[1:] and word not in words[:1] and did_you_mean(word, PRESETS) == ".":
            to_sweep = "" if "Sweep" in cls.__name__ else " Several values of an option are for lstm-mnist sweep."
            return f"--{name} takes one value: leave out {word!r}.{to_sweep}"
    name, equals, value = word.partition("=")
    if equals and (option := name.replace("_", "-")) in _hints(cls):
        return f"{word!r} is no preset; for the option, write --{option} {value}."
    return f"Unknown preset {word!r}; expected one of {', '.join(PRESETS)}{did_you_mean(word, PRESETS)}"


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
    preset, comes_first = "tutorial", bool(arguments) and arguments[0] in PRESETS
    if comes_first:
        preset, *arguments = arguments
    config = PRESETS[preset]
    parsed = parse(cls, arguments, defaults(preset, config))
    if parsed.resume is not None:
        if parsed.run_dir is not None:
            raise UserError("--resume names the run folder already; leave out --run-dir.")
        if comes_first or parsed.preset != preset:
            raise UserError("A resumed run has its own config; leave out the preset.")
        from lstm_mnist_jax.training.run_folder import read_run_folder  # imports JAX

        config = read_run_folder(parsed.resume.expanduser()).config
    elif parsed.preset not in PRESETS:
        raise UserError(_unknown_preset(cls, arguments, parsed.preset))
    elif parsed.preset != preset and comes_first:
        raise UserError(f"There are two presets, {preset} and {parsed.preset}; name one.")
    elif parsed.preset != preset:  # it follows the options
        preset, config = parsed.preset, PRESETS[parsed.preset]
    else:
        return parsed, config
    return parse(cls, arguments, defaults(preset, config)), config


@dataclass(frozen=True)
class CommandExecution(Execution):
    """How to execute, on which devices. Changes no result beyond rounding."""

    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, for a faster start the next time."""


def start_jax(execution: Execution, batch_size: int | None = None) -> None:
    """Sets JAX's compilation cache and the number of CPU devices: for commands, not for library functions.

    A folder, or a minimal compile time, that JAX's environment variables or its config already set stays.

    Args:
      execution: the number of devices, and for a `CommandExecution` whether there is a cache.
      batch_size: examples that the devices share; None for a whole batch each.
    """
    import jax

    from lstm_mnist_jax.rnn.native.build import user_cache_folder
    from lstm_mnist_jax.training.mesh import use_cpu_devices

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


def new_run_dir(preset: str) -> Path:
    """A new folder name under runs/."""
    name = time.strftime(f"{preset}-%Y%m%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


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
