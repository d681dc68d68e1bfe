"""The stream of training examples: permutations, no example dropped, batches that straddle, any start."""

import itertools
import math
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_mnist_jax.data.order import MAX_POSITION, batch_indices, order_of


@partial(jax.jit, static_argnums=(1, 2, 3))
def stream(seed, steps, batch_size, examples, start):
    """The indices of consecutive batches."""
    order, steps = order_of(jax.random.key(seed)), jnp.arange(steps) + start
    return jax.vmap(lambda step: batch_indices(order, step, batch_size, examples))(steps).ravel()


@pytest.mark.parametrize(
    ("examples", "batch_size"),
    [(1, 1), (2, 1), (10, 3), (10, 10), (7, 7), (12, 5), (9, 1), (16, 4), (17, 3), (10, 25), (2003, 64)],
)
def test_every_permutation_holds_every_example_once(examples, batch_size):
    indices = np.asarray(stream(0, -(-4 * examples // batch_size), batch_size, examples, 0))
    orders = indices[: len(indices) // examples * examples].reshape(-1, examples)
    assert len(orders) >= 4
    np.testing.assert_array_equal(np.sort(orders), np.broadcast_to(np.arange(examples), orders.shape))
    if examples > 6:
        assert len({tuple(order) for order in orders}) == len(orders)


def test_how_the_stream_is_cut_does_not_change_it():
    whole = np.asarray(stream(3, 96, 1, 10, 0))
    for batch_size in (3, 4, 10, 12):
        np.testing.assert_array_equal(stream(3, 5, batch_size, 10, 0), whole[: 5 * batch_size])
        later = stream(3, 5, batch_size, 10, 3)
        np.testing.assert_array_equal(later, whole[3 * batch_size : 8 * batch_size])


def test_shares_of_a_batch_make_up_the_batch():
    @jax.jit
    def whole_and_shares(order, start):
        return batch_indices(order, 2, 4, 10), batch_indices(order, 2, 4, 10, start, 2)

    order = order_of(jax.random.key(0))
    (whole, first), (_, second) = (whole_and_shares(order, start) for start in (0, 2))
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)


@pytest.mark.parametrize("keys", [1, 20_000])
@pytest.mark.parametrize("examples", [2, 3, 5])
def test_all_orders_are_equally_frequent(examples, keys):
    """Pearson's chi-squared over the permutations of one stream, and over the first of many streams."""
    permutations = 20_000 // keys
    drawn = streams_of(np.arange(keys), permutations, examples)
    counts = Counter(map(tuple, np.asarray(drawn).reshape(-1, examples).tolist()))
    expected = 20_000 / math.factorial(examples)
    squares = sum((counts[order] - expected) ** 2 / expected for order in itertools.permutations(range(examples)))
    freedom = math.factorial(examples) - 1
    assert squares < freedom + 4 * math.sqrt(2 * freedom) + 4


@partial(jax.jit, static_argnums=(1, 2))
def streams_of(seeds, permutations, examples):
    """The first permutations of the streams of several seeds, [seeds, permutations, examples]."""

    def stream_of(seed):
        order = order_of(jax.random.key(seed))
        return jax.vmap(lambda number: batch_indices(order, number, examples, examples))(jnp.arange(permutations))

    return jax.vmap(stream_of)(seeds)


def test_neighbours_in_a_permutation_have_nothing_to_do_with_one_another():
    """Of 300 permutations of 1,000: differences of neighbours, fixed points, means of batches."""
    drawn = np.asarray(streams_of(np.array([1]), 300, 1000))[0]
    differences = np.bincount((np.diff(drawn) % 1000).ravel(), minlength=1000)[1:]
    expected = 300 * 999 / 999
    assert abs(np.sum((differences - expected) ** 2 / expected) - 998) < 5 * math.sqrt(2 * 998)
    assert abs((drawn == np.arange(1000)).sum(1).mean() - 1) < 5 / math.sqrt(300)
    means = drawn.reshape(300, 20, 50).mean(2)
    variance = (1000**2 - 1) / 12 / 50 * (1000 - 50) / (1000 - 1)
    assert abs(np.mean((means - 499.5) ** 2) / variance - 1) < 5 * math.sqrt(2 / means.size)


@pytest.mark.parametrize("examples", [MAX_POSITION, MAX_POSITION - 2**16, 46340**2, 46340**2 + 1])
def test_the_largest_sets_have_no_overflow(examples):
    """The last batch of the longest run, against the same cipher over Python's integers."""
    order, size = np.asarray(order_of(jax.random.key(5))), 64
    step = MAX_POSITION // size - 1
    indices = jax.jit(lambda order: batch_indices(order, step, size, examples))(order).tolist()
    positions = [step * size + n for n in range(size)]
    assert indices == [in_integers(order.tolist(), *divmod(position, examples), examples) for position in positions]
    assert len(set(indices)) == size
    assert min(indices) >= 0
    assert max(indices) < examples


def in_integers(order, number, place, examples):
    rows = math.isqrt(examples - 1) + 1
    columns = math.ceil(examples / rows)
    keys = [mix(word + number * 0x9E3779B9) for word in order]
    while True:
        row, column = divmod(place, columns)
        for one, other in zip(keys[::2], keys[1::2], strict=True):
            row = (row + mix(column ^ one)) % rows
            column = (column + mix(row ^ other)) % columns
        place = row * columns + column
        if place < examples:
            return place


def mix(bits):
    bits %= 2**32
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D % 2**32
    bits = (bits ^ (bits >> 15)) * 0x846CA68B % 2**32
    return bits ^ (bits >> 16)


def test_other_keys_give_other_orders():
    one, other = (np.asarray(stream(seed, 10, 10, 100, 0)) for seed in (0, 1))
    assert (one != other).mean() > 0.9
