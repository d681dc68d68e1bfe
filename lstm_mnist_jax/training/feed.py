"""The input pipeline: batches from examples on the devices, or a stream from the host.

Either way, step n gets the examples that `data.shuffle` gives for it: a function of (seed, step) alone.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.data import Examples
from lstm_mnist_jax.data.shuffle import batch_indices, permutation
from lstm_mnist_jax.training.mesh import DATA_AXIS, MEMBER_AXIS

GIB = 1 << 30

MAX_STEPS_AHEAD = 64
"""The most batches that are sent to the devices at once: with more, the first waits longer and none is faster."""

THREADS = 8
"""Threads that gather batches."""

KEPT_PROGRAMS = 8
"""Of so many programs, those last used, the traced functions are kept: JAX compiles nothing again for the same one."""

Batches = tuple[Any, Any]
"""Arrays that hold the batches: those that all members share, and those of each member, [members, ...]."""

BatchOf = Callable[[jax.Array, Any, Any], tuple[jax.Array, jax.Array]]
"""(step, shared, own) -> a device's share of the step's images and labels, within the compiled loop of a member."""


def step_of(state: Any) -> int:
    """The number of steps in a training state, read without waiting for other processes."""
    return int(np.asarray(state.step.addressable_shards[0].data)[0])


class Resident:
    """All examples on every device; the compiled loop selects its batches by permutations, drawn once a pass."""

    def __init__(self, configs: Sequence[Config], examples: Examples, mesh: Mesh) -> None:
        """Args: the config of each place, the training examples, and the devices."""
        batch_size, count = configs[0].batch_size, len(examples)
        share = batch_size // mesh.shape[DATA_AXIS]
        self._seeds = [config.seed for config in configs]
        self._batch_size, self._count = batch_size, count
        self._examples = OnDevices((examples.images, examples.labels), NamedSharding(mesh, P()))
        self._members = NamedSharding(mesh, P(MEMBER_AXIS))
        self._dtype = np.uint16 if count <= 2**16 else np.int32  # of thousands of runs, permutations fill the memory
        self._drawn: dict[int, jax.Array] = {}

        self.batch_of = _selection(batch_size, share)
        self.specs = (P(), P(), P()), (self._members.spec, self._members.spec)
        one = jax.ShapeDtypeStruct((len(configs), count), self._dtype, sharding=self._members)
        self.abstract_batches: Batches = (*self._examples.abstract, np.int32(0)), (one, one)

    def device_bytes(self, members: int) -> int:
        """The memory of a device that the examples and the permutations of some members take."""
        # Three passes: the one before is still in use while the next is drawn.
        orders = 3 * members * self._count * np.dtype(self._dtype).itemsize
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self._examples.abstract) + orders

    def place(self) -> None:
        """Puts the examples on the devices."""
        _ = self._examples.arrays

    def take(self, state: Any, n: int) -> Iterator[tuple[int, Batches]]:
        step = step_of(state)
        end = step + n
        while step < end:
            number = step * self._batch_size // self._count
            # All batches of a piece lie in two passes.
            count = min(end, (number + 2) * self._count // self._batch_size) - step
            self._drawn = {k: self._drawn[k] if k in self._drawn else self._draw(k) for k in (number, number + 1)}
            yield count, ((*self._examples.arrays, np.int32(number)), tuple(self._drawn.values()))
            step += count

    def _draw(self, number: int) -> jax.Array:
        """The permutation `number` of each member."""
        shape = (len(self._seeds), self._count)

        def of_members(index: Any) -> np.ndarray:
            drawn = (permutation(seed, number, self._count) for seed in self._seeds[index[0]])
            return np.stack([order.astype(self._dtype) for order in drawn])

        return jax.make_array_from_callback(shape, self._members, of_members)


@lru_cache(maxsize=KEPT_PROGRAMS)
def _selection(batch_size: int, share: int) -> BatchOf:
    """How the compiled loop selects a device's share of a batch from all examples."""

    def batch_of(step: jax.Array, shared: Any, own: Any) -> tuple[jax.Array, jax.Array]:
        images, labels, number = shared
        first, second = own
        start = jax.lax.axis_index(DATA_AXIS) * share
        batch = batch_indices(first, second, number, step, batch_size, start, share)
        return images[batch], labels[batch]

    return batch_of


def _streamed_batch(step: jax.Array, shared: Any, own: Any) -> tuple[jax.Array, jax.Array]:
    first, images, labels = shared
    return images[step - first], labels[step - first]


