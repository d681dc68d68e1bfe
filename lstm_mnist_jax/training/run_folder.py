"""A run is a folder: what it holds, who may write to it, and what was trained there.

config.json       the resolved config, the data it was trained on, the versions and the machine it ran with
permutation.json  where pixels are permuted, their order
metrics.jsonl     one JSON object an epoch
checkpoints/      see `checkpoint`
tensorboard/      event files
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from lstm_mnist_jax import machine
from lstm_mnist_jax.config import Config
from lstm_mnist_jax.config.json import differences, from_dict, to_dict
from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.model import task_of
from lstm_mnist_jax.rnn import native
from lstm_mnist_jax.version import __version__

FORMAT = 6
"""Number of the folder's format: raised when an older program could misread it."""

VERSIONED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

POPULATION_FILE = "population.json"
"""Stands in place of config.json where many trainings share a folder."""

OWN_LEFTOVERS = (
    ".lock",
    "permutation.json",
    "permutation.json.partial",
    "config.json.partial",
    f"{POPULATION_FILE}.partial",
)
"""What a run that was killed before it began may have left."""

CHANGEABLE = ("epochs", "early_stop_epochs", "tensorboard", "checkpoints.", "data.source", "data.data_dir")
"""What may differ when a run is resumed: it changes nothing that was already trained. (The data may have moved;
that they are the same data is checked by their fingerprint.)"""


