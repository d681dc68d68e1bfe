"""The compiled program that trains one run, or several at once that differ in seed and hyperparameters.

Each member is the run that it would be alone, to float32 rounding: with its own weights, its own order of the data and
its own hyperparameters. Members are spread over the devices and exchange nothing; where there are more devices than
members, several share the batches of each (data parallelism). A single run is a program of one member.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
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
from lstm_mnist_jax.training.evaluation import Evaluation, Evaluator, ForEach, temporary_bytes, the_only_one
from lstm_mnist_jax.training.feed import GIB, KEPT_PROGRAMS, BatchOf, Feed, OnDevices, Streamed, make_feed, place
from lstm_mnist_jax.training.mesh import DATA_AXIS, MEMBER_AXIS, runs_one_by_one
from lstm_mnist_jax.training.optimizer import OptimizerNumbers
from lstm_mnist_jax.training.optimizer import shape_of as optimizer_shape_of
from lstm_mnist_jax.training.step import TrainState, count_steps, init_state, make_train_step

GRAPH_COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,DYNAMIC_SLICE_FUSION,WHILE"
"""What XLA may put into a CUDA graph: its default (jaxlib 0.10 to 0.12), and loops."""

GRAPH_STEPS = 256
"""The most time steps of a loop that is unrolled in a CUDA graph, of some ten kernels a time step and layer. To
instantiate a much longer graph would take seconds."""


class LatestAndBest(NamedTuple):
    """The latest and the best states of the members, [places, ...].

    Attributes:
      newest: the latest states.
      best: the states after each member's best epoch so far; the initial state before there is one.
    """

    newest: TrainState
    best: TrainState


@dataclass(frozen=True)
class TrainingProgram:
    """The functions that train the members, for one data set on one mesh.

    States have a leading axis of places: one for each member, and the last member's again where devices would be left
    without one.

    Attributes:
      configs: the config of each member.
      mesh: the devices, [members, devices of each].
      init: () -> the initial states of all members.
      abstract_state: shapes, dtypes and placement of the states, [places, ...].
      steps_per_epoch: the number of whole batches in the training examples.
    """

    configs: tuple[Config, ...]
    mesh: Mesh
    init: Callable[[], TrainState]
    abstract_state: TrainState
    steps_per_epoch: int
    _run_steps: Any
    _numbers: OnDevices
    _feed: Feed
    _evaluator: Evaluator

    @property
    def places(self) -> int:
        """The size of the leading axis of states."""
        return int(self.abstract_state.step.size)

    def run_steps(self, state: TrainState, n: int) -> TrainState:
        """The states `n` steps later. `state` is donated: its memory is reused."""
        # Programs in which CPU devices exchange data share one pool of threads: two at once could wait for each other.
        # And of a stream no more than two pieces are to be on the devices: one in use, one on its way.
        exchange = self.mesh.shape[DATA_AXIS] > 1 and self.mesh.devices.flat[0].platform == "cpu"
        waits = exchange or isinstance(self._feed, Streamed)
        for steps, (shared, own) in self._feed.take(state, n):
            if waits:
                jax.block_until_ready(state)
            state = self._run_steps(state, np.int32(steps), self._numbers.arrays, shared, own)
        return state

    def abstract_arguments(self) -> tuple[Any, ...]:
        """Shapes, dtypes and placement of the arguments of the steps, with an integer for their number."""
        return self.abstract_state, np.int32(0), self._numbers.abstract, *self._feed.abstract_batches

    def steps_text(self) -> str:
        """The optimized HLO of the steps of a program that was compiled."""
        return self._run_steps.as_text() or ""

    def compile(self) -> "TrainingProgram":
        """The same program, compiled now rather than at its first call; evaluation in the background."""
        self._evaluator.compile(self.abstract_state.trained)
        return replace(self, _run_steps=self._run_steps.lower(*self.abstract_arguments()).compile())

    def place(self) -> None:
        """Puts the training data on the devices now, rather than in the first step."""
        self._feed.place()

    def device_bytes(self) -> int:
        """The memory taken of each device, once compiled: the data, the states, and the largest program."""
        members = self.places // self.mesh.shape[MEMBER_AXIS]
        states = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.abstract_state))
        # Newest and best, and the copies of both that are saved.
        states = 4 * states // self.mesh.shape[MEMBER_AXIS]
        splits, evaluation = self._evaluator.device_bytes()
        largest = max(temporary_bytes(self._run_steps), evaluation)
        return states + self._feed.device_bytes(members) + splits + largest

    def fetch(self, state: TrainState) -> TrainState:
        """Waits for the steps, and fetches what the host needs of the members' states: step, sums, first bad step."""
        nothing: Any = ()
        small = state._replace(params=nothing, opt_state=nothing, key=nothing, average=nothing)
        if jax.process_count() > 1:  # others hold some of the members
            small = jax.device_put(small, NamedSharding(self.mesh, P()))
        return jax.tree.map(lambda leaf: leaf[: len(self.configs)], jax.device_get(small))

    def evaluate(self, params: model.Params) -> dict[str, list[Evaluation]]:
        """Evaluates every member on "validation" and "test", given the parameters of all, [places, ...]."""
        return {split: found[: len(self.configs)] for split, found in self._evaluator(params).items()}

    def choose(self, better: np.ndarray, states: LatestAndBest) -> LatestAndBest:
        """The states, with the newest as the best of some members, [members]. `states.best` is donated."""
        padded = np.pad(better, (0, self.places - len(better)))
        return states._replace(best=_choose(place(padded, self._members), states.newest, states.best))

    def abstract_saved(self, places: int) -> TrainState:
        """Shapes, dtypes and placement for reading states that were saved with so many places, by other devices."""
        fits = places % self.mesh.shape[MEMBER_AXIS] == 0
        sharding = self._members if fits else NamedSharding(self.mesh, P())
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((places, *leaf.shape[1:]), leaf.dtype, sharding=sharding),
            self.abstract_state,
        )

    def from_saved(self, saved: Any) -> Any:
        """Saved states, with a place for each member on these devices."""
        last = len(self.configs) - 1
        return _taken(tuple(min(place, last) for place in range(self.places)), self._members)(saved)

    @property
    def _members(self) -> NamedSharding:
        return NamedSharding(self.mesh, P(MEMBER_AXIS))


