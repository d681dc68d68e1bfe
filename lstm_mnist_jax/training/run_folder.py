"""The folder of a run or of a sweep: its files, its lock, and which run a path names.

config.json       the resolved config, the data, the versions and the machine; of a sweep also its space, its members,
                  and the groups that are trained as one program
permutation.json  the order of permuted pixels, where all members have the same
metrics.jsonl     one JSON object for each epoch of each member
novelty.npz       what the training images look like, see `lstm_mnist_jax.data.novelty`
checkpoints/      see `checkpoint`; of a sweep in a folder for each group
tensorboard/      event files of a run
results.csv       of a sweep, a row for each member; results.png and results-curves.png draw them
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock, Timeout

from lstm_mnist_jax import __version__
from lstm_mnist_jax.config import Config
from lstm_mnist_jax.config.json import ADDED, differences, from_dict, from_value
from lstm_mnist_jax.config.space import Setting, Space, setting_of, with_setting
from lstm_mnist_jax.data import Dataset, novelty
from lstm_mnist_jax.data.normal_form import are_digits, default_form
from lstm_mnist_jax.errors import ConfigError, RunError, did_you_mean, os_errors_as
from lstm_mnist_jax.machine import processor
from lstm_mnist_jax.model import task_of
from lstm_mnist_jax.rnn import native
from lstm_mnist_jax.training.mesh import usable_cores
from lstm_mnist_jax.training.metrics import Guessing, read_metrics, score_of

FORMAT = 7
"""Number of the folder's format: raised when an older program could misread it."""

VERSIONED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

FORMER_SWEEP_FILE = "population.json"
"""In place of config.json in sweeps of version 0.4 and older."""

OWN_LEFTOVERS = (
    *(".lock", "permutation.json", "permutation.json.partial", "config.json.partial"),
    *(novelty.FILE, f"{novelty.FILE}.partial"),
)
"""Files that a run may leave that was killed before its first step."""

DECISIVE = {
    "lstm-mnist-jax": "version of lstm-mnist-jax",
    "jax": "version of jax",
    "jaxlib": "version of jaxlib",
    "backend": "JAX backend",
    "processor": "processor",
    "devices": "number of devices",
    "cores": "number of CPU cores",
    "x64": "jax_enable_x64",
    "matmul_precision": "jax_default_matmul_precision",
    "xla_flags": "XLA_FLAGS",
    "recurrence": "implementation of the recurrence",
    "kernel": "version of the compiled kernel",
}
"""Of an environment, what can change the last bits of a result, in words."""

CHANGEABLE = ("epochs", "early_stopping_patience", "tensorboard", "checkpoints.", "data.source", "data.data_dir")
"""Fields that may differ when a run is resumed. (The data may have moved; its fingerprint is compared.)"""


@dataclass(frozen=True)
class DataFacts:
    """Properties of the data that a run keeps, to be used without the data."""

    origin: str
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    fingerprint: str
    form: str | None = field(default=None, metadata=ADDED)
    is_light: bool = field(default=False, metadata=ADDED)

    @staticmethod
    def of(dataset: Dataset) -> "DataFacts":
        return DataFacts(
            dataset.origin,
            dataset.image_shape,
            dataset.class_names,
            dataset.fingerprint(),
            dataset.form or default_form(dataset.train.images, dataset.class_names),
            dataset.is_light,
        )

    def describe(self, dataset: Dataset) -> str:
        """Lines about the data, with what is assumed of pictures to predict if only the names of classes are digits."""
        if self.form != "whole" or dataset.form is not None or not are_digits(self.class_names):
            return dataset.describe()
        note = "the images are not as MNIST's digits: predict fits whole pictures\n  (--form digit finds digits)"
        return f"{dataset.describe()}\n  {note}"

    def require_same(self, dataset: Dataset, path: Path) -> None:
        """Raises RunError where a data set is not the one that was trained on in the folder `path`."""
        if dataset.fingerprint() != self.fingerprint:
            there = "Put those data back, or give their place now with --source."
            if dataset.origin != self.origin:
                there = "Leave out --source, or give the place of those data now."
            raise RunError(
                f"The data are not those that {path} was trained on: {dataset.origin} differs from what "
                f"{self.origin} was then. {there} Other images are classified by lstm-mnist predict, and trained on by "
                "a new run."
            )


