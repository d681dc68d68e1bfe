"""Many trainings in one compiled program: a population, whose members differ in seed and in the optimizer's numbers.

Each member is the training that it would be alone, to rounding: with its own weights, its own order of the data and its
own numbers. Members are spread over the devices, and never meet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_mnist_jax import model
from lstm_mnist_jax.config import Config, Execution
from lstm_mnist_jax.config.json import differences
from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.training.evaluation import Evaluation, PopulationEvaluation, make_population_evaluation
from lstm_mnist_jax.training.feed import GIB, Resident, place
from lstm_mnist_jax.training.mesh import DATA_AXIS, POPULATION_AXIS
from lstm_mnist_jax.training.optimizer import OptimizerNumbers
from lstm_mnist_jax.training.optimizer import shape_of as optimizer_shape_of
from lstm_mnist_jax.training.step import (
    Look,
    TrainState,
    abstract,
    count_steps,
    init_state,
    look_at,
    make_train_step,
    must_wait,
    repeat,
    run_once,
)

ONE_BY_ONE = ("cpu",)
"""Devices that run their members one after another: a core is busy with one, and its cache full. Others would idle."""


class Stages(NamedTuple):
    """The members of a population at two stages, one behind the other along a leading axis.

    Attributes:
      newest: where they stand.
      best: where they stood at the end of their best epoch so far, the first state before there is one.
    """

    newest: TrainState
    best: TrainState


@dataclass(frozen=True)
class Population:
    """The functions of many trainings at once, for one data set on one mesh.

    Attributes:
      configs: what each member trains.
      init: () -> the first state of all members. (Where devices would be left without a member, the last one stands
        there several times.)
      steps_per_epoch: how many whole batches the training examples fill.
      mesh: the devices.
    """

    configs: tuple[Config, ...]
    mesh: Mesh
    init: Callable[[], TrainState]
    steps_per_epoch: int
    _abstract_state: TrainState
    _run_steps: Any
    _numbers: OptimizerNumbers
    _feed: Resident
    _evaluations: dict[str, PopulationEvaluation]
    _members: NamedSharding
    _waits: bool

    def run_steps(self, state: TrainState, n: int) -> TrainState:
        """The states `n` steps later, [places, ...]. `state` is used up: its memory is reused."""
        for steps, batches in self._feed.take(state, n):
            if self._waits:
                jax.block_until_ready(state)
            state = self._run_steps(state, np.int32(steps), self._numbers, batches)
        return state

    def compile(self) -> "Population":
        """The same, compiled now rather than at its first calls."""
        arguments = self._abstract_state, np.int32(0), self._numbers, self._feed.abstract_batches
        return replace(
            self,
            _run_steps=self._run_steps.lower(*arguments).compile(),
            _evaluations={
                name: evaluation.compile(self._abstract_state.trained) for name, evaluation in self._evaluations.items()
            },
        )

    def device_bytes(self) -> int:
        """What this takes of each device's memory, once compiled: the data, the states, and the largest program."""
        states = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._abstract_state))
        # Newest and best, and the copies of both that are saved.
        states = 4 * states // self.mesh.shape[POPULATION_AXIS]
        data = self._feed.device_bytes() + sum(evaluation.device_bytes() for evaluation in self._evaluations.values())
        programs = [self._run_steps, *(evaluation.program for evaluation in self._evaluations.values())]
        return states + data + max(program.memory_analysis().temp_size_in_bytes for program in programs)

    def look_at(self, state: TrainState) -> Look:
        """Waits for the members, and fetches what the host needs of them."""
        everywhere = NamedSharding(self.mesh, P())
        small: Any = {name: getattr(state, name) for name in ("step", "epoch_sums", "first_bad_step")}
        seen = look_at(state._replace(**jax.device_put(small, everywhere)))
        count = len(self.configs)
        return seen._replace(
            **{name: getattr(seen, name)[:count] for name in ("loss", "correct", "gradient_norm", "first_bad_step")}
        )

    def evaluate(self, split: str, params: model.Params) -> list[Evaluation]:
        """What each member makes of "validation" or "test", given the parameters of all, [places, ...]."""
        return self._evaluations[split](params)[: len(self.configs)]

    def choose(self, better: np.ndarray, stages: Stages) -> Stages:
        """The stages where the newest of some members, [members], is their best. `stages.best` is used up."""
        padded = np.pad(better, (0, self.places - len(better)))
        return stages._replace(best=_choose(place(padded, self._members), stages.newest, stages.best))

    @property
    def places(self) -> int:
        """How many states there are: of every member, and the last one's again where devices would be left without."""
        return len(self._numbers.b1)

    def abstract_saved(self, places: int) -> Stages:
        """Shapes, dtypes and placement for reading stages that were saved with so many places, by other devices."""
        fits = places % self.mesh.shape[POPULATION_AXIS] == 0
        sharding = self._members if fits else NamedSharding(self.mesh, P())
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((places, *leaf.shape[1:]), leaf.dtype), self._abstract_state
        )
        return abstract(Stages(state, state), sharding)

    def from_saved(self, saved: Stages) -> Stages:
        """Stages that were saved, with a place for each member here."""
        members = np.minimum(np.arange(self.places), len(self.configs) - 1)
        return jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[members], tree), out_shardings=self._members)(saved)


