"""Evaluation of a whole split, exact over a last partial batch, on all devices of a mesh."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from lstm_mnist_jax.training.mesh import DATA_AXIS, POPULATION_AXIS

MAX_BATCH = 512
"""Examples that a device classifies at once, at most."""

PADDING_LABEL = -1

Sums = tuple[jax.Array, jax.Array, jax.Array]
"""Of losses, and by class of right answers and of examples."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the model makes of a split.

    Attributes:
      loss: mean cross-entropy, in nats.
      correct, count: int [classes], the examples of each class that were classified rightly, and all of them.
    """

    loss: float
    correct: np.ndarray
    count: np.ndarray

    @property
    def accuracy(self) -> float:
        """The share of all examples that were classified rightly, 0 to 1."""
        return float(self.correct.sum() / self.count.sum())


def make_evaluation(
    config: ModelConfig,
    examples: Examples,
    mesh: Mesh,
    device_data_limit: float = Execution.device_data_limit,
    shifts: int = 0,
    params_like: model.Params | None = None,
) -> Callable[[model.Params], Evaluation]:
    """Puts a split on the devices, each its share, and returns the function params -> `Evaluation`.

    Args:
      config, examples: the network and the split.
      mesh: with a `DATA_AXIS`.
      device_data_limit: GiB. Of images that take more, so much is put on the devices at a time.
      shifts: the probabilities are the mean of those of the image moved by up to so many pixels either way.
      params_like: parameters or their shapes, for which the program is then compiled in the background.
    """
    pieces = max(1, math.ceil(examples.images.nbytes / (device_data_limit * GIB)))
    size = -(-len(examples) // pieces)
    batches, batch, padding = _batches(size, mesh.size)
    sums = _sums(config, examples.num_classes, batches, batch, shifts)
    data_spec, replicated = P(DATA_AXIS), NamedSharding(mesh, P())
    compiled = jax.jit(
        jax.shard_map(sums, mesh=mesh, in_specs=(P(), data_spec, data_spec), out_specs=P(), check_vma=False),
        out_shardings=replicated,
    )

    def piece(start: int) -> tuple[jax.Array, jax.Array]:
        part = examples[start : start + size]
        padded = _padded(part, padding + size - len(part))
        return place(padded, NamedSharding(mesh, data_spec))

    kept = piece(0) if pieces == 1 else None
    ahead = None
    if params_like is not None and kept is not None:
        background = ThreadPoolExecutor(1, thread_name_prefix="compile")
        ahead = background.submit(lambda: compiled.lower(params_like, *kept).compile())
        background.shutdown(wait=False)

    def run(params: model.Params) -> Evaluation:
        params = jax.device_put(params, replicated)
        evaluate = compiled if ahead is None else ahead.result()
        parts = [jax.device_get(evaluate(params, *(kept or piece(start)))) for start in range(0, len(examples), size)]
        losses, corrects, counts = zip(*parts, strict=True)
        return Evaluation(float(sum(losses)) / len(examples), sum(corrects), sum(counts))

    return run


@dataclass(frozen=True, eq=False)
class PopulationEvaluation:
    """The evaluation of every member of a population on one split.

    Attributes:
      program: (params, images, labels) -> `Sums` of each, where params are those of all members, one behind the other
        and split over `POPULATION_AXIS`.
      data: the images and labels, on the devices.
      count: how many examples are real.
    """

    program: Any
    data: tuple[jax.Array, jax.Array]
    count: int

    def compile(self, params: model.Params) -> "PopulationEvaluation":
        """The same, compiled now for parameters of these shapes."""
        return replace(self, program=self.program.lower(params, *self.data).compile())

    def device_bytes(self) -> int:
        """What the split takes of each device's memory."""
        return sum(array.addressable_shards[0].data.nbytes for array in self.data)

    def __call__(self, params: model.Params) -> list[Evaluation]:
        losses, corrects, counts = jax.device_get(self.program(params, *self.data))
        return [
            Evaluation(float(loss) / self.count, correct, count)
            for loss, correct, count in zip(losses, corrects, counts, strict=True)
        ]


def make_population_evaluation(
    config: ModelConfig, examples: Examples, mesh: Mesh, each: Any, at_once: int
) -> PopulationEvaluation:
    """Puts a split on the devices.

    Args:
      config, examples: the network and the split.
      mesh: with `POPULATION_AXIS` and `DATA_AXIS`.
      each: from a function of one member to that of a device's members, as `jax.vmap`.
      at_once: how many members a device evaluates at a time, sharing `MAX_BATCH`.
    """
    batches, batch, padding = _batches(len(examples), mesh.shape[DATA_AXIS], max(1, MAX_BATCH // at_once))
    evaluate = _sums(config, examples.num_classes, batches, batch)
    replicated, members, data_spec = NamedSharding(mesh, P()), P(POPULATION_AXIS), P(DATA_AXIS)

    def evaluate_each(params: model.Params, images: jax.Array, labels: jax.Array) -> Sums:
        return each(lambda params: evaluate(params, images, labels))(params)

    sharded = jax.shard_map(
        evaluate_each, mesh=mesh, in_specs=(members, data_spec, data_spec), out_specs=members, check_vma=False
    )
    data = place(_padded(examples, padding), NamedSharding(mesh, data_spec))
    return PopulationEvaluation(jax.jit(sharded, out_shardings=replicated), data, len(examples))


def _batches(examples: int, devices: int, most: int = MAX_BATCH) -> tuple[int, int, int]:
    """In how many batches, of how many examples, each of the devices does its share, and how many are padding."""
    share = -(-examples // devices)
    batches = -(-share // most)
    batch = -(-share // batches)
    return batches, batch, devices * batches * batch - examples


def _padded(examples: Examples, padding: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.pad(examples.images, [(0, padding), *[(0, 0)] * (examples.images.ndim - 1)])
    return images, np.pad(examples.labels, (0, padding), constant_values=PADDING_LABEL)


def _sums(config: ModelConfig, num_classes: int, batches: int, batch: int, shifts: int = 0) -> Callable[..., Sums]:
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
    """The class logits of images, or the logarithms of their mean probabilities over shifts."""
    if not shifts:
        return model.apply(params, images, config)
    around = [(0, 0), (shifts, shifts), (shifts, shifts), *[(0, 0)] * (images.ndim - 3)]
    padded = jnp.pad(images, around)
    offsets = jnp.stack(jnp.meshgrid(*[jnp.arange(2 * shifts + 1)] * 2), axis=-1).reshape(-1, 2)

    def moved(offset: jax.Array) -> jax.Array:
        start: Any = (0, offset[0], offset[1], *[0] * (images.ndim - 3))
        return jax.nn.log_softmax(model.apply(params, jax.lax.dynamic_slice(padded, start, images.shape), config))

    return jax.nn.logsumexp(jax.lax.map(moved, offsets), axis=0) - jnp.log(len(offsets))
