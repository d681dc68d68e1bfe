"""Evaluation of whole splits, with their last partial batches, on all devices of a mesh."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_mnist_jax import model
from lstm_mnist_jax.config import Execution, ModelConfig
from lstm_mnist_jax.data import Examples
from lstm_mnist_jax.training.feed import GIB, KEPT_PROGRAMS, place
from lstm_mnist_jax.training.mesh import DATA_AXIS, MEMBER_AXIS, make_mesh, runs_one_by_one

MAX_BATCH = 512
"""The most examples that a device classifies at once."""

PADDING_LABEL = -1

Sums = tuple[jax.Array, jax.Array]
"""Of each batch: the sum of the losses; by class, the number of correctly classified examples."""

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
    """Evaluates the parameters of one run, or of several at once, on the splits of a data set, in one program."""

    def __init__(
        self,
        config: ModelConfig,
        splits: Mapping[str, Examples],
        mesh: Mesh,
        device_data_limit: float = Execution.device_data_limit,
        shifts: int = 0,
        each: ForEach | None = None,
        at_once: int = 1,
    ) -> None:
        """The splits are put on the devices at the first evaluation, a share of each batch on each device.

        Args:
          config, splits: the network, and the splits by name, whose images have the same shape.
          mesh: with a `MEMBER_AXIS` and a `DATA_AXIS`.
          device_data_limit: GiB. Images that take more are put on the devices in pieces of this size, at each
            evaluation.
          shifts: test-time augmentation: the mean probabilities over shifts of up to this many pixels.
          each: maps over a device's members; None where a device has one.
          at_once: the number of members that a device evaluates at a time, sharing `MAX_BATCH`.
        """
        first, *_ = splits.values()
        self._splits, self._mesh, devices = splits, mesh, mesh.shape[DATA_AXIS]
        total = sum(examples.images.nbytes for examples in splits.values())
        limit = max(1, int(device_data_limit * GIB / first.images[0].nbytes))  # examples
        most = max(1, min(MAX_BATCH // at_once, limit // devices))
        batch = devices * batch_size([-(-len(examples) // devices) for examples in splits.values()], most)
        self._starts = [(name, start) for name, examples in splits.items() for start in range(0, len(examples), batch)]
        batches = len(self._starts)
        pieces = 1 if total <= device_data_limit * GIB else -(-batches // max(1, limit // batch))
        sharding = NamedSharding(mesh, P(None, DATA_AXIS))
        self._program = _program(config, first.num_classes, mesh, shifts, each or the_only_one)
        shape = (-(-batches // pieces), batch)
        self._abstract = (
            jax.ShapeDtypeStruct((*shape, *first.images.shape[1:]), first.images.dtype, sharding=sharding),
            jax.ShapeDtypeStruct(shape, first.labels.dtype, sharding=sharding),
        )
        self._is_whole = pieces == 1
        self._compiled: Future[Any] | None = None

    def compile(self, params: Any) -> None:
        """Compiles in the background, for parameters of these shapes, [members, ...]."""
        background = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._compiled = background.submit(lambda: self._program.lower(params, *self._abstract).compile())
        background.shutdown(wait=False)

    def device_bytes(self) -> tuple[int, int]:
        """The memory of a device that the splits take, and that the compiled program takes while it runs."""
        assert self._compiled is not None
        data = sum(leaf.size * leaf.dtype.itemsize for leaf in self._abstract) // self._mesh.shape[DATA_AXIS]
        return data, temporary_bytes(self._compiled.result())

    def __call__(self, params: model.Params) -> dict[str, list[Evaluation]]:
        """Evaluates parameters, [members, ...], on each split, by name."""
        program = self._program if self._compiled is None else self._compiled.result()
        size = self._abstract[1].shape[0]
        sums = [
            jax.device_get(program(params, *(self._whole if self._is_whole else self._piece(start))))
            for start in range(0, len(self._starts), size)
        ]
        loss, correct = (np.concatenate(parts, axis=1)[:, : len(self._starts)] for parts in zip(*sums, strict=True))
        found = {}
        for split, examples in self._splits.items():
            batches = [name == split for name, _ in self._starts]
            losses = loss[:, batches].sum(1, dtype=np.float64) / len(examples)
            count = np.bincount(examples.labels, minlength=examples.num_classes)
            found[split] = [
                Evaluation(mean, of_class, count)
                for mean, of_class in zip(losses.tolist(), correct[:, batches].sum(1), strict=True)
            ]
        return found

    @cached_property
    def _whole(self) -> tuple[jax.Array, jax.Array]:
        """All batches, which stay on the devices."""
        return self._piece(0)

    def _piece(self, first: int) -> tuple[jax.Array, jax.Array]:
        """Batches from number `first` on, as many as the program takes, on the devices."""
        abstract_images, abstract_labels = self._abstract
        images = np.zeros(abstract_images.shape, abstract_images.dtype)
        labels = np.full(abstract_labels.shape, PADDING_LABEL, abstract_labels.dtype)
        size, batch = labels.shape
        for number, (name, start) in enumerate(self._starts[first : first + size]):
            part = self._splits[name][start : start + batch]
            images[number, : len(part)], labels[number, : len(part)] = part.images, part.labels
        return place((images, labels), abstract_labels.sharding)


@lru_cache(maxsize=KEPT_PROGRAMS)
def _program(config: ModelConfig, num_classes: int, mesh: Mesh, shifts: int, each: ForEach) -> Any:
    """The compiled function of (parameters, images, labels): the same one for the same arguments."""
    members, batches = P(MEMBER_AXIS), P(None, DATA_AXIS)

    def evaluate_members(params: model.Params, images: jax.Array, labels: jax.Array) -> Sums:
        evaluate = partial(_evaluate, images=images, labels=labels, config=config, shifts=shifts)
        return each(partial(evaluate, num_classes=num_classes, one_by_one=runs_one_by_one(mesh)))(params)

    sharded = jax.shard_map(
        evaluate_members, mesh=mesh, in_specs=(members, batches, batches), out_specs=members, check_vma=False
    )
    return jax.jit(sharded, out_shardings=NamedSharding(mesh, P()))


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """The memory of a device that a compiled program takes while it runs, besides its arguments and results."""
    found: Any = compiled.memory_analysis()
    # Of a TPU the first is 0; elsewhere the peak may be that of the largest moment alone.
    return int(max(found.temp_size_in_bytes, found.peak_memory_in_bytes - found.argument_size_in_bytes))


def batch_size(shares: Sequence[int], most: int) -> int:
    """The number of examples in each batch of a device, at most `most`: that which needs the least padding."""
    most = min(most, max(shares))
    return min(range(most, most // 2, -1), key=lambda size: sum(-share % size for share in shares))


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
    found = Evaluator(config, splits, mesh, execution.device_data_limit, shifts)(members)
    return {name: evaluation for name, (evaluation,) in found.items()}


def _evaluate(
    params: model.Params,
    images: jax.Array,
    labels: jax.Array,
    config: ModelConfig,
    shifts: int,
    num_classes: int,
    one_by_one: bool,
) -> Sums:
    """The sums of each batch over all devices, of each one's share, [batches, batch, ...]."""

    def sums_of(_: None, batch: tuple[jax.Array, jax.Array]) -> tuple[None, Sums]:
        images, labels = batch
        real = labels != PADDING_LABEL
        logits = _logits(params, images, config, shifts, one_by_one)
        loss = jnp.where(real, model.softmax_cross_entropy(logits, jnp.where(real, labels, 0)), 0).sum()
        correct = real & (jnp.argmax(logits, axis=-1) == labels)
        by_class = correct[:, None] & (labels[:, None] == jnp.arange(num_classes))
        return None, (loss, jnp.sum(by_class, axis=0, dtype=jnp.int32))

    _, sums = jax.lax.scan(sums_of, None, (images, labels))
    return jax.lax.psum(sums, DATA_AXIS)


def _logits(params: model.Params, images: jax.Array, config: ModelConfig, shifts: int, one_by_one: bool) -> jax.Array:
    """The class logits of images, or the log of their mean probabilities over shifts, one by one or all at once."""
    if not shifts:
        return model.apply(params, images, config)
    around = [(0, 0), (shifts, shifts), (shifts, shifts), *[(0, 0)] * (images.ndim - 3)]
    padded = jnp.pad(images, around)
    offsets = jnp.stack(jnp.meshgrid(*[jnp.arange(2 * shifts + 1)] * 2), axis=-1).reshape(-1, 2)

    def moved(offset: jax.Array) -> jax.Array:
        start: Any = (0, offset[0], offset[1], *[0] * (images.ndim - 3))
        return jax.nn.log_softmax(model.apply(params, jax.lax.dynamic_slice(padded, start, images.shape), config))

    of_shifts = jax.lax.map(moved, offsets) if one_by_one else jax.vmap(moved)(offsets)
    return jax.nn.logsumexp(of_shifts, axis=0) - jnp.log(len(offsets))
