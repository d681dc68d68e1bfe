"""One member of a population as a run of its own: to evaluate, use, export, or train on."""

import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.reporting.metrics import EpochMetrics, MetricsWriter
from lstm_mnist_jax.sweeps.folder import PopulationFolder, read_population_folder
from lstm_mnist_jax.sweeps.group import GroupRecord, Standing
from lstm_mnist_jax.sweeps.metrics import MEASURES, read_group_metrics
from lstm_mnist_jax.sweeps.results import best_member, member_results
from lstm_mnist_jax.sweeps.space import Setting
from lstm_mnist_jax.training import checkpoint
from lstm_mnist_jax.training.checkpoint import Checkpoints, Record
from lstm_mnist_jax.training.loop import is_stale
from lstm_mnist_jax.training.optimizer import last_learning_rate
from lstm_mnist_jax.training.program import Stages, member_state
from lstm_mnist_jax.training.run_folder import RunFolder, lock, refuse_occupied, write_config
from lstm_mnist_jax.training.step import init_state


@dataclass(frozen=True)
class Extracted:
    """A member that is a run of its own now.

    Attributes:
      folder: the run's folder.
      member, setting: which member it is, and what it has of its own besides its seed.
      step: where it stands.
    """

    folder: RunFolder
    member: int
    setting: Setting
    step: int


def extract(population: Path | str, run_dir: Path | str, member: int | None = None) -> Extracted:
    """Makes a run folder of a member: its config, its metrics, its newest checkpoint and its best.

    Args:
      population: the folder of the population, which stays as it is.
      run_dir: a new or empty folder.
      member: which one, as results.csv numbers them; None is the best on validation.

    Raises:
      RunError: there is no such member, or no checkpoint of it yet, or a folder cannot be used.
    """
    source, run_dir = read_population_folder(Path(population).expanduser()), Path(run_dir).expanduser()
    member = _find(source, member)
    group = source.group_of(member)
    directory = source.checkpoints(group)
    step = checkpoint.newest_sound_step(directory)
    if step is None:
        raise RunError(
            f"Member {member} was not trained yet, or is damaged: there is no sound checkpoint in {directory}. "
            f"Go on with: lstm-mnist sweep --resume {source.path}"
        )
    path = checkpoint.checkpoint_path(directory, step)
    place = source.groups[group].index(member)
    record = checkpoint.read_record(path, GroupRecord)
    standing, config = record.members[place], source.member_config(member)
    diverged = standing.diverged_at
    if diverged is not None and standing.best_step is None:
        raise RunError(f"Member {member} diverged at step {diverged:,}, before its first epoch was complete.")
    stages = _load(source, config, path, record.places)
    newest, best = member_state(stages.newest, place), member_state(stages.best, place)
    its_own = diverged is None and not _had_stopped(source, group, config, standing, step)
    refuse_occupied(run_dir)
    folder = RunFolder(run_dir, config, source.data, source.environment)
    with lock(run_dir):
        try:
            _write_metrics(source, folder, member, step)
            _write_checkpoints(folder, step, standing, newest if its_own else None, best)
            write_config(folder)  # last: a folder without it is no run
        except BaseException:
            for left in (folder.checkpoints, folder.tensorboard):
                shutil.rmtree(left, ignore_errors=True)
            folder.metrics.unlink(missing_ok=True)
            raise
    stands_at = step if its_own or standing.best_step is None else standing.best_step
    return Extracted(folder, member, source.members[member].setting, stands_at)


def _find(source: PopulationFolder, member: int | None) -> int:
    if member is None:
        member = best_member(member_results(source))
        if member is None:
            raise RunError(f"No member of {source.path} was evaluated yet. Name one by its number, or train on.")
    if not 0 <= member < len(source.members):
        raise RunError(f"{source.path} has no member {member}, expected 0 to {len(source.members) - 1}.")
    return member


def _had_stopped(source: PopulationFolder, group: int, config: Config, standing: Standing, step: int) -> bool:
    """Whether a member had stopped early before the epoch in which its group stands at `step`."""
    line = next((line for line in read_group_metrics(source.metrics) if line.group == group), None)
    if line is None:
        return False
    per_epoch = line.step // line.epoch
    return is_stale(config, (step - 1) // per_epoch * per_epoch, standing.best_step, per_epoch)


def _load(source: PopulationFolder, config: Config, path: Path, places: int) -> Stages:
    one = jax.eval_shape(lambda: init_state(config, source.data.image_shape, len(source.data.class_names), 0))
    try:
        host = jax.local_devices(backend="cpu")[0]  # there may be more of them than one accelerator holds
    except RuntimeError:
        host = jax.local_devices()[0]
    sharding = jax.sharding.SingleDeviceSharding(host)
    state: Any = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((places, *leaf.shape), leaf.dtype, sharding=sharding), one
    )
    return Stages(*checkpoint.load_state(path, Stages(state, state)))


def _write_metrics(source: PopulationFolder, folder: RunFolder, member: int, step: int) -> None:
    events = folder.tensorboard if folder.config.tensorboard else None
    with closing(MetricsWriter(folder.metrics, events, 0)) as writer:
        for line in read_group_metrics(source.metrics):
            found = next((known for known in line.members if known.member == member), None)
            if found is None or found.diverged or line.step > step:
                continue
            values = {name: getattr(found, name) for name in MEASURES}
            writer.write(
                EpochMetrics(
                    epoch=line.epoch,
                    step=line.step,
                    learning_rate=last_learning_rate(folder.config, line.step // line.epoch, line.step),
                    seconds=line.seconds / len(line.members),  # its share of the time that all took together
                    examples_per_second=line.examples_per_second,
                    **values,
                )
            )


def _write_checkpoints(folder: RunFolder, step: int, standing: Standing, newest: Any, best: Any) -> None:
    """`newest` is None where the member was not trained on up to there: it diverged, or had stopped early."""
    best_step, best_score = standing.best_step, standing.best_score
    with closing(Checkpoints(folder.checkpoints, folder.config.checkpoints.keep_checkpoints)) as checkpoints:
        if best_step is not None and (best_step < step or newest is None):
            checkpoints.save(best, Record(best_step, best_score, best_step, best_score, 0.0))
        if newest is not None:
            checkpoints.save(newest, Record(step, standing.score, best_step, best_score, 0.0))
