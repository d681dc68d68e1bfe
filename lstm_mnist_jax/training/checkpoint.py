"""Checkpoints: saved by orbax in the background, checked by SHA-256, the newest kept; and loading from them.

    checkpoints/00000859/state/         the latest states of all members and their best ones, as orbax writes them
    checkpoints/00000859/record.json    the step, and of each member its score and its best epoch
    checkpoints/00000859/SHA256SUMS     of every file of the checkpoint; `sha256sum -c` reads it

SHA256SUMS is written last and atomically. A checkpoint without it was never finished; one that does not agree with it
is damaged. A resumed run skips both and prints so.
"""

import hashlib
import json
import math
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_mnist_jax.config.json import from_dict
from lstm_mnist_jax.errors import RunError, os_errors_as
from lstm_mnist_jax.model import param_shapes
from lstm_mnist_jax.training import processes
from lstm_mnist_jax.training.metrics import read_metrics, score_of
from lstm_mnist_jax.training.program import LatestAndBest
from lstm_mnist_jax.training.run_folder import RunFolder, write_atomically
from lstm_mnist_jax.training.step import TrainState, init_state

SUMS = "SHA256SUMS"

ATTEMPTS = 10
"""How often a checkpoint is looked for while a running training replaces older ones."""


@dataclass(frozen=True)
class MemberStatus:
    """The status of a member when a checkpoint was saved.

    Attributes:
      score: of the saved state on validation, see `metrics.score`; None within an epoch, where it was not evaluated.
      best_step, best_score: of its best epoch so far (the earliest of equals), if any.
      diverged_at: the first step whose loss or gradient was not finite, if any.
    """

    score: float | None = None
    best_step: int | None = None
    best_score: float | None = None
    diverged_at: int | None = None


@dataclass(frozen=True)
class Record:
    """What a checkpoint holds besides the states.

    Attributes:
      step: the number of steps made.
      places: the leading axis of the saved states: the members, the last one perhaps repeated.
      epoch_seconds: training time of the epoch so far.
      members: the status of each member.
    """

    step: int
    places: int
    epoch_seconds: float
    members: tuple[MemberStatus, ...]


class Checkpoints:
    """Writes the checkpoints of a run, or of a group of a sweep, one at a time, in the background. Close it at the end.

    Of several processes, each writes what only it holds, and process 0 the rest.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        """Args: the folder of the checkpoints, and how many of the newest to keep."""
        self._directory = directory.absolute()  # orbax takes no other
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._thread.submit(_orbax)  # a third of a second to import, while the first steps run
        self._pending: tuple[int, Future[None]] | None = None

    def save(self, states: Any, record: Record) -> None:
        """Starts to save `LatestAndBest`, which may not be donated yet. Raises RunError if the last save failed."""
        ocp = _orbax()
        self.wait()
        path = checkpoint_path(self._directory, record.step)
        try:
            if processes.is_first():
                shutil.rmtree(path, ignore_errors=True)  # what an interrupted save left
                path.mkdir(parents=True)
            # One device writes an array that all have. For each to write a part, orbax compiles a program a shape.
            context = ocp.Context()
            context.array.saving.use_replica_parallel = False
            with context:
                response = ocp.save_async(path / "state", states)
        except OSError as error:
            raise self._failure(record.step, error) from error
        self._pending = record.step, self._thread.submit(self._finish, response, path, record)

    def raise_failure(self) -> None:
        """Raises RunError if the save under way has failed. Does not wait."""
        if self._pending is not None and self._pending[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises RunError where it could not be written."""
        if self._pending is None:
            return
        step, future = self._pending
        self._pending = None
        try:
            future.result()
        except Exception as error:
            raise self._failure(step, error) from error

    def close(self) -> None:
        """Waits for the last save, and ends the background thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _finish(self, response: Any, path: Path, record: Record) -> None:
        response.result()
        if not processes.is_first():
            return
        write_atomically(path / "record.json", json.dumps(asdict(record), indent=2) + "\n")
        write_atomically(path / SUMS, "".join(f"{digest}  {name}\n" for name, digest in _digests(path).items()))
        finished = finished_steps(self._directory)
        for step in finished[: -self._keep]:
            old = checkpoint_path(self._directory, step)
            (old / SUMS).unlink(missing_ok=True)  # first, so that what a kill leaves counts as unfinished
            shutil.rmtree(old, ignore_errors=True)

    def _failure(self, step: int, error: Exception) -> RunError:
        if processes.is_process_failure(error):
            return processes.process_failure(error)
        finished = finished_steps(self._directory)
        kept = f"The newest one is that of step {finished[-1]}." if finished else "There is none yet."
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        full = "The disk is full: make room" if "No space left" in reason else "Fix this"
        return RunError(
            f"The checkpoint of step {step} could not be written to {self._directory}: {reason}. "
            f"Earlier checkpoints are untouched. {kept} {full}, then continue with --resume."
        )


def checkpoint_path(directory: Path, step: int) -> Path:
    """The folder of one checkpoint."""
    return directory / f"{step:08d}"


def finished_steps(directory: Path) -> list[int]:
    """The steps of all checkpoints that were completely written, ascending. Later damage is not checked.

    Raises:
      RunError: the folder cannot be read.
    """
    with os_errors_as(RunError, directory, "read"):  # and not by glob, which finds nothing where it may not read
        paths = directory.iterdir() if directory.exists() else ()
        return sorted(int(path.name) for path in paths if path.name.isdecimal() and (path / SUMS).exists())


def find_damage(path: Path) -> str | None:
    """A description of a checkpoint's damage, or None if every file is as it was saved. Other files are ignored."""
    try:
        lines = (path / SUMS).read_text("utf-8").splitlines()
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        found = _digests(path)
    except FileNotFoundError:
        return "was never finished"
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
    for name in sorted(expected):
        if name not in found:
            return f"lacks the file {name}"
        if expected[name] != found[name]:
            return f"has a damaged file, {name}"
    return None if expected else "has an empty list of files"


