"""The stream of training examples: permutations, no example dropped, batches that straddle, any start."""

import jax
import numpy as np
import pytest

from lstm_mnist_jax.data.order import batch_indices, permutations


def stream(key, steps, batch_size, examples, start=0):
    """The indices of consecutive batches, with the permutations of each computed for it alone."""
    batches = [
        batch_indices(permutations(key, step, batch_size, examples), step, batch_size)
        for step in range(start, start + steps)
    ]
    return np.concatenate(batches)


@pytest.mark.parametrize(("examples", "batch_size"), [(10, 3), (10, 10), (7, 7), (12, 5), (9, 1)])
def test_every_permutation_holds_every_example_once(examples, batch_size):
    indices = stream(jax.random.key(0), 4 * examples, batch_size, examples)
    orders = indices[: len(indices) // examples * examples].reshape(-1, examples)
    assert len(orders) >= 4
    for order in orders:
        assert sorted(order) == list(range(examples))
    if examples > 7:
        assert len({tuple(order) for order in orders}) > 1


def test_a_batch_straddles_two_permutations():
    key = jax.random.key(3)
    first, second = permutations(key, 0, 4, 10).current, permutations(key, 0, 4, 10).following
    np.testing.assert_array_equal(
        batch_indices(permutations(key, 2, 4, 10), 2, 4), np.concatenate([first[8:], second[:2]])
    )
    np.testing.assert_array_equal(permutations(key, 3, 4, 10).current, second)


def test_shares_of_a_batch_make_up_the_batch():
    order = permutations(jax.random.key(0), 2, 4, 10)
    whole = batch_indices(order, 2, 4)
    shares = [batch_indices(order, 2, 4, start, 2) for start in (0, 2)]
    np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_end_is_the_first_step_that_needs_other_permutations():
    for examples, batch_size in [(10, 3), (12, 4), (7, 7)]:
        for step in range(9):
            end = int(permutations(jax.random.key(0), step, batch_size, examples).end)
            starts = [s * batch_size // examples for s in (step, end - 1, end)]
            assert starts[0] == starts[1] == starts[2] - 1


def test_the_following_permutation_is_there_whenever_it_is_needed():
    key = jax.random.key(0)
    for stop in range(1, 12):
        order = permutations(key, 0, 3, 10, stop)
        for step in range(min(stop, int(order.end))):
            np.testing.assert_array_equal(
                batch_indices(order, step, 3), batch_indices(permutations(key, step, 3, 10), step, 3)
            )


def test_permutations_can_be_had_from_those_before():
    key, order, step = jax.random.key(0), None, 0
    for _ in range(4):
        order, alone = permutations(key, step, 3, 10, before=order), permutations(key, step, 3, 10)
        jax.tree.map(np.testing.assert_array_equal, order, alone)
        step = int(order.end)


def test_other_keys_give_other_orders():
    one, other = (stream(jax.random.key(seed), 10, 10, 100) for seed in (0, 1))
    assert (one != other).mean() > 0.9