@dataclass(frozen=True)
class Member:
    """One run of a sweep: its seed, and the fields of the config that the sweep set."""

    seed: int
    setting: Setting


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run or of a sweep, and the contents of its config.json.

    A run has one member and one group. A member of a sweep has the path FOLDER/NUMBER, whether or not there is such a
    folder: `member` is then its number, and `config` its own config.

    Attributes:
      path: the folder, or that of a member.
      config: what is trained; of a sweep, the config that its members change.
      data: the data that it is trained on.
      environment: the result of `environment` when config.json was written.
      initial_weights: the origin of imported initial weights; None where they were drawn.
      space: the settings and seeds of a sweep; None for a run.
      members: the runs of a sweep, or the one run.
      groups: the numbers of the members that share a program, group by group.
      member: the number of a member of a sweep; None for a run or a whole sweep.
    """

    path: Path
    config: Config
    data: DataFacts
    environment: dict[str, str]
    initial_weights: str | None = None
    space: Space | None = None
    members: tuple[Member, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    member: int | None = None

    @property
    def is_sweep(self) -> bool:
        """Whether this is a whole sweep."""
        return self.space is not None and self.member is None

    @property
    def home(self) -> Path:
        """The folder that holds the files."""
        return self.path if self.member is None else self.path.parent

    def member_config(self, member: int) -> Config:
        """The config of a member of a sweep, as for a single run."""
        if self.space is None or self.member is not None:
            return self.config
        chosen = self.members[member]
        return replace(with_setting(self.config, chosen.setting), seed=chosen.seed)

    def of_member(self, member: int) -> "RunFolder":
        """A member of this sweep."""
        if not 0 <= member < len(self.members):
            raise RunError(f"{self.path} has no run {member}, expected 0 to {len(self.members) - 1}.")
        return replace(self, path=self.path / str(member), config=self.member_config(member), member=member)

    def group_of(self, member: int) -> int:
        """The number of the group in which a member is trained."""
        return next(number for number, group in enumerate(self.groups) if member in group)

    def checkpoints_of(self, group: int) -> Path:
        """The folder of the checkpoints of a group."""
        return self.home / "checkpoints" if self.space is None else self.home / "checkpoints" / str(group)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints of the run."""
        return self.checkpoints_of(self.group_of(self.member or 0))

    @property
    def metrics(self) -> Path:
        return self.home / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.home / "tensorboard"

    @property
    def novelty(self) -> Path:
        return self.home / novelty.FILE