def read_record(path: Path) -> Record:
    """The record of a sound checkpoint."""
    record: Record = from_dict(Record, json.loads((path / "record.json").read_text("utf-8")))
    return record


def set_aside(directory: Path, newer_than: int) -> list[str]:
    """Clears the checkpoints that are newer than a step, so that training can resume there.

    Unfinished ones are removed, at older steps too; damaged ones are renamed and kept.

    Returns:
      A line for each: what was wrong, and what was done.
    """
    lines = []
    for path in sorted(directory.glob("[0-9]*")):
        if not path.name.isdecimal() or not path.is_dir():
            continue
        if not (path / SUMS).exists():
            shutil.rmtree(path)
            lines.append(f"Checkpoint {path.name} was never finished; its remains are removed.")
        elif int(path.name) > newer_than:
            damage = find_damage(path)
            aside = path.with_name(f"damaged-{path.name}")
            number = 1
            while aside.exists():
                number += 1
                aside = path.with_name(f"damaged-{path.name}-{number}")
            path.rename(aside)
            lines.append(f"Checkpoint {path.name} {damage}; it is set aside as {aside.name}.")
    return lines


def newest_sound_step(directory: Path) -> int | None:
    """The step of the newest undamaged checkpoint, or None."""
    steps = reversed(finished_steps(directory))
    return next((step for step in steps if find_damage(checkpoint_path(directory, step)) is None), None)


def load_state(path: Path, abstract_state: Any) -> Any:
    """Reads the state of a sound checkpoint.

    Args:
      path: the checkpoint's folder.
      abstract_state: the state's structure, with a `jax.ShapeDtypeStruct` (and sharding) for each array.

    Raises:
      RunError: it holds a state of another structure.
    """
    try:
        return _orbax().load(path.absolute() / "state", abstract_state)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"{path} cannot be read as a state of this program: {reason}") from error


def load_checkpoint(folder: RunFolder, name: str) -> tuple[int, TrainState]:
    """A saved state of a run, and its step.

    Args:
      folder: the run, or a run of a sweep.
      name: "best" (on validation; the last state if no epoch has ended), "last", or the step of a checkpoint.

    Raises:
      RunError: the checkpoint is missing or damaged.
    """
    for _ in range(ATTEMPTS - 1):
        before = finished_steps(folder.checkpoints)
        try:
            return _load(folder, name)
        except (RunError, OSError):
            if finished_steps(folder.checkpoints) == before:
                raise
    return _load(folder, name)


