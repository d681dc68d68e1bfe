"""The order in which training sees its examples: a function of (key, step) alone.

Sampling is that of the classic `read_data_sets().next_batch`: a stream of permutations of all examples, cut into
batches. No example is dropped, each permutation holds every example once, and a batch may straddle two of them.

A permutation is a cipher of the numbers below `examples`, not a table: an index is computed where it is needed, and
nothing is sorted, kept, or carried from step to step, however many the examples and the trainings at once. The cipher
is a Feistel network over pairs (row, column) of a rectangle with a few places more than there are examples, applied
again to what it puts on one of these: methods 3 and 2 of Black and Rogaway, "Ciphers with Arbitrary Finite Domains"
(2002). Traceable by JAX.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, PRNGKeyArray, Scalar, UInt32

MAX_POSITION = 2**31 - 1
"""The last position in the stream: positions are 32-bit integers."""

ROUNDS = 24
"""Of the Feistel network. Eight serve a thousand examples; with 24 all orders of five or six are equally frequent."""

Order = UInt32[Array, " rounds"]
"""What decides a stream: one number a round."""


def order_of(key: PRNGKeyArray) -> Order:
    """The stream that belongs to a key."""
    return jax.random.bits(key, (ROUNDS,), jnp.uint32)


def batch_indices(
    order: Order, step: Scalar | int, batch_size: int, examples: int, start: Scalar | int = 0, size: int | None = None
) -> Int32[Array, " size"]:
    """The indices of the examples of a batch, or of the part [start, start + size) of it.

    Args:
      order: the stream.
      step: the number of the batch, from 0.
      batch_size: examples in a whole batch.
      examples: how many examples there are.
      start, size: which part; None is the whole batch.
    """
    position = step * batch_size + start + jnp.arange(batch_size if size is None else size, dtype=jnp.int32)
    return _permute(order, position // examples, position % examples, examples)


def _permute(
    order: Order, number: Int[Array, " size"], place: Int[Array, " size"], examples: int
) -> Int32[Array, " size"]:
    """What stands at each place of the permutation of that number in the stream."""
    height = math.isqrt(examples - 1) + 1
    rows, columns = np.uint32(height), np.uint32(-(-examples // height))
    keys = _mix(order[:, None] + number.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)).reshape(ROUNDS // 2, 2, -1)

    def encrypt(place: Array) -> Array:
        def rounds(pair: tuple[Array, Array], keys: Array) -> tuple[tuple[Array, Array], None]:
            row, column = pair
            row = (row + _mix(column ^ keys[0]) % rows) % rows
            column = (column + _mix(row ^ keys[1]) % columns) % columns
            return (row, column), None

        (row, column), _ = jax.lax.scan(rounds, (place // columns, place % columns), keys, unroll=1)
        return row * columns + column

    def walk(loop: tuple[Array, Array]) -> tuple[Array, Array]:
        place, outside = loop
        place = jnp.where(outside, encrypt(place), place)
        return place, place >= examples

    start = place.astype(jnp.uint32), jnp.ones(place.shape, bool)
    return jax.lax.while_loop(lambda loop: loop[1].any(), walk, start)[0].astype(jnp.int32)


def _mix(bits: Array) -> Array:
    """A hash of 32 bits, each of whose bits depends on all of `bits`: `lowbias32` of C. Wellons' hash-prospector."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