def read_run_folder(path: Path) -> RunFolder:
    """Opens a run, a sweep, or a member of a sweep (FOLDER/NUMBER, FOLDER/best) for reading.

    Raises:
      RunError: it is none of them, or one of another version, or its config.json is damaged.
    """
    if path.name.isdecimal():
        path = path.with_name(str(int(path.name))) if _may_name_member(path) else path  # 03 is 3
    file = path / "config.json"
    if not file.is_file() and _may_name_member(path):
        folder = read_run_folder(path.parent)
        if folder.is_sweep:
            if path.name == "best":  # which may have a folder, if it was resumed
                return read_run_folder(path.parent / str(_best_member(folder)))
            return folder.of_member(int(path.name))
        raise RunError(f"{path.parent} is a single run, not a sweep: name it without /{path.name}.")
    above = next((f"but within one: give {folder}." for folder in path.parents[:3] if _holds_run(folder)), None)
    if not path.is_dir():
        if path.exists() and above is not None:
            raise RunError(f"{path} is not a run folder, {above}")
        reason = "it is a file. Give the folder of a run." if path.is_file() else "there is no such folder."
        if not path.exists() and _may_name_member(path.with_name("best")) and read_run_folder(path.parent).is_sweep:
            reason = f"the runs of the sweep {path.parent} are best or numbers{did_you_mean(path.name, ['best'])}"
        raise RunError(f"{path} is not a run folder: {reason}")
    if not file.is_file():
        if (path / FORMER_SWEEP_FILE).is_file():
            raise RunError(
                f"{path} is a sweep of version 0.4 or older ({FORMER_SWEEP_FILE}). Use lstm-mnist-jax 0.4.0 with it "
                "(its command extract makes run folders), or sweep anew."
            )
        inside = sorted(str(other.parent) for other in path.glob("*/config.json"))
        hint = f"It holds runs: {', '.join(inside[:8])}." if inside else "lstm-mnist train makes one with --run-dir."
        if (path / ".lock").exists() and _is_empty(path):
            hint = f"The run in it ended before its first step was saved: start it again with --run-dir {path}."
        elif above is not None and not inside:
            raise RunError(f"{path} is not a run folder, {above}")
        raise RunError(f"{path} is not a run folder: it has no config.json. {hint}")
    try:
        contents = json.loads(file.read_text("utf-8"))
        number = contents["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged: {error!r}. Put it back from a copy, or start a new run.") from error
    writer = contents.get("environment", {}).get("lstm-mnist-jax", "unknown")
    instead = f"It was written by version {writer}: use that version, or start a new run."
    if number != FORMAT:
        raise RunError(
            f"{path} is a run folder of format {number}; this version of lstm-mnist-jax reads format {FORMAT}. "
            + instead
        )
    try:
        config = from_dict(Config, contents["config"])
        space = contents["space"]
        return RunFolder(
            path=path,
            config=config,
            data=from_dict(DataFacts, contents["data"]),
            environment=dict(contents["environment"]),
            initial_weights=contents["initial_weights"],
            space=None if space is None else from_dict(Space, space),
            members=tuple(
                Member(from_value(int, member.pop("seed"), "seed"), setting_of(member))
                for member in contents["members"]
            ),
            groups=tuple(tuple(map(int, group)) for group in contents["groups"]),
        )
    except (ConfigError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file} is damaged or of another version: {error} {instead}") from error


def _may_name_member(path: Path) -> bool:
    """Whether a path is SWEEP/NUMBER or SWEEP/best, for the folder of a sweep or of a run."""
    return (path.name == "best" or path.name.isdecimal()) and _holds_run(path.parent)


def _holds_run(folder: Path) -> bool:
    """Whether the config.json of a folder is that of a run or of a sweep."""
    try:
        return {"format", "space", "members"} <= json.loads((folder / "config.json").read_text("utf-8")).keys()
    except (OSError, ValueError, AttributeError):  # none, or of another program
        return False


def read_run(path: Path) -> RunFolder:
    """Opens a run, or a member of a sweep, by `read_run_folder`. Raises RunError for a whole sweep."""
    folder = read_run_folder(path)
    if folder.is_sweep:
        raise RunError(
            f"{path} is a sweep of {len(folder.members)} runs. Name one of them: {path / 'best'} (on validation), or "
            f"{path / '0'} to {path / str(len(folder.members) - 1)}, as results.csv numbers them."
        )
    return folder


def _best_member(folder: RunFolder) -> int:
    """The member with the best epoch on validation in metrics.jsonl, the earliest of equals."""
    found = read_metrics(folder.metrics)
    epochs = [metrics for metrics in found if not metrics.diverged]
    if not epochs:
        diverged = {metrics.member for metrics in found}.issuperset(range(len(folder.members)))
        reason = "The loss of all runs of {} became infinite or NaN: sweep lower learning rates, or with --clip-norm 1."
        reason = reason if diverged else "No run of {} has a finished epoch yet. Name one by its number, or train on."
        raise RunError(reason.format(folder.path))
    best = max(epochs, key=lambda metrics: (score_of(folder.config, metrics), -metrics.member))
    return best.member