def make_program(
    configs: Sequence[Config],
    dataset: Dataset,
    mesh: Mesh,
    device_data_limit: float = Execution.device_data_limit,
) -> TrainingProgram:
    """Builds the functions that train the members on the devices of a mesh.

    The data are put on the devices at the first step, so the devices of a mesh may be ones that are only compiled for.

    Args:
      configs: the config of each member: the same but for `seed` and the hyperparameters of `optimizer`.
      dataset: the data to train on.
      mesh: see `make_mesh`.
      device_data_limit: GiB. Training images that take more stay with the host and stream to the devices, which a
        single run can do.

    Raises:
      ConfigError: the configs differ in something else, there are none, the images of several members take more than
        the limit, or see `count_steps`.
    """
    configs = tuple(configs)
    if not configs:
        raise ConfigError("There is nothing to train: no config is given.")
    config = configs[0]
    for other in configs[1:]:
        for name, (one, another) in differences(shape_of(config), shape_of(other)).items():
            raise ConfigError(
                f"Runs that are trained at once differ in seed and optimizer alone, but {name} is {one} and {another}."
            )
    if len(configs) > 1:
        refuse_streaming(dataset, device_data_limit)
    steps_per_epoch = count_steps(config, dataset)
    padded = configs + configs[-1:] * (-len(configs) % mesh.shape[MEMBER_AXIS])
    members = NamedSharding(mesh, P(MEMBER_AXIS))
    seeds = OnDevices(np.array([member.seed for member in padded], np.uint32), members)
    numbers = [OptimizerNumbers.of(member.optimizer) for member in padded]
    each, at_once = _for_each(len(padded) // mesh.shape[MEMBER_AXIS], mesh)
    feed = make_feed(padded, dataset.train, mesh, device_data_limit)
    init_states, run_steps = _functions(
        traced_config(config), steps_per_epoch, dataset.image_shape, len(dataset.class_names), mesh, each,
        feed.batch_of, feed.specs,
    )  # fmt: skip
    # Traced once, for the shapes of the states, and compiled only if a run begins with it.
    init = init_states.trace(seeds.abstract)
    return TrainingProgram(
        configs=configs,
        mesh=mesh,
        init=lambda: init.lower().compile()(seeds.arrays),
        abstract_state=jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=members),
            init.out_info,
        ),
        steps_per_epoch=steps_per_epoch,
        _run_steps=run_steps,
        _numbers=OnDevices(jax.tree.map(lambda *values: np.array(values, np.float32), *numbers), members),
        _feed=feed,
        _evaluator=Evaluator(
            config.model,
            {name: dataset.splits[name] for name in ("validation", "test")},
            mesh,
            device_data_limit,
            each=each,
            at_once=at_once,
        ),
    )


def refuse_streaming(dataset: Dataset, device_data_limit: float) -> None:
    """Raises ConfigError where the training images take more than the limit: several runs cannot stream them."""
    if dataset.train.images.nbytes > device_data_limit * GIB:
        raise ConfigError(
            f"The training images take {dataset.train.images.nbytes / GIB:.2g} GiB. Each run reads them in another "
            f"order, so they must be on the devices, but device_data_limit is {device_data_limit:g} GiB. "
            "Raise it with --device-data-limit, or train one run at a time."
        )


