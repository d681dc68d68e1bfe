"""The order of the training examples: one permutation for each pass over them.

Sampling is that of the classic `read_data_sets().next_batch`: a stream of permutations of all examples, cut into
batches. No example is dropped, each permutation holds every example once, and a batch may straddle two of them. The
stream is a function of the seed alone, so training can go on from any step.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Integer, Scalar

MAX_POSITION = 2**31 - 1
"""The last position in the stream: positions are 32-bit integers."""


def permutation(seed: int, number: int, examples: int) -> Int32[np.ndarray, " examples"]:
    """The order of one pass over the examples, drawn by NumPy's RandomState, whose numbers never change.

    Args:
      seed: of the run, 0 to 2**32 - 1.
      number: which pass, from 0.
      examples: how many examples there are.

    >>> permutation(seed=0, number=0, examples=5).tolist() == permutation(seed=0, number=0, examples=5).tolist()
    True
    """
    return np.random.RandomState((seed, number)).permutation(examples).astype(np.int32)


def batch_indices(
    first: Integer[Array, " examples"],
    second: Integer[Array, " examples"],
    number: Scalar | int,
    step: Scalar | int,
    batch_size: int,
    start: Scalar | int = 0,
    size: int | None = None,
) -> Int32[Array, " size"]:
    """The indices of the examples of a batch, or of the part [start, start + size) of it. Traceable by JAX.

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