class Streamed:
    """Examples that stay with the host. Threads gather the batches ahead of the devices, in order.

    Each process gathers the share of its own devices.
    """

    def __init__(self, config: Config, examples: Examples, mesh: Mesh, device_data_limit: float) -> None:
        self._config, self._examples = config, examples
        shape = (config.batch_size, *examples.images.shape[1:])
        # Two pieces are there at once: one in use, one on its way. Of two steps or more: XLA compiles the step after an
        # axis of size 1 to other rounding than with the images on the devices.
        self._ahead = int(np.clip(device_data_limit * GIB / 2 // np.prod(shape), 2, MAX_STEPS_AHEAD))
        self._sharding = NamedSharding(mesh, P(None, DATA_AXIS))
        self._share = config.batch_size // jax.process_count()
        self._batches: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
        self._next = -1
        self.batch_of = _streamed_batch
        self.specs = (P(), self._sharding.spec, self._sharding.spec), ()
        pieces = (
            jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, P())),
            jax.ShapeDtypeStruct((self._ahead, *shape), jnp.uint8, sharding=self._sharding),
            jax.ShapeDtypeStruct((self._ahead, config.batch_size), jnp.int32, sharding=self._sharding),
        )
        self.abstract_batches: Batches = pieces, ()

    def device_bytes(self, members: int) -> int:
        """The memory of a device that two pieces take: one in use, one on its way."""
        return sum(2 * leaf.size * leaf.dtype.itemsize for leaf in self.abstract_batches[0])

    def place(self) -> None:
        """Nothing: the examples stay with the host."""

    def take(self, state: Any, n: int) -> Iterator[tuple[int, Batches]]:
        step = step_of(state)
        if self._next != step:
            self._batches = _gather(self._config, self._examples, step, self._share, 2 * self._ahead)
        for first in range(step, step + n, self._ahead):
            count = min(self._ahead, step + n - first)
            gathered = [next(self._batches) for _ in range(count)]
            images, labels = (np.stack(part) for part in zip(*gathered, strict=True))
            missing = self._ahead - count  # the compiled loop takes pieces of one size
            self._next = first + count
            yield count, ((np.int32(first), self._place(images, missing), self._place(labels, missing)), ())

    def _place(self, batches: np.ndarray, missing: int) -> jax.Array:
        padded = np.pad(batches, [(0, missing), *[(0, 0)] * (batches.ndim - 1)]) if missing else batches
        return jax.make_array_from_process_local_data(self._sharding, padded)


Feed = Resident | Streamed
"""The source of a program's batches.

`take(state, n)` gives the batches of the next n steps after `state`, in pieces: (number of steps, `Batches`).
`batch_of` selects a batch in the compiled loop; `specs` and `abstract_batches` describe the placement on the devices.
Nothing is on them before `place` or the first `take`: a program can be compiled for devices that are not there.
"""


def make_feed(configs: Sequence[Config], examples: Examples, mesh: Mesh, device_data_limit: float) -> Feed:
    """The feed of a program, on the devices where the images take `device_data_limit` GiB at most.

    Args:
      configs: the config of each place. Only a single one can stream: each member has another order of the examples.
      examples, mesh: the training examples, and the devices.
      device_data_limit: GiB.
    """
    if examples.images.nbytes <= device_data_limit * GIB:
        return Resident(configs, examples, mesh)
    (config,) = configs
    return Streamed(config, examples, mesh, device_data_limit)


def _gather(
    config: Config, examples: Examples, step: int, share: int, ahead: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This process's share of the batches from `step` on; `ahead` of them are gathered in advance."""
    count, start, lock = len(examples), jax.process_index() * share, threading.Lock()

    @lru_cache(maxsize=2)
    def order(number: int) -> np.ndarray:
        return permutation(config.seed, number, count)

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        number, place = divmod(step * config.batch_size + start, count)
        with lock:
            batch = order(number)[place : place + share]
            if len(batch) < share:  # a batch is no larger than the set
                batch = np.concatenate([batch, order(number + 1)[: share - len(batch)]])
        return examples.images[batch], examples.labels[batch]

    threads = ThreadPoolExecutor(min(THREADS, ahead), thread_name_prefix="feed")
    try:
        pending = deque(threads.submit(batch_at, n) for n in range(step, step + ahead))
        for following in itertools.count(step + ahead):
            yield pending.popleft().result()
            pending.append(threads.submit(batch_at, following))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def place(arrays: Any, sharding: NamedSharding) -> Any:
    """Puts arrays that every process holds on the devices of all processes."""
    if jax.process_count() == 1:
        return jax.device_put(arrays, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]), arrays
    )


class OnDevices:
    """Arrays that every process holds, which are put on the devices of all processes when they are first needed.

    Attributes:
      abstract: their shapes, dtypes and placement.
    """

    def __init__(self, arrays: Any, sharding: NamedSharding) -> None:
        self._arrays, self._sharding = arrays, sharding
        self.abstract = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), arrays
        )

    @cached_property
    def arrays(self) -> Any:
        """The arrays on the devices."""
        return place(self._arrays, self._sharding)
