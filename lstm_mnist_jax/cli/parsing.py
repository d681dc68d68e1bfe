"""Shared by the commands: parsing of arguments, the compilation cache, and default names of run folders."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from lstm_mnist_jax.config import PRESETS, Config, Execution
from lstm_mnist_jax.errors import UserError

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
    command = cls.__name__.removesuffix("Arguments").lower()
    options: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        cls, prog=f"lstm-mnist {command}", args=list(arguments), config=(tyro.conf.OmitArgPrefixes,), **options
    )


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
    preset, given = "tutorial", len(arguments)
    if arguments and arguments[0] in PRESETS:
        preset, *arguments = arguments
    config = PRESETS[preset]
    parsed = parse(cls, arguments, defaults(preset, config))
    if parsed.resume is not None:
        if parsed.run_dir is not None:
            raise UserError("--resume names the run folder already; leave out --run-dir.")
        if len(arguments) < given or parsed.preset != preset:
            raise UserError("A resumed run has its own config; leave out the preset.")
        from lstm_mnist_jax.training.run_folder import read_run_folder  # imports JAX

        config = read_run_folder(parsed.resume.expanduser()).config
    elif parsed.preset not in PRESETS:
        several = parsed.preset.replace(".", "").replace("-", "").replace("e", "").isdecimal()
        hint = " Several values of an option are for lstm-mnist sweep." if several else ""
        raise UserError(f"Unknown preset {parsed.preset!r}; expected one of {', '.join(PRESETS)}.{hint}")
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


def use_compilation_cache(wanted: bool = True) -> None:
    """Sets JAX's compilation cache for the whole process: for commands, not for library functions.

    A folder, or a minimal compile time, that JAX's environment variables or its config already set stays.
    """
    import jax

    from lstm_mnist_jax.rnn.native.build import user_cache_folder

    options = jax.config.values
    if not wanted:
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


def console_of_first() -> Console:
    """A console that prints in process 0 only."""
    from lstm_mnist_jax.training import processes

    return Console(quiet=not processes.is_first())
