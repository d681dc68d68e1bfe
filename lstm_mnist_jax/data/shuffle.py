"""The order in which training sees its examples: one permutation for each pass over them.

Sampling is that of the classic `read_data_sets().next_batch`: a stream of permutations of all examples, cut into
batches. No example is dropped, each permutation holds every example once, and a batch may straddle two of them. The
stream is a function of the key alone, so training can go on from any step.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Integer, PRNGKeyArray, Scalar

MAX_POSITION = 2**31 - 1
"""The last position in the stream: positions are 32-bit integers."""


def permutation(key: PRNGKeyArray, number: Scalar | int, examples: int) -> Int32[Array, " examples"]:
    """The order of one pass over the examples.

    Args:
      key: decides the stream.
      number: which pass, from 0.
      examples: how many examples there are.
    """
    return jax.random.permutation(jax.random.fold_in(key, number), examples)


def batch_indices(
    first: Integer[Array, " examples"],
    second: Integer[Array, " examples"],
    number: Scalar | int,
    step: Scalar | int,
    batch_size: int,
    start: Scalar | int = 0,
    size: int | None = None,
) -> Int32[Array, " size"]:
    """The indices of the examples of a batch, or of the part [start, start + size) of it.

    Args:
      first, second: the permutations `number` and `number + 1`, in which the whole batch must lie.
      number: the pass to which `first` belongs.
      step: the number of the batch, from 0.
      batch_size: examples in a whole batch.
      start, size: which part; None is the whole batch.
    """
    examples = len(first)
    position = step * batch_size + start + jnp.arange(batch_size if size is None else size, dtype=jnp.int32)
    place = position % examples
    return jnp.where(position // examples == number, first[place], second[place]).astype(jnp.int32)
