"""An image as a sequence, in every way there is."""

from functools import partial

import jax
import numpy as np
import pytest

from lstm_mnist_jax.data.tasks import Task
from lstm_mnist_jax.errors import ConfigError

IMAGES = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6)
COLOURED = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)


@partial(jax.jit, static_argnums=0)
def compiled(task, images):
    return task.read(images)


def read(task, images):
    return np.asarray(compiled(task, images))


def test_rows_columns_and_pixels():
    first, pixels = IMAGES[0], read(Task("pixels"), IMAGES)
    np.testing.assert_array_equal(read(Task(), IMAGES)[:, 0], first)
    np.testing.assert_array_equal(read(Task("columns"), IMAGES)[:, 0], first.T)
    np.testing.assert_array_equal(pixels[:, 0, 0], first.ravel())
    assert pixels.shape == (24, 2, 1)


@pytest.mark.parametrize(("steps", "shape"), [(2, (2, 12)), (8, (8, 3)), (24, (24, 1)), (1, (1, 24))])
def test_steps_take_several_rows_or_parts_of_one(steps, shape):
    assert Task("rows", steps).shape((4, 6)) == shape
    np.testing.assert_array_equal(read(Task("rows", steps), IMAGES)[:, 1], IMAGES[1].reshape(shape))


@pytest.mark.parametrize("name", ["rows", "columns", "pixels", "permuted"])
def test_channels_stay_with_their_pixel(name):
    coloured = read(Task(name), COLOURED)
    alone = [read(Task(name), COLOURED[..., channel]) for channel in range(3)]
    np.testing.assert_array_equal(coloured.reshape(*alone[0].shape, 3), np.stack(alone, axis=-1))


def test_permutations_differ_by_seed_and_keep_all_pixels():
    task = Task("permuted", permutation_seed=1)
    order = task.permutation((4, 6))
    np.testing.assert_array_equal(order, np.random.RandomState(1).permutation(24))
    np.testing.assert_array_equal(read(task, IMAGES)[:, 1, 0], IMAGES[1].ravel()[order])
    assert (Task("permuted", permutation_seed=2).permutation((4, 6)) != order).any()
    assert Task("pixels").permutation((4, 6)) is None


def test_steps_that_do_not_divide_the_pixels_are_refused_with_some_that_do():
    with pytest.raises(ConfigError, match=r"sequence_length is 9, but an image of 28 x 28 has 784 pixels.* 7, 8, 14"):
        Task("rows", 9).shape((28, 28))


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (Task(), "28 rows of 28"),
        (Task("rows", 14), "rows in 14 steps of 56"),
        (Task("permuted"), "784 permuted pixels of 1"),
    ],
)
def test_a_task_describes_itself(task, text):
    assert task.describe((28, 28)) == text
