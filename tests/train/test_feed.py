"""Batches that stream from the host: the same as those that the devices pick, and as exactly resumed."""

import dataclasses
import time

import jax
import numpy as np
import pytest
from idx_files import write_folder

from lstm_mnist_jax.config import Config, Execution, ModelConfig
from lstm_mnist_jax.data import idx
from lstm_mnist_jax.data.sources import load
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.training import feed, make_program
from lstm_mnist_jax.training.evaluation import Evaluator
from lstm_mnist_jax.training.feed import GIB, Resident, Streamed, make_feed
from lstm_mnist_jax.training.mesh import make_mesh

CONFIG = Config(batch_size=8, epochs=3, model=ModelConfig(hidden_features=(4, 6)))
QUARTER = 1000 / GIB
"""Of the tiny data, 130 images of 30 bytes, a quarter: two steps of eight images fit in half of it."""


def mesh():
    return make_mesh(Execution(), CONFIG.batch_size)


programs = {}


def program_of(dataset, limit=Execution.device_data_limit, seed=3):
    """The program on `tiny_dataset`, which is equal in all tests: several use what was compiled once."""
    if (limit, seed) not in programs:
        config = dataclasses.replace(CONFIG, seed=seed)
        programs[limit, seed] = make_program([config], dataset, mesh(), limit)
    return programs[limit, seed]


def leaves(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))]


def test_data_above_the_limit_stream(tiny_dataset):
    size = tiny_dataset.train.images.nbytes / GIB
    assert isinstance(make_feed([CONFIG], tiny_dataset.train, mesh(), size), Resident)
    streamed = make_feed([CONFIG], tiny_dataset.train, mesh(), size * 0.999)
    assert isinstance(streamed, Streamed)
    pieces = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(streamed.abstract_batches[0][1]))
    assert 2 * pieces <= size * GIB


@pytest.mark.parametrize("limit", [pytest.param(QUARTER, marks=pytest.mark.slow), 1 / GIB])
def test_streamed_training_is_that_of_data_on_the_devices(tiny_dataset, limit):
    resident, streamed = program_of(tiny_dataset), program_of(tiny_dataset, limit).compile()
    expected, found = resident.init(), streamed.init()
    for steps in (1, 5, 40):  # over the ends of pieces and of epochs
        expected, found = resident.run_steps(expected, steps), streamed.run_steps(found, steps)
        assert leaves(found) == leaves(expected)


@pytest.mark.slow
def test_a_stream_goes_on_from_any_state(tiny_dataset):
    streamed = program_of(tiny_dataset, QUARTER)
    whole = leaves(streamed.run_steps(streamed.init(), 30))
    half = streamed.run_steps(streamed.init(), 17)
    copy = jax.tree.map(np.asarray, half._replace(key=jax.random.key_data(half.key)))
    other = program_of(tiny_dataset, seed=4).init()
    streamed.run_steps(other, 17)  # another run in between, at the same step
    half = jax.tree.map(jax.numpy.asarray, copy)
    half = half._replace(key=jax.random.wrap_key_data(half.key))
    half = jax.device_put(half, jax.tree.map(lambda leaf: leaf.sharding, streamed.abstract_state))
    assert leaves(streamed.run_steps(half, 13)) == whole


@pytest.mark.parametrize("limit", [1 / GIB, 200 / GIB, 400 / GIB])
def test_an_evaluation_in_pieces_counts_every_example_once(tiny_dataset, limit):
    params = program_of(tiny_dataset).init().params
    whole = Evaluator(CONFIG.model, tiny_dataset.splits, mesh())(params)
    pieces = Evaluator(CONFIG.model, tiny_dataset.splits, mesh(), limit)(params)
    for split, (expected,) in whole.items():
        (found,) = pieces[split]
        np.testing.assert_array_equal(found.correct, expected.correct)
        np.testing.assert_array_equal(found.count, expected.count)
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)


@pytest.mark.slow
def test_large_uncompressed_files_are_mapped_and_trained_on(tmp_path, monkeypatch):
    write_folder(tmp_path / "data", gzipped=False)
    expected = load(tmp_path / "data", validation_examples=2)
    monkeypatch.setattr(idx, "MAPPED_BYTES", 1)
    found = load(tmp_path / "data", validation_examples=2)
    assert isinstance(found.train.images, np.memmap)
    assert found.fingerprint() == expected.fingerprint()
    config = Config(batch_size=2, model=ModelConfig(hidden_features=(3,)))
    streamed = make_program([config], found, make_mesh(Execution(), 2), 1 / GIB)
    resident = make_program([config], expected, make_mesh(Execution(), 2))
    assert leaves(streamed.run_steps(streamed.init(), 5)) == leaves(resident.run_steps(resident.init(), 5))


def test_an_impossible_limit_is_refused():
    with pytest.raises(ConfigError, match=r"device_data_limit is 0\.0, expected GiB, above 0"):
        Execution(device_data_limit=0.0)


class Counted(np.ndarray):
    """Images that count how often a batch is taken of them."""

    taken = 0

    def __getitem__(self, index):
        if isinstance(index, np.ndarray):
            Counted.taken += 1
        return np.asarray(super().__getitem__(index))


@pytest.mark.slow
def test_a_stream_reads_ahead_but_not_without_end(tiny_dataset):
    counted = dataclasses.replace(tiny_dataset.train, images=tiny_dataset.train.images.view(Counted))
    streamed = make_feed([CONFIG], counted, mesh(), QUARTER)
    ahead = streamed.abstract_batches[0][1].shape[0]
    assert ahead == 2
    state = program_of(tiny_dataset).init()
    Counted.taken = 0
    next(iter(streamed.take(state, 1)))
    time.sleep(1)
    assert 1 < Counted.taken <= 1 + 2 * ahead + feed.THREADS
