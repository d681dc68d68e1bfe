"""What the verbs share: how words become arguments, and where a run goes that was not told."""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from lstm_mnist_jax.config import PRESETS, Config
from lstm_mnist_jax.errors import UserError


def parse(cls: type, arguments: Sequence[str], default: Any = None) -> Any:
    """The arguments of a verb, of a class named after it."""
    verb = cls.__name__.removesuffix("Arguments").lower()
    options: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        cls, prog=f"lstm-mnist {verb}", args=list(arguments), config=(tyro.conf.OmitArgPrefixes,), **options
    )


def parse_with_preset(
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
    parsed = parse(cls, arguments, defaults(preset, config))
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
    return parse(cls, arguments, defaults(preset, config)), config


def _config_of(run_dir: Path) -> Config:
    from lstm_mnist_jax.sweeps.folder import is_population, read_population_folder
    from lstm_mnist_jax.training.run_folder import read_run_folder

    return (read_population_folder if is_population(run_dir) else read_run_folder)(run_dir).config


def new_run_dir(preset: str) -> Path:
    """A folder under runs/ that is not there yet."""
    name = time.strftime(f"{preset}-%Y%m%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def console_of_first() -> Console:
    """Where the first of several processes speaks, for all."""
    from lstm_mnist_jax.training import processes

    return Console(quiet=not processes.is_first())
