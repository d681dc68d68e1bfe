"""Evaluation of a whole split, exact over a last partial batch, on all devices of a mesh."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.data import Examples
from lstm_mnist_jax.training.mesh import DATA_AXIS

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


def make_evaluation(config: ModelConfig, examples: Examples, mesh: Mesh) -> Callable[[model.Params], Evaluation]:
    """Puts a split on the devices, each its share, and returns the function params -> `Evaluation`."""
    share = -(-len(examples) // mesh.size)
    batches = -(-share // MAX_BATCH)
    batch = -(-share // batches)
    padding = mesh.size * batches * batch - len(examples)

    def evaluate(params: model.Params, images: jax.Array, labels: jax.Array) -> Sums:
        def add(sums: Sums, xs: tuple[jax.Array, jax.Array]) -> tuple[Sums, None]:
            images, labels = xs
            real = labels != PADDING_LABEL
            logits = model.apply(params, images, config)
            loss = jnp.where(real, model.softmax_cross_entropy(logits, jnp.where(real, labels, 0)), 0).sum()
            correct = real & (jnp.argmax(logits, axis=-1) == labels)
            members = labels[:, None] == jnp.arange(examples.num_classes)
            counts = (
                jnp.sum(members & correct[:, None], axis=0, dtype=jnp.int32),
                jnp.sum(members, axis=0, dtype=jnp.int32),
            )
            return jax.tree.map(jnp.add, sums, (loss, *counts)), None

        zeros = jnp.zeros(examples.num_classes, jnp.int32)
        stacked = (images.reshape(batches, batch, *images.shape[1:]), labels.reshape(batches, batch))
        sums, _ = jax.lax.scan(add, (jnp.float32(0), zeros, zeros), stacked)
        return jax.lax.psum(sums, DATA_AXIS)

    data_spec, replicated = P(DATA_AXIS), NamedSharding(mesh, P())
    compiled = jax.jit(
        jax.shard_map(evaluate, mesh=mesh, in_specs=(P(), data_spec, data_spec), out_specs=P(), check_vma=False),
        out_shardings=replicated,
    )
    images = np.pad(examples.images, [(0, padding), *[(0, 0)] * (examples.images.ndim - 1)])
    labels = np.pad(examples.labels, (0, padding), constant_values=PADDING_LABEL)
    data = jax.device_put((images, labels), NamedSharding(mesh, data_spec))

    def run(params: model.Params) -> Evaluation:
        loss, correct, count = jax.device_get(compiled(jax.device_put(params, replicated), *data))
        return Evaluation(float(loss) / len(examples), correct, count)

    return run