@lru_cache(maxsize=KEPT_PROGRAMS)
def _functions(
    config: Config,
    steps_per_epoch: int,
    image_shape: tuple[int, ...],
    num_classes: int,
    mesh: Mesh,
    each: ForEach,
    batch_of: BatchOf,
    specs: tuple[Any, Any],
) -> tuple[Any, Any]:
    """The compiled functions of a program: (seeds) -> the first states, and that of `TrainingProgram.run_steps`.

    They are the same for the same arguments: a second run of a process neither traces nor compiles them again.
    """
    train_step = make_train_step(config, steps_per_epoch, mesh.shape[DATA_AXIS], batch_of)

    def run_steps(states: TrainState, n: jax.Array, numbers: OptimizerNumbers, shared: Any, own: Any) -> TrainState:
        def of_member(state: TrainState, numbers: OptimizerNumbers, own: Any) -> TrainState:
            return jax.lax.fori_loop(0, n, lambda _, state: train_step(state, numbers, shared, own), state)

        return each(of_member)(states, numbers, own)

    members = NamedSharding(mesh, P(MEMBER_AXIS))
    shared_specs, own_specs = specs
    # The gradient is averaged explicitly, once and flattened, so JAX need not track which values vary over devices.
    sharded = jax.shard_map(
        run_steps,
        mesh=mesh,
        in_specs=(members.spec, P(), members.spec, shared_specs, own_specs),
        out_specs=members.spec,
        check_vma=False,
    )
    first_states = jax.vmap(partial(init_state, config, image_shape, num_classes))
    init = jax.jit(first_states, out_shardings=members, compiler_options=run_once(mesh))
    time_steps, _ = model.task_of(config.model).shape(image_shape)
    options = graph_options(mesh, time_steps)
    return init, jax.jit(sharded, donate_argnums=0, out_shardings=members, compiler_options=options)


def _for_each(members: int, mesh: Mesh) -> tuple[ForEach, int]:
    """The function that runs the members of a device, and how many it runs at a time."""
    if members == 1:
        return the_only_one, 1
    if runs_one_by_one(mesh):
        return _one_by_one, 1
    return jax.vmap, members


def _one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: jax.lax.map(lambda each: function(*each), arguments)


def run_once(mesh: Mesh) -> dict[str, Any]:
    """Compiler options for a program that runs once: on CPUs, optimizing it would take longer than running it."""
    return {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else {}


def graph_options(mesh: Mesh, time_steps: int) -> dict[str, Any]:
    """Compiler options for the training steps: on GPUs, one CUDA graph holds a step, its loops over time unrolled.

    By default, XLA makes a graph for each iteration of a loop, and the host would take longer to launch them than the
    GPU to run them. Options that the user sets in XLA_FLAGS stay.
    """
    is_gpu = mesh.devices.flat[0].platform == "gpu"
    if not is_gpu or time_steps > GRAPH_STEPS or "command_buffer" in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {"xla_gpu_enable_command_buffer": GRAPH_COMMANDS, "xla_gpu_command_buffer_unroll_loops": True}


def shape_of(config: Config) -> Config:
    """The part of a config that must be the same for all members of a program: all but seed and hyperparameters."""
    return replace(config, seed=Config.seed, optimizer=optimizer_shape_of(config.optimizer))


def traced_config(config: Config) -> Config:
    """The part of a config on which the compiled functions depend, with defaults in place of the rest."""
    unused = ["selection_metric", "early_stopping_patience", "tensorboard", "data", "checkpoints"]
    rates = config.optimizer
    if rates.schedule == "constant" and not rates.warmup_epochs and not config.batch_doubling_epochs:
        unused.append("epochs")  # the number of steps is an argument
    default = Config()
    return replace(shape_of(config), **{name: getattr(default, name) for name in unused})


@lru_cache(maxsize=KEPT_PROGRAMS)
def _taken(members: tuple[int, ...], sharding: NamedSharding) -> Callable[[Any], Any]:
    """Some places of states, by number."""
    places = np.array(members)
    return jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[places], tree), out_shardings=sharding)


@partial(jax.jit, donate_argnums=2)
def _choose(better: jax.Array, newest: TrainState, best: TrainState) -> TrainState:
    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, newest, best)


copy_of = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
"""Copies a tree of arrays."""


def member_state(state: TrainState, member: int) -> TrainState:
    """The state of one member, where those of all lie on one device."""
    return jax.tree.map(lambda leaf: leaf[member], state)
