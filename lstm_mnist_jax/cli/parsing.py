"""Shared by the commands: parsing of arguments, the compilation cache, the console, and names of run folders."""

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import os
import sys
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

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


def parse(cls: type, arguments: Sequence[str], default: Any = None) -> Any:
    """The arguments of a command. Raises UserError where an option has its name of version 0.4."""
    for word in arguments:
        name = word.split("=")[0].removeprefix("--").removeprefix("no-").replace("_", "-")
        if word.startswith("--") and name in RENAMED:
            raise UserError(f"--{name} is --{RENAMED[name]} since version 0.5.0.")
    command = f"lstm-mnist {cls.__name__.removesuffix('Arguments').lower()}"
    options: dict[str, Any] = {} if default is None else {"default": default}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed, unknown = tyro.cli(
                cls,
                prog=command,
                description=inspect.getdoc(cls),
                args=list(arguments),
                config=(tyro.conf.OmitArgPrefixes,),
                registry=REGISTRY,
                return_unknown_args=True,
                **options,
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        cause: BaseException | None = end
        while (cause := cause and cause.__context__) is not None:
            if isinstance(cause, UserError):  # of a dataclass, which tyro would print in a frame
                raise cause from None
        raise UserError(_fault(cls, command, arguments, printed.getvalue())) from None
    for word in unknown:
        if word.startswith("--"):
            nearest = did_you_mean(word.split("=")[0], [f"--{name}" for name in _options(cls)])
            raise UserError(f"Unknown option {word}{nearest} See {command} --help.")
    if unknown:
        hint = _flag_before(cls, arguments, unknown[0]) or f"See {command} --help."
        raise UserError(f"Unexpected argument {unknown[0]!r}. {hint}")
    return parsed


REGISTRY = tyro.constructors.ConstructorRegistry()


@REGISTRY.struct_rule
def _own_dataclass(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    """Help texts without the line breaks of the source."""
    cls: Any = info.type
    if not dataclasses.is_dataclass(cls) or not cls.__module__.startswith(__package__.split(".")[0]):
        return None
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = tuple(
        tyro.constructors.StructFieldSpec(
            name=field.name,
            type=hints[field.name],
            default=_default(field, info.default),
            helptext=partial(_help, cls, field.name, hints[field.name]),
        )
        for field in dataclasses.fields(cls)
    )
    return tyro.constructors.StructConstructorSpec(typing.cast(Any, cls), fields)


def _default(field: "dataclasses.Field[Any]", given: Any) -> Any:
    if hasattr(given, field.name):
        return getattr(given, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default


def _help(cls: Any, field: str, hint: Any) -> str | None:
    """The docstring below a field, or of its class, in one line.

    The fields of a class with `documented_by` have the docstrings of the fields of those classes.
    """
    hint, *_ = typing.get_args(hint) or (hint,)
    if dataclasses.is_dataclass(hint):
        return inspect.getdoc(hint)
    owner = next(o for o in getattr(cls, "documented_by", cls.__mro__) if field in inspect.get_annotations(o))
    return _field_docstrings(owner.__module__).get((owner.__name__, field))


@cache
def _field_docstrings(module: str) -> dict[tuple[str, str], str]:
    """The docstrings below the fields of the classes of a module."""
    found = {}
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    for owner in [node for node in body if isinstance(node, ast.ClassDef)]:
        for field, below in itertools.pairwise(owner.body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = ast.literal_eval(below.value)
                found[owner.name, ast.unparse(field.target)] = " ".join(text.split())
    return found


def _options(cls: type) -> dict[str, Any]:
    """The types of the options of a command, by their names without dashes."""
    positional = typing.get_args(tyro.conf.Positional[int])[1]
    found = dict[str, Any]()
    for name, annotated in typing.get_type_hints(cls, include_extras=True).items():
        hint, *markers = typing.get_args(annotated) if hasattr(annotated, "__metadata__") else (annotated,)
        if dataclasses.is_dataclass(hint):
            found |= _options(typing.cast(type, hint))
        elif positional not in markers:
            found[name.replace("_", "-")] = hint
    return found


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
    name, hint = next(iter(typing.get_type_hints(cls).items()))
    if typing.get_origin(hint) is typing.Literal and arguments and not arguments[0].startswith("-"):
        from_text(hint, arguments[0], name)
    for name, words in given_options(arguments).items():
        hint = _options(cls).get(name, str)
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
                return f"--{name} is {word!r}, expected integers separated by spaces, such as 32 64."
    if "(required)" in printed:
        names = [field.name.upper() for field in dataclasses.fields(cls) if _default(field, None) is tyro.MISSING]
        return f"An argument is missing, expected {command} {' '.join(names)}. See {command} --help."
    title, *lines = (line.strip("│╭╮╰╯─- ") for line in printed.splitlines())
    message = " ".join(line for line in lines if line).split("For full helptext")[0].strip()
    return f"{title}: {message}"


def _flag_before(cls: type, arguments: Sequence[str], word: str) -> str | None:
    """A hint where a word follows an option that takes no value."""
    flags = [name for name, hint in _options(cls).items() if hint is bool]
    for name, words in given_options(arguments).items():
        if name.removeprefix("no-") in flags and words[:1] == [word]:
            return f"--{name} takes no value: leave out {word!r}."
    return None


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
        if hint := _flag_before(cls, arguments, parsed.preset):
            raise UserError(hint)
        several = parsed.preset.replace(".", "").replace("-", "").replace("e", "").isdecimal()
        hint = " Several values of an option are for lstm-mnist sweep." if several else ""
        nearest = did_you_mean(parsed.preset, PRESETS)
        raise UserError(f"Unknown preset {parsed.preset!r}; expected one of {', '.join(PRESETS)}{nearest}{hint}")
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
    """A console for training, which a closed output does not end."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        print("lstm-mnist: the output is closed; the training run goes on without it", file=sys.stderr)


def console_of_first() -> TrainingConsole:
    """A console that prints in process 0 only."""
    from lstm_mnist_jax.training import processes

    return TrainingConsole(quiet=not processes.is_first())