def learned_nothing(folder: RunFolder, counts: np.ndarray, images: np.ndarray | None = None) -> str | None:
    """What is printed of a run that was no better than guessing; None of another, and of one without an epoch.

    Args:
      folder: of the run.
      counts: int [classes], the validation examples of each class.
      images: the training images, uint8, which may be the cause; None where they are not at hand.
    """
    return Guessing.of(counts).warning(folder.config, read_metrics(folder.metrics, folder.member or 0), images)


def refuse_occupied(path: Path) -> None:
    """Raises RunError where a folder for a new run holds a run, or anything else, already."""
    if (path / "config.json").exists() or (path / FORMER_SWEEP_FILE).exists():
        raise RunError(f"{path} already holds a run. Continue it with --resume {path}, or choose another --run-dir.")
    if _may_name_member(path):
        raise RunError(
            f"{path} is in the run folder {path.parent}, where such a name is that of a run of a sweep. Choose another "
            f"--run-dir, or continue that run with --resume {path}."
        )
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, expected the name of a folder for the run.")
    if path.is_dir() and not _is_empty(path):
        raise RunError(f"{path} holds other files; choose an empty or a new folder as --run-dir.")


def _is_empty(path: Path) -> bool:
    return all(entry.name in OWN_LEFTOVERS for entry in path.iterdir())


def create_run_folder(
    path: Path, config: Config, dataset: Dataset, devices: int, initial_weights: str | None = None
) -> RunFolder:
    """The folder of a new run, which so many devices train. Raises RunError where it is not empty."""
    refuse_occupied(path)
    one = (Member(config.seed, {}),)
    return RunFolder(
        path, config, DataFacts.of(dataset), environment(devices), initial_weights, members=one, groups=((0,),)
    )


def resume_run_folder(folder: RunFolder, config: Config, dataset: Dataset) -> RunFolder:
    """The folder of a run or of a sweep that goes on with `config`.

    Raises:
      ConfigError: the config differs in more than may change.
      RunError: the data are not those that the run was trained on.
    """
    changed = replace(folder, config=config)
    refuse_changes(folder.config, config)
    for member in range(len(folder.members)):  # whose learning rate may have a schedule though the config's has none
        refuse_changes(folder.member_config(member), changed.member_config(member))
    if folder.is_sweep and config.early_stopping_patience != folder.config.early_stopping_patience:
        raise ConfigError(
            f"early_stopping_patience is {folder.config.early_stopping_patience} in the sweep, "
            f"{config.early_stopping_patience} was asked for. Runs of it may have stopped already; leave it out, or "
            "start a new sweep."
        )
    folder.data.require_same(dataset, folder.path)
    return changed


