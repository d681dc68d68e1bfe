"""Evaluation of a whole split, with the last partial batch, on all devices of a mesh."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_mnist_jax import model
from lstm_mnist_jax.config import Execution, ModelConfig
from lstm_mnist_jax.data import Examples
from lstm_mnist_jax.training.feed import GIB, place
from lstm_mnist_jax.training.mesh import DATA_AXIS, MEMBER_AXIS, make_mesh

MAX_BATCH = 512
"""The most examples that a device classifies at once."""

PADDING_LABEL = -1

Sums = tuple[jax.Array, jax.Array, jax.Array]
"""The sum of the losses; by class, the number of correctly classified examples, and of all examples."""

ForEach = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Maps a function of one member over a leading axis of members, as `jax.vmap` does."""


def the_only_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """`ForEach` of one member: a leading axis of size 1."""

    def of_one(*arguments: Any) -> Any:
        result = function(*jax.tree.map(lambda leaf: leaf[0], arguments))
        return jax.tree.map(lambda leaf: leaf[None], result)

    return of_one


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Loss and accuracy on a split.

    Attributes:
      loss: mean cross-entropy, in nats.
      correct: int [classes], the correctly classified examples of each class.
      count: int [classes], all examples of each class.
    """

    loss: float
    correct: np.ndarray
    count: np.ndarray

    @property
    def accuracy(self) -> float:
        """The fraction of correctly classified examples, 0 to 1."""
        return float(self.correct.sum() / self.count.sum())


class Evaluator:
    """Evaluates the parameters of one run, or of several at once, on a split on the devices of a mesh."""

    def __init__(
        self,
        config: ModelConfig,
        examples: Examples,
        mesh: Mesh,
        device_data_limit: float = Execution.device_data_limit,
        shifts: int = 0,
        each: ForEach | None = None,
        at_once: int = 1,
    ) -> None:
        """Puts the split on the devices, a share on each.

        Args:
          config, examples: the network and the split.
          mesh: with a `MEMBER_AXIS` and a `DATA_AXIS`.
          device_data_limit: GiB. Images that take more are put on the devices in pieces of this size.
          shifts: test-time augmentation: the mean probabilities over shifts of up to this many pixels.
          each: maps over a device's members; None where a device has one.
          at_once: the number of members that a device evaluates at a time, sharing `MAX_BATCH`.
        """
        pieces = max(1, math.ceil(examples.images.nbytes / (device_data_limit * GIB)))
        self._examples, self._size, self._mesh = examples, -(-len(examples) // pieces), mesh
        share = -(-self._size // mesh.shape[DATA_AXIS])  # of each device
        batches = -(-share // max(1, MAX_BATCH // at_once))
        batch = -(-share // batches)
        padded = mesh.shape[DATA_AXIS] * batches * batch
        evaluate, run_each = _sums(config, examples.num_classes, batches, batch, shifts), each or the_only_one
        members, data = P(MEMBER_AXIS), P(DATA_AXIS)

        def evaluate_members(params: model.Params, images: jax.Array, labels: jax.Array) -> Sums:
            return run_each(lambda params: evaluate(params, images, labels))(params)

        self._program: Any = jax.jit(
            jax.shard_map(
                evaluate_members, mesh=mesh, in_specs=(members, data, data), out_specs=members, check_vma=False
            ),
            out_shardings=NamedSharding(mesh, P()),
        )
        images, sharding = examples.images, NamedSharding(mesh, P(DATA_AXIS))
        self._abstract = (
            jax.ShapeDtypeStruct((padded, *images.shape[1:]), images.dtype, sharding=sharding),
            jax.ShapeDtypeStruct((padded,), examples.labels.dtype, sharding=sharding),
        )
        self._kept = self._piece(0) if pieces == 1 else None
        self._compiled: Future[Any] | None = None

    def compile(self, params: Any) -> None:
        """Compiles in the background, for parameters of these shapes, [members, ...]."""
        background = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._compiled = background.submit(lambda: self._program.lower(params, *self._abstract).compile())
        background.shutdown(wait=False)

    def device_bytes(self) -> tuple[int, int]:
        """The memory of a device that the split takes, and that the compiled program takes while it runs."""
        assert self._compiled is not None
        data = sum(leaf.size * leaf.dtype.itemsize for leaf in self._abstract) // self._mesh.shape[DATA_AXIS]
        return data, self._compiled.result().memory_analysis().temp_size_in_bytes

    def __call__(self, params: model.Params) -> list[Evaluation]:
        """Evaluates parameters, [members, ...]."""
        program = self._program if self._compiled is None else self._compiled.result()
        count = len(self._examples)
        parts = [
            jax.device_get(program(params, *(self._kept or self._piece(start))))
            for start in range(0, count, self._size)
        ]
        losses, corrects, counts = (sum(part[1:], start=part[0]) for part in zip(*parts, strict=True))
        return [
            Evaluation(float(loss) / count, *by_class) for loss, *by_class in zip(losses, corrects, counts, strict=True)
        ]

    def _piece(self, start: int) -> tuple[jax.Array, jax.Array]:
        part, (images, labels) = self._examples[start : start + self._size], self._abstract
        padding = len(labels) - len(part)
        padded_images = np.pad(part.images, [(0, padding), *[(0, 0)] * (images.ndim - 1)])
        padded_labels = np.pad(part.labels, (0, padding), constant_values=PADDING_LABEL)
        return place((padded_images, padded_labels), labels.sharding)


def evaluate_one(
    params: model.Params,
    config: ModelConfig,
    splits: Mapping[str, Examples],
    execution: Execution = Execution(),
    shifts: int = 0,
) -> dict[str, Evaluation]:
    """Evaluates the parameters of one run on splits, by name, on all devices that `execution` allows."""
    mesh = make_mesh(execution, None)
    members = jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[None], params), NamedSharding(mesh, P()))
    return {
        name: Evaluator(config, examples, mesh, execution.device_data_limit, shifts)(members)[0]
        for name, examples in splits.items()
    }


def _sums(config: ModelConfig, num_classes: int, batches: int, batch: int, shifts: int) -> Callable[..., Sums]:
    """The function (params, images, labels) -> `Sums` over all devices, of each one's share."""

    def evaluate(params: model.Params, images: jax.Array, labels: jax.Array) -> Sums:
        def add(sums: Sums, xs: tuple[jax.Array, jax.Array]) -> tuple[Sums, None]:
            images, labels = xs
            real = labels != PADDING_LABEL
            logits = _logits(params, images, config, shifts)
            loss = jnp.where(real, model.softmax_cross_entropy(logits, jnp.where(real, labels, 0)), 0).sum()
            correct = real & (jnp.argmax(logits, axis=-1) == labels)
            members = labels[:, None] == jnp.arange(num_classes)
            counts = (
                jnp.sum(members & correct[:, None], axis=0, dtype=jnp.int32),
                jnp.sum(members, axis=0, dtype=jnp.int32),
            )
            return jax.tree.map(jnp.add, sums, (loss, *counts)), None

        zeros = jnp.zeros(num_classes, jnp.int32)
        stacked = (images.reshape(batches, batch, *images.shape[1:]), labels.reshape(batches, batch))
        sums, _ = jax.lax.scan(add, (jnp.float32(0), zeros, zeros), stacked)
        return jax.lax.psum(sums, DATA_AXIS)

    return evaluate


def _logits(params: model.Params, images: jax.Array, config: ModelConfig, shifts: int) -> jax.Array:
    """The class logits of images, or the log of their mean probabilities over shifts."""
    if not shifts:
        return model.apply(params, images, config)
    around = [(0, 0), (shifts, shifts), (shifts, shifts), *[(0, 0)] * (images.ndim - 3)]
    padded = jnp.pad(images, around)
    offsets = jnp.stack(jnp.meshgrid(*[jnp.arange(2 * shifts + 1)] * 2), axis=-1).reshape(-1, 2)

    def moved(offset: jax.Array) -> jax.Array:
        start: Any = (0, offset[0], offset[1], *[0] * (images.ndim - 3))
        return jax.nn.log_softmax(model.apply(params, jax.lax.dynamic_slice(padded, start, images.shape), config))

    return jax.nn.logsumexp(jax.lax.map(moved, offsets), axis=0) - jnp.log(len(offsets))
