"""Loading the state of a run, or of one run of a sweep; and how a run of a sweep becomes a run in its own folder."""

import math
import shutil
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.training import checkpoint
from lstm_mnist_jax.training.checkpoint import Checkpoints, MemberStatus, Record
from lstm_mnist_jax.training.loop import refuse_fewer_epochs
from lstm_mnist_jax.training.metrics import MetricsWriter, read_metrics, score_of
from lstm_mnist_jax.training.program import LatestAndBest
from lstm_mnist_jax.training.run_folder import Member, RunFolder, lock, read_run, write_config
from lstm_mnist_jax.training.step import TrainState, init_state

ATTEMPTS = 10
"""How often a checkpoint is looked for while a running training replaces older ones."""


def load_checkpoint(folder: RunFolder, name: str) -> tuple[int, TrainState]:
    """A saved state of a run, and its step.

    Args:
      folder: the run, or a run of a sweep.
      name: "best" (on validation; the last state if no epoch has ended), "last", or the step of a checkpoint.

    Raises:
      RunError: the checkpoint is missing or damaged.
    """
    for _ in range(ATTEMPTS - 1):
        before = checkpoint.finished_steps(folder.checkpoints)
        try:
            return _load(folder, name)
        except (RunError, OSError):
            if checkpoint.finished_steps(folder.checkpoints) == before:
                raise
    return _load(folder, name)


def _load(folder: RunFolder, name: str) -> tuple[int, TrainState]:
    directory = folder.checkpoints
    steps = checkpoint.finished_steps(directory)
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
    for step in reversed(steps):
        if checkpoint.find_damage(checkpoint.checkpoint_path(folder.checkpoints, step)) is None:
            best_score = read_status(folder, step)[0].best_score
            later = [each for each in read_metrics(folder.metrics, folder.member or 0) if each.step > step]
            scores = [score_of(folder.config, metrics) for metrics in later]
            if step == steps[-1] or (best_score is not None and max(scores, default=-math.inf) <= best_score):
                return step
            break
    _refuse_damaged(folder, steps[-1])
    return steps[-1]


def _refuse_damaged(folder: RunFolder, step: int) -> None:
    path = checkpoint.checkpoint_path(folder.checkpoints, step)
    if damage := checkpoint.find_damage(path):
        others = [other for other in checkpoint.finished_steps(folder.checkpoints) if other != step]
        use = f"Use --checkpoint {' or '.join(map(str, reversed(others)))}." if others else "There is no other one."
        raise RunError(f"Checkpoint {path} {damage}. {use}")


def read_status(folder: RunFolder, step: int) -> tuple[MemberStatus, float]:
    """The status of a run in the checkpoint of `step`, and its share of the epoch's seconds."""
    record = checkpoint.read_record(checkpoint.checkpoint_path(folder.checkpoints, step))
    return record.members[_place_of(folder)], record.epoch_seconds / len(record.members)


def load_member(folder: RunFolder, step: int, *names: str) -> list[TrainState]:
    """States of a run, or of a run of a sweep, in the checkpoint of `step`. Only these are read.

    Args:
      folder, step: the checkpoint.
      names: fields of `LatestAndBest`.

    Raises:
      RunError: the checkpoint holds states of another structure.
    """
    path = checkpoint.checkpoint_path(folder.checkpoints, step)
    place, places = _place_of(folder), checkpoint.read_record(path).places
    one = jax.eval_shape(lambda: init_state(folder.config, folder.data.image_shape, len(folder.data.class_names), 0))
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
    saved = checkpoint.load_state(path, LatestAndBest(**wanted))
    device = jax.local_devices()[0]

    def of_member(leaf: jax.Array) -> jax.Array:  # by NumPy: nothing is compiled for each shape
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(np.asarray(jax.random.key_data(leaf))[place])
        return jax.device_put(np.asarray(leaf)[place], device)

    return [jax.tree.map(of_member, getattr(saved, name)) for name in names]


def _place_of(folder: RunFolder) -> int:
    number = folder.member or 0
    return folder.groups[folder.group_of(number)].index(number)


def make_run_of_member(folder: RunFolder, epochs: int, steps_per_epoch: int, stack: ExitStack) -> RunFolder:
    """Makes a folder at the path of a run of a sweep, which can then be resumed. The sweep stays as it is.

    A run that diverged or stopped early goes on from its best epoch.

    Args:
      folder: the run of a sweep.
      epochs: the number of epochs to train for in all. If it has them already, nothing is made.
      steps_per_epoch: steps in an epoch.
      stack: keeps the lock of the new folder.

    Raises:
      ConfigError: it was trained for as many epochs, or more.
      RunError: there is no sound checkpoint of it, or it diverged before its first epoch ended, or the folder holds
        files of a run, is in use, or cannot be written. (Pictures of a report may be in it.)
    """
    _refuse_remains(folder)
    step = checkpoint.newest_sound_step(folder.checkpoints)
    if step is None:
        raise RunError(
            f"Run {folder.path} was not trained yet, or is damaged: there is no sound checkpoint in "
            f"{folder.checkpoints}. Continue with: lstm-mnist sweep --resume {folder.home}"
        )
    status, seconds = read_status(folder, step)
    known = [metrics for metrics in read_metrics(folder.metrics, folder.member) if not metrics.diverged]
    stopped = status.best_step is not None and bool(known) and known[-1].step < step - step % steps_per_epoch
    names = ["newest", "best"]
    if status.diverged_at is not None or stopped:
        if status.best_step is None:
            raise RunError(
                f"Run {folder.path} diverged at step {status.diverged_at:,}, before its first epoch was complete."
            )
        names, saved_step, step, seconds = ["best", "best"], step, status.best_step, 0.0
        status = MemberStatus(status.best_score, status.best_step, status.best_score)
    else:
        saved_step = step
    refuse_fewer_epochs(folder, epochs, step, steps_per_epoch)
    if step == epochs * steps_per_epoch:
        raise ConfigError(f"{folder.path} is complete after {epochs} epochs. Ask for more with --epochs.")
    states = LatestAndBest(*load_member(folder, saved_step, *names))
    one = (Member(folder.config.seed, {}),)
    run = replace(folder, space=None, member=None, members=one, groups=((0,),))
    stack.enter_context(lock(run.path))
    if (run.path / "config.json").exists():
        return read_run(run.path)  # another process has made it since
    _refuse_remains(folder)
    try:
        events = run.tensorboard if run.config.tensorboard else None
        with closing(MetricsWriter(run.metrics, events, 0)) as writer:
            writer.write([replace(metrics, member=0) for metrics in known if metrics.step <= step])
        with closing(Checkpoints(run.checkpoints, run.config.checkpoints.keep_checkpoints)) as checkpoints:
            stacked = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[None], tree))(tuple(states))
            checkpoints.save(LatestAndBest(*stacked), Record(step, 1, seconds, (status,)))
        write_config(run)  # last: a folder without it is no run
    except BaseException:
        for left in (run.checkpoints, run.tensorboard):
            shutil.rmtree(left, ignore_errors=True)
        run.metrics.unlink(missing_ok=True)
        raise
    return run


def _refuse_remains(folder: RunFolder) -> None:
    remains = [name for name in ("checkpoints", "metrics.jsonl", "tensorboard") if (folder.path / name).exists()]
    if remains:
        raise RunError(
            f"{folder.path} holds {', '.join(remains)} but no config.json: it was not made completely, or is damaged. "
            "Rename or remove it, then resume again."
        )
