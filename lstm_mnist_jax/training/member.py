"""The checkpoint of one member of a sweep, and how a member becomes a run with a folder of its own."""

import shutil
from contextlib import closing
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.training import checkpoint
from lstm_mnist_jax.training.checkpoint import Checkpoints, MemberStatus, Record
from lstm_mnist_jax.training.loop import too_few_epochs
from lstm_mnist_jax.training.metrics import MetricsWriter, read_metrics
from lstm_mnist_jax.training.program import Stages
from lstm_mnist_jax.training.run_folder import Member, RunFolder, lock, write_config
from lstm_mnist_jax.training.step import init_state


def load_member(folder: RunFolder, step: int) -> tuple[Stages, Record]:
    """The states of a run, or of a member of a sweep, in the checkpoint of `step`, and the record of it alone.

    Raises:
      RunError: the checkpoint holds states of another structure.
    """
    path = checkpoint.checkpoint_path(folder.checkpoints, step)
    record = checkpoint.read_record(path)
    number = folder.member or 0
    place = folder.groups[folder.group_of(number)].index(number)
    one = jax.eval_shape(lambda: init_state(folder.config, folder.data.image_shape, len(folder.data.class_names), 0))
    try:
        host = jax.local_devices(backend="cpu")[0]  # there may be more of them than one accelerator holds
    except RuntimeError:
        host = jax.local_devices()[0]
    sharding = jax.sharding.SingleDeviceSharding(host)
    state: Any = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((record.places, *leaf.shape), leaf.dtype, sharding=sharding), one
    )
    stages = checkpoint.load_state(path, Stages(state, state))
    device = jax.local_devices()[0]

    def of_member(leaf: jax.Array) -> jax.Array:  # by NumPy: nothing is compiled for each shape
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(np.asarray(jax.random.key_data(leaf))[place])
        return jax.device_put(np.asarray(leaf)[place], device)

    alone = Record(record.step, 1, record.epoch_seconds / len(record.members), (record.members[place],))
    return Stages(*jax.tree.map(of_member, tuple(stages))), alone


def make_run_of_member(folder: RunFolder, epochs: int, steps_per_epoch: int) -> None:
    """Makes a folder at the path of a member: a run that can be resumed. The sweep stays as it is.

    A member that diverged or stopped early stands at its best epoch.

    Args:
      folder: the member.
      epochs: for how many epochs it is to be trained in all. If it has them already, nothing is made.
      steps_per_epoch: steps in an epoch.

    Raises:
      ConfigError: it was trained for as many epochs, or more.
      RunError: there is no sound checkpoint of it, or it diverged before its first epoch ended, or the folder holds
        files of a run, or cannot be written. (Pictures of a report may be in it.)
    """
    remains = [name for name in ("checkpoints", "metrics.jsonl", "tensorboard") if (folder.path / name).exists()]
    if remains:
        raise RunError(
            f"{folder.path} holds {', '.join(remains)} but no config.json: it was not made completely, or is damaged. "
            "Rename or remove it, then resume again."
        )
    step = checkpoint.newest_sound_step(folder.checkpoints)
    if step is None:
        raise RunError(
            f"Run {folder.path} was not trained yet, or is damaged: there is no sound checkpoint in "
            f"{folder.checkpoints}. Go on with: lstm-mnist sweep --resume {folder.home}"
        )
    stages, record = load_member(folder, step)
    (status,), seconds = record.members, record.epoch_seconds
    known = [metrics for metrics in read_metrics(folder.metrics, folder.member) if not metrics.diverged]
    stopped = status.best_step is not None and bool(known) and known[-1].step < step - step % steps_per_epoch
    if status.diverged_at is not None or stopped:
        if status.best_step is None:
            raise RunError(
                f"Run {folder.path} diverged at step {status.diverged_at:,}, before its first epoch was complete."
            )
        step, stages, seconds = status.best_step, Stages(stages.best, stages.best), 0.0
        status = MemberStatus(status.best_score, status.best_step, status.best_score)
    if step > epochs * steps_per_epoch:
        raise too_few_epochs(folder, epochs, step, steps_per_epoch)
    if step == epochs * steps_per_epoch:
        raise ConfigError(f"{folder.path} is complete after {epochs} epochs. Ask for more with --epochs.")
    one = (Member(folder.config.seed, {}),)
    run = replace(folder, space=None, member=None, members=one, groups=((0,),))
    with lock(run.path):
        try:
            events = run.tensorboard if run.config.tensorboard else None
            with closing(MetricsWriter(run.metrics, events, 0)) as writer:
                writer.write([replace(metrics, member=0) for metrics in known if metrics.step <= step])
            with closing(Checkpoints(run.checkpoints, run.config.checkpoints.keep_checkpoints)) as checkpoints:
                stacked = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[None], tree))(tuple(stages))
                checkpoints.save(Stages(*stacked), Record(step, 1, seconds, (status,)))
            write_config(run)  # last: a folder without it is no run
        except BaseException:
            for left in (run.checkpoints, run.tensorboard):
                shutil.rmtree(left, ignore_errors=True)
            run.metrics.unlink(missing_ok=True)
            raise