def refuse_changes(former: Config, config: Config) -> None:
    """Raises ConfigError where the config of a resumed run differs in more than may change."""
    changed = differences(former, config)
    refused = {name: values for name, values in changed.items() if not name.startswith(CHANGEABLE)}
    if config.epochs != former.epochs and former.optimizer.schedule != "constant":
        raise ConfigError(
            f"epochs is {former.epochs} in the run, {config.epochs} was asked for. Its learning-rate schedule "
            f"({former.optimizer.schedule}) covers {former.epochs} epochs, so it cannot be resumed for more. Start a "
            f"new run with --epochs {config.epochs}."
        )
    if refused:
        listed = "; ".join(f"{name} is {old} in the run, {new} was asked for" for name, (old, new) in refused.items())
        raise ConfigError(f"A resumed run keeps its config, but {listed}. Leave this out, or start a new run.")


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Locks a run folder for the one process that writes to it, while entered; a lock ends with its process.

    Raises:
      RunError: another process writes to it, or it cannot be made, or not have this name.
    """
    if "[" in str(path.absolute()):
        # orbax finds its files by a glob of the whole path, where a bracket is a pattern: no checkpoint would be read.
        raise RunError(f"{path.absolute()} has a '[' in its path, where no checkpoint can be saved. Choose another.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        file_lock = FileLock(path / ".lock")
        file_lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{path} is in use by another run. Wait for it, or choose another --run-dir.") from None
    except OSError as error:
        raise RunError(f"{path} cannot be written to: {error.strerror or error}.") from error
    try:
        yield
    finally:
        file_lock.release()


def environment(devices: int) -> dict[str, str]:
    """Versions and options that determine the results to the last bit, the machine and the date.

    Args:
      devices: how many train, in all processes together.
    """
    own = {"lstm-mnist-jax": __version__, "python": platform.python_version(), "backend": jax.default_backend()}
    is_cpu = own["backend"] == "cpu"
    own["kernel"] = (native.version() if is_cpu else None) or "none"
    own["recurrence"] = "xla" if own["kernel"] == "none" else "native"
    own["processor"] = processor() if is_cpu else jax.devices()[0].device_kind
    own["machine"] = f"{devices} core{'s' * (devices > 1)} of" if is_cpu else f"{devices} x"
    own["machine"] += f" {own['processor']}"
    own["devices"], own["cores"] = str(devices), str(usable_cores()) if is_cpu else "not used"
    own["x64"] = str(jax.config.values["jax_enable_x64"])
    own["matmul_precision"] = str(jax.config.values["jax_default_matmul_precision"])
    own["xla_flags"] = os.environ.get("XLA_FLAGS", "").strip()
    own["date"] = time.strftime("%Y-%m-%d")
    return own | {name: version(name) for name in VERSIONED_PACKAGES}


def environment_changes(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """A line for each difference between two environments that can change the last bits, and what follows from them.

    What older versions did not write is not compared.
    """
    changed = [name for name in DECISIVE if name in then and then[name] != now[name]]
    if {"recurrence", "kernel"} <= set(changed):  # of which one follows from the other
        changed.remove("kernel")
    lines = [f"{DECISIVE[name]} was {then[name] or 'not set'}, is {now[name] or 'not set'}" for name in changed]
    return [*lines, "The result may differ in rounding from that of a run without interruption."] if lines else []


def write_config(folder: RunFolder) -> None:
    """Writes config.json atomically, and permutation.json. Raises RunError where they cannot be written."""
    contents: dict[str, Any] = {
        "format": FORMAT,
        "config": asdict(folder.config),
        "data": asdict(folder.data),
        "environment": folder.environment,
        "initial_weights": folder.initial_weights,
        "space": None if folder.space is None else asdict(folder.space),
        "members": [{"seed": member.seed, **member.setting} for member in folder.members],
        "groups": folder.groups,
    }
    with os_errors_as(RunError, folder.path, "written to"):
        if folder.space is None or not {"task", "permutation_seed"} & set(folder.space.names):
            permutation = task_of(folder.config.model).permutation(folder.data.image_shape)
            if permutation is not None:  # for programs that read a run without this package
                write_atomically(folder.path / "permutation.json", json.dumps(permutation.tolist()) + "\n")
        write_atomically(folder.path / "config.json", json.dumps(contents, indent=2) + "\n")


def write_novelty(folder: RunFolder, dataset: Dataset) -> None:
    """Writes novelty.npz, if there is none and there are enough validation images.

    Raises:
      RunError: it cannot be written.
    """
    if folder.novelty.exists():
        return
    found = novelty.fit(dataset.train, dataset.validation)
    with os_errors_as(RunError, folder.path, "written to"):
        if found is not None:
            novelty.save(folder.novelty, found)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file: a crash leaves the old one or the new one, an error the old one."""
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