def _load(folder: RunFolder, name: str) -> tuple[int, TrainState]:
    directory = folder.checkpoints
    steps = finished_steps(directory)
    if not steps:
        raise RunError(f"{directory} has no checkpoint. Train the run first, or continue with --resume.")
    if name == "last" or (name.isdecimal() and int(name) in steps):
        step = saved_step = steps[-1] if name == "last" else int(name)
        _refuse_damaged(folder, step)
        field = "newest"
    else:
        saved_step = _checkpoint_with_best(folder, steps)
        best_step = read_status(folder, saved_step)[0].best_step
        if name not in ("best", str(best_step)):
            raise RunError(f"{directory} has no checkpoint {name!r}; expected best, last, or one of the steps {steps}.")
        field, step = ("newest", saved_step) if best_step is None else ("best", best_step)
    (state,) = load_member(folder, saved_step, field)
    return step, state


def _checkpoint_with_best(folder: RunFolder, steps: list[int]) -> int:
    """The step of the newest undamaged checkpoint, if no later epoch was better than the best weights in it."""
    step = newest_sound_step(folder.checkpoints)
    if step is not None:
        best_score = read_status(folder, step)[0].best_score
        later = [each for each in read_metrics(folder.metrics, folder.member or 0) if each.step > step]
        scores = [score_of(folder.config, metrics) for metrics in later]
        if step == steps[-1] or (best_score is not None and max(scores, default=-math.inf) <= best_score):
            return step
    _refuse_damaged(folder, steps[-1])
    return steps[-1]


def _refuse_damaged(folder: RunFolder, step: int) -> None:
    path = checkpoint_path(folder.checkpoints, step)
    if damage := find_damage(path):
        others = [other for other in finished_steps(folder.checkpoints) if other != step]
        use = f"Use --checkpoint {' or '.join(map(str, reversed(others)))}." if others else "There is no other one."
        raise RunError(f"Checkpoint {path} {damage}. {use}")


def read_status(folder: RunFolder, step: int) -> tuple[MemberStatus, float]:
    """The status of a run in the checkpoint of `step`, and its share of the epoch's seconds."""
    record = read_record(checkpoint_path(folder.checkpoints, step))
    return record.members[_place_of(folder)], record.epoch_seconds / len(record.members)


def load_member(folder: RunFolder, step: int, *names: str) -> list[TrainState]:
    """States of a run, or of a run of a sweep, in the checkpoint of `step`. Only these are read.

    Args:
      folder, step: the checkpoint.
      names: fields of `LatestAndBest`.

    Raises:
      RunError: the checkpoint holds states of another structure.
    """
    path = checkpoint_path(folder.checkpoints, step)
    place, places = _place_of(folder), read_record(path).places
    config, shape, classes = folder.config, folder.data.image_shape, len(folder.data.class_names)
    params = param_shapes(config.model, shape, classes)  # of this network they may be known already
    one = jax.eval_shape(lambda params: init_state(config, shape, classes, 0, params), params)
    try:
        host = jax.local_devices(backend="cpu")[0]  # there may be more of them than one accelerator holds
    except RuntimeError:
        host = jax.local_devices()[0]
    sharding = jax.sharding.SingleDeviceSharding(host)
    state: Any = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((places, *leaf.shape), leaf.dtype, sharding=sharding), one
    )
    skipped = jax.tree.map(lambda _: ..., state)  # orbax's placeholder
    wanted = {name: state if name in names else skipped for name in LatestAndBest._fields}
    saved = load_state(path, LatestAndBest(**wanted))
    device = jax.local_devices()[0]

    def of_member(leaf: jax.Array) -> jax.Array:  # by NumPy: nothing is compiled for each shape
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(np.asarray(jax.random.key_data(leaf))[place])
        return jax.device_put(np.asarray(leaf)[place], device)

    return [jax.tree.map(of_member, getattr(saved, name)) for name in names]


def _place_of(folder: RunFolder) -> int:
    number = folder.member or 0
    return folder.groups[folder.group_of(number)].index(number)


def _orbax() -> Any:
    from orbax.checkpoint import v1

    return v1


def _digests(path: Path) -> dict[str, str]:
    files = (file for file in path.rglob("*") if file.is_file() and file != path / SUMS)
    return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