def make_population(
    configs: Sequence[Config],
    dataset: Dataset,
    mesh: Mesh,
    device_data_limit: float = Execution.device_data_limit,
) -> Population:
    """Puts the data on the devices and builds the functions that train the members on them.

    Args:
      configs: what each member trains: the same but for `seed` and `optimizer`.
      dataset: what they are trained on.
      mesh: with `POPULATION_AXIS`, over which the members are spread, and `DATA_AXIS`, over which their batches are.
      device_data_limit: GiB of training images that the devices can keep.

    Raises:
      ConfigError: the configs differ in something else, there are none, the images take more than the limit, or
        see `count_steps`.
    """
    configs = tuple(configs)
    if not configs:
        raise ConfigError("A population needs one member at least.")
    config = configs[0]
    for other in configs[1:]:
        for name, (one, another) in differences(shape_of(config), shape_of(other)).items():
            raise ConfigError(
                f"The members of a population differ in seed and optimizer alone, but {name} is {one} and {another}."
            )
    if dataset.train.images.nbytes > device_data_limit * GIB:
        raise ConfigError(
            f"The training images take {dataset.train.images.nbytes / GIB:.2g} GiB. Each member sees them in an order "
            f"of its own, so they must lie on the devices, but device_data_limit is {device_data_limit:g} GiB. "
            "Raise it with --device-data-limit, or train one run at a time."
        )
    steps_per_epoch = count_steps(config, dataset)
    padded = configs + configs[-1:] * (-len(configs) % mesh.shape[POPULATION_AXIS])
    members = NamedSharding(mesh, P(POPULATION_AXIS))
    seeds = place(np.array([member.seed for member in padded], np.uint32), members)
    each_numbers = [OptimizerNumbers.of(member.optimizer) for member in padded]
    numbers = jax.tree.map(lambda *values: np.array(values, np.float32), *each_numbers)
    one_by_one = mesh.devices.flat[0].platform in ONE_BY_ONE
    each: Any = partial(partial, jax.lax.map) if one_by_one else jax.vmap
    at_once = 1 if one_by_one else len(padded) // mesh.shape[POPULATION_AXIS]
    feed = Resident(config, dataset.train, mesh)
    train_step = make_train_step(config, steps_per_epoch, mesh.shape[DATA_AXIS], feed.batch_of)

    def run_steps(states: TrainState, n: jax.Array, numbers: OptimizerNumbers, batches: Any) -> TrainState:
        def member(of_member: tuple[TrainState, OptimizerNumbers]) -> TrainState:
            state, numbers = of_member
            return repeat(train_step, state, n, numbers, batches)

        return each(member)((states, numbers))

    specs = (members.spec, P(), members.spec, feed.specs)
    sharded = jax.shard_map(run_steps, mesh=mesh, in_specs=specs, out_specs=members.spec, check_vma=False)
    first_states = jax.vmap(partial(init_state, config, dataset.image_shape, len(dataset.class_names)))
    init = jax.jit(first_states, out_shardings=members, compiler_options=run_once(mesh))
    return Population(
        configs=configs,
        mesh=mesh,
        init=lambda: init(seeds),
        steps_per_epoch=steps_per_epoch,
        _abstract_state=abstract(jax.eval_shape(first_states, seeds), members),
        _run_steps=jax.jit(sharded, donate_argnums=0, out_shardings=members),
        _numbers=place(numbers, members),
        _feed=feed,
        _evaluations={
            name: make_population_evaluation(config.model, dataset.splits[name], mesh, each, at_once)
            for name in ("validation", "test")
        },
        _members=members,
        _waits=must_wait(mesh),
    )


def shape_of(config: Config) -> Config:
    """What must be the same for all members of a population: all but the seed and the optimizer's numbers."""
    return replace(config, seed=Config.seed, optimizer=optimizer_shape_of(config.optimizer))


@partial(jax.jit, donate_argnums=2)
def _choose(better: jax.Array, newest: TrainState, best: TrainState) -> TrainState:
    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, newest, best)


def member_state(state: TrainState, member: int) -> TrainState:
    """The state of one member, as that of a training of its own, where those of all lie on one device."""
    return jax.tree.map(lambda leaf: leaf[member], state)
