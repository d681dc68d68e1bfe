"""The order in which training sees its examples: a function of (key, step) alone.

Sampling is that of the classic `read_data_sets().next_batch`: a stream of permutations of all examples, cut into
batches. No example is dropped, each permutation holds every example once, and a batch may straddle two of them.
A step needs the permutation that it starts in and the next one; `Permutations` holds both, so that a loop computes
them once for all the steps that start in the same permutation. Traceable by JAX.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int32, PRNGKeyArray, Scalar

MAX_POSITION = 2**31 - 1
"""The last position in the stream: positions are 32-bit integers."""


class Permutations(NamedTuple):
    """Two consecutive permutations of the stream.

    Attributes:
      current, following: int32 [examples], indices of examples.
      end: the first step that starts after `current`.
    """

    current: Int32[Array, " examples"]
    following: Int32[Array, " examples"]
    end: Int[Scalar, ""] | int


def permutations(
    key: PRNGKeyArray,
    step: Scalar | int,
    batch_size: int,
    examples: int,
    stop: Scalar | int = MAX_POSITION,
    before: Permutations | None = None,
) -> Permutations:
    """The permutations from which the batches from `step` on are drawn.

    Args:
      key: decides the whole stream.
      step: the first step to serve.
      batch_size: examples a batch, at most `examples`.
      examples: how many examples there are.
      stop: serve steps below this one only. Where they end before `current` does, `following` is not computed.
      before: the permutations that end at this step, whose `following` is then not computed again.
    """
    number = step * batch_size // examples

    def permutation(number: Scalar | int) -> Array:
        return jax.random.permutation(jax.random.fold_in(key, number), examples).astype(jnp.int32)

    end = -(-(number + 1) * examples // batch_size)
    current = permutation(number) if before is None else before.following
    # Shuffling costs as much as many steps; only the last batch of a permutation reaches into the next one.
    following = jax.lax.cond(stop >= end, lambda: permutation(number + 1), lambda: current)
    return Permutations(current, following, end)


def batch_indices(
    order: Permutations, step: Scalar | int, batch_size: int, start: Scalar | int = 0, size: int | None = None
) -> Int32[Array, " size"]:
    """The indices of the examples of a batch, or of the part [start, start + size) of it.

    Args:
      order: the permutations of this step.
      step: the number of the batch, from 0.
      batch_size: examples in a whole batch, at most the number of all examples.
    """
    examples = len(order.current)
    offsets = step * batch_size % examples + start + jnp.arange(batch_size if size is None else size)
    return jnp.where(
        offsets < examples,
        order.current[jnp.minimum(offsets, examples - 1)],
        order.following[jnp.maximum(offsets - examples, 0)],
    )