@dataclass(frozen=True)
class DataFacts:
    """What a run remembers of its data, so that it can be used without them."""

    origin: str
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    fingerprint: str

    @staticmethod
    def of(dataset: Dataset) -> "DataFacts":
        return DataFacts(dataset.origin, dataset.image_shape, dataset.class_names, dataset.fingerprint())

    def require_same(self, dataset: Dataset, path: Path) -> None:
        """Raises RunError where a data set is not the one that was trained on in the folder `path`."""
        if dataset.fingerprint() != self.fingerprint:
            raise RunError(
                f"The data are not those that {path} was trained on: {dataset.origin} differs from what "
                f"{self.origin} was then."
            )


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run, and the contents of its config.json.

    Attributes:
      path: the folder.
      config: what is trained.
      data: what it is trained on.
      environment: what `environment` gave when config.json was written.
      initial_weights: where the weights came from that the run began with; None where it drew them.
    """

    path: Path
    config: Config
    data: DataFacts
    environment: dict[str, str]
    initial_weights: str | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"


def read_run_folder(path: Path) -> RunFolder:
    """Opens the folder of a run for reading.

    Raises:
      RunError: it is not one, or one of another version, or its config.json is damaged.
    """
    file = path / "config.json"
    if not path.is_dir():
        raise RunError(f"{path} is not a run folder: there is no such folder.")
    if (path / POPULATION_FILE).is_file():
        raise RunError(
            f"{path} holds many trainings. Take one out, with lstm-mnist extract {path} --run-dir ANOTHER_FOLDER."
        )
    if not file.is_file():
        inside = sorted(str(other.parent) for other in path.glob("*/config.json"))
        hint = f"It holds runs: {', '.join(inside[:8])}." if inside else "A training makes one with --run-dir."
        raise RunError(f"{path} is not a run folder: it has no config.json. {hint}")
    try:
        contents = json.loads(file.read_text("utf-8"))
        number = contents["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged: {error!r}. Put it back from a copy, or start a new run.") from error
    if number != FORMAT:
        writer = contents.get("environment", {}).get("lstm-mnist-jax", "unknown")
        raise RunError(
            f"{path} is a run folder of format {number}; this version of lstm-mnist-jax reads format {FORMAT}. "
            f"It was written by version {writer}: use that one with it, or train anew."
        )
    try:
        config, data = from_dict(Config, contents["config"]), from_dict(DataFacts, contents["data"])
        return RunFolder(path, config, data, dict(contents["environment"]), contents["initial_weights"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file} is damaged or of another version: {error}") from error


def refuse_occupied(path: Path) -> None:
    """Raises RunError where a folder for a new run holds a run, or anything else, already."""
    if (path / "config.json").exists() or (path / POPULATION_FILE).exists():
        raise RunError(f"{path} already holds a run. Go on with it by --resume {path}, or choose another --run-dir.")
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, expected the name of a folder for the run.")
    if path.is_dir() and any(entry.name not in OWN_LEFTOVERS for entry in path.iterdir()):
        raise RunError(f"{path} holds other files; choose an empty or a new folder as --run-dir.")


def create_run_folder(path: Path, config: Config, dataset: Dataset, initial_weights: str | None = None) -> RunFolder:
    """The folder of a new run.

    Raises:
      RunError: the folder holds a run, or anything else, already.
    """
    refuse_occupied(path)
    return RunFolder(path, config, DataFacts.of(dataset), environment(), initial_weights)


def resume_run_folder(folder: RunFolder, config: Config, dataset: Dataset) -> RunFolder:
    """The folder of a run that goes on with `config`.

    Raises:
      ConfigError: the config differs in more than may change.
      RunError: the data are not those that the run was trained on.
    """
    refuse_changes(folder.config, config)
    folder.data.require_same(dataset, folder.path)
    return replace(folder, config=config)


def refuse_changes(former: Config, config: Config) -> None:
    """Raises ConfigError where the config of a resumed run differs in more than may change."""
    changed = differences(former, config)
    refused = {name: values for name, values in changed.items() if not name.startswith(CHANGEABLE)}
    if config.epochs != former.epochs and former.optimizer.schedule != "constant":
        raise ConfigError(
            f"epochs is {former.epochs} in the run, {config.epochs} was asked for. Its learning rate falls over just "
            f"these {former.epochs} ({former.optimizer.schedule}): a longer training is another one, to be begun anew."
        )
    if refused:
        told = "; ".join(f"{name} is {old} in the run, {new} was asked for" for name, (old, new) in refused.items())
        raise ConfigError(f"A resumed run keeps its config, but {told}. Leave this out, or start a new run.")


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Locks a run folder for the one process that writes to it, while entered; a lock ends with its process.

    Raises:
      RunError: another process writes to it, or it cannot be made, or not have this name.
    """
    if "[" in str(path.absolute()):
        # orbax looks for what it wrote with a glob of the whole path, where a bracket stands for something else;
        # it would find nothing, and leave a checkpoint that nobody can read.
        raise RunError(f"{path.absolute()} has a '[' in its path, where no checkpoint can be saved. Choose another.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        file_lock = FileLock(path / ".lock")
        file_lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{path} is in use by another training. Wait for it, or choose another --run-dir.") from None
    except OSError as error:
        raise RunError(f"{path} cannot be written to: {error.strerror or error}.") from error
    try:
        yield
    finally:
        file_lock.release()


def environment() -> dict[str, str]:
    """When and on what: versions that decide the numbers, JAX's backend, what runs the recurrence, machine, date."""
    own = {"lstm-mnist-jax": __version__, "python": platform.python_version(), "backend": jax.default_backend()}
    own["recurrence"] = "native" if own["backend"] == "cpu" and native.unavailable() is None else "xla"
    own |= {"machine": machine.devices(), "date": time.strftime("%Y-%m-%d")}
    return own | {name: version(name) for name in VERSIONED_PACKAGES}


def environment_changes(then: dict[str, str]) -> list[str]:
    """What has changed, of what decides the last bits, since `environment` gave `then`: a line for each."""
    now = environment()
    return [
        f"{name} was {then.get(name)} and is {now[name]}: expect differences of rounding."
        for name in ("jax", "jaxlib", "backend", "recurrence")
        if then.get(name) != now[name]
    ]


def write_config(folder: RunFolder) -> None:
    """Writes config.json, whole or not at all.

    Raises:
      RunError: it cannot be written.
    """
    contents: dict[str, Any] = {
        "format": FORMAT,
        "config": to_dict(folder.config),
        "data": to_dict(folder.data),
        "environment": folder.environment,
        "initial_weights": folder.initial_weights,
    }
    try:
        write_permutation(folder.path, folder.config, folder.data)
        write_atomically(folder.path / "config.json", json.dumps(contents, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"{folder.path} cannot be written to: {error.strerror or error}.") from error


def write_permutation(path: Path, config: Config, data: DataFacts) -> None:
    """Writes the order of permuted pixels into the folder `path`, for whoever reads a run without this program."""
    permutation = task_of(config.model).permutation(data.image_shape)
    if permutation is not None:
        write_atomically(path / "permutation.json", json.dumps(permutation.tolist()) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a crash leaves the old one or the new one, never half of one; an error nothing new."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
