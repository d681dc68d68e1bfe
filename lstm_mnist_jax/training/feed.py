"""How a compiled loop comes to its batches: it computes them from examples on the device, or they stream to it.

Either way, step n sees the examples that `data.order` names for it: a function of (key, step) alone.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_mnist_jax.config import Config
from lstm_mnist_jax.data import Examples
from lstm_mnist_jax.data.order import Order, batch_indices, order_of
from lstm_mnist_jax.training.mesh import DATA_AXIS

GIB = 1 << 30

MAX_STEPS_AHEAD = 64
"""Batches that are sent to the devices at once, at most: with more, the first waits longer and none comes sooner."""

BLOCK = 1024
"""Steps whose order is computed at once."""

THREADS = 8
"""Threads that gather batches."""

BatchOf = Callable[[Order, jax.Array, Any], tuple[jax.Array, jax.Array]]
"""(order, step, batches) -> a device's share of the step's images and labels, within the compiled loop."""


class Resident:
    """All examples on every device, whose loop picks its batches itself."""

    def __init__(self, config: Config, examples: Examples, mesh: Mesh) -> None:
        batch_size, count = config.batch_size, len(examples)
        share = batch_size // mesh.shape[DATA_AXIS]

        def batch_of(order: Order, step: jax.Array, batches: Any) -> tuple[jax.Array, jax.Array]:
            images, labels = batches
            batch = batch_indices(order, step, batch_size, count, jax.lax.axis_index(DATA_AXIS) * share, share)
            return images[batch], labels[batch]

        self.batch_of = batch_of
        self.specs = (P(), P())
        self.abstract_batches = place((examples.images, examples.labels), NamedSharding(mesh, P()))

    def device_bytes(self) -> int:
        """What the examples take of each device's memory."""
        return sum(array.nbytes for array in self.abstract_batches)

    def take(self, state: Any, n: int) -> Iterator[tuple[int, Any]]:
        del state
        yield n, self.abstract_batches


class Streamed:
    """Examples that stay with the host. Threads gather the batches ahead of the devices, in order.

    Each process gathers the share of its own devices.
    """

    def __init__(self, config: Config, examples: Examples, mesh: Mesh, device_data_limit: float) -> None:
        self._config, self._examples = config, examples
        shape = (config.batch_size, *examples.images.shape[1:])
        # Two pieces are there at once: one in use, one on its way.
        self._ahead = int(np.clip(device_data_limit * GIB / 2 // np.prod(shape), 1, MAX_STEPS_AHEAD))
        self._sharding = NamedSharding(mesh, P(None, DATA_AXIS))
        self._share = config.batch_size // jax.process_count()
        self._batches: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
        self._next = (-1, b"")
        self.batch_of = lambda order, step, batches: (batches[1][step - batches[0]], batches[2][step - batches[0]])
        self.specs = (P(), self._sharding.spec, self._sharding.spec)
        self.abstract_batches = (
            jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, P())),
            jax.ShapeDtypeStruct((self._ahead, *shape), jnp.uint8, sharding=self._sharding),
            jax.ShapeDtypeStruct((self._ahead, config.batch_size), jnp.int32, sharding=self._sharding),
        )

    def take(self, state: Any, n: int) -> Iterator[tuple[int, Any]]:
        step, key = int(state.step), np.asarray(jax.random.key_data(state.key)).tobytes()
        if self._next != (step, key):
            self._batches = _gather(
                self._config, self._examples, np.asarray(order_of(state.key)), step, self._share, 2 * self._ahead
            )
        for first in range(step, step + n, self._ahead):
            count = min(self._ahead, step + n - first)
            gathered = [next(self._batches) for _ in range(count)]
            images, labels = (np.stack(part) for part in zip(*gathered, strict=True))
            missing = self._ahead - count  # the compiled loop takes pieces of one size
            self._next = (first + count, key)
            yield count, (np.int32(first), self._place(images, missing), self._place(labels, missing))

    def _place(self, batches: np.ndarray, missing: int) -> jax.Array:
        padded = np.pad(batches, [(0, missing), *[(0, 0)] * (batches.ndim - 1)]) if missing else batches
        return jax.make_array_from_process_local_data(self._sharding, padded)


Feed = Resident | Streamed
"""Where the batches of a training come from.

`take(state, n)` gives what the next n steps after `state` need, in pieces: (how many steps, `batches`). `batch_of` is
how the compiled loop finds a batch in that; `specs` and `abstract_batches` are how it lies on the devices.
"""


def make_feed(config: Config, examples: Examples, mesh: Mesh, device_data_limit: float) -> Feed:
    """The feed of a training: from the devices where the images take `device_data_limit` GiB at most."""
    if examples.images.nbytes <= device_data_limit * GIB:
        return Resident(config, examples, mesh)
    return Streamed(config, examples, mesh, device_data_limit)


def _gather(
    config: Config, examples: Examples, order: np.ndarray, step: int, share: int, ahead: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This process's share of the batches from `step` on, so many of them gathered ahead."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        cpu = jax.local_devices()[0]
    start, steps, lock = jax.process_index() * share, np.arange(BLOCK, dtype=np.int32), threading.Lock()

    @jax.jit
    def indices(order: jax.Array, steps: jax.Array) -> jax.Array:
        return jax.vmap(lambda step: batch_indices(order, step, config.batch_size, len(examples), start, share))(steps)

    # By blocks: a call waits for its turn on the CPU's device, which may be in the middle of a second of training.
    @lru_cache(maxsize=4)
    def block(number: int) -> np.ndarray:
        with jax.default_device(cpu):
            return np.asarray(indices(order, number * BLOCK + steps))

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        with lock:
            batch = block(step // BLOCK)[step % BLOCK]
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
    """Puts arrays that every process holds on the devices of all."""
    if jax.process_count() == 1:
        return jax.device_put(arrays, sharding)
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]), arrays
    )
