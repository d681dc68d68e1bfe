"""What changes no bit of a state: how many steps a call makes, calls without waiting, compiling ahead, a second run."""

import dataclasses

import jax
import numpy as np
import pytest
from step_programs import CONFIG, EVERY_OPTION, needs_two_devices, program_of, run, train


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=[needs_two_devices, pytest.mark.slow])])
def test_the_number_of_steps_a_call_changes_no_bit(tiny_dataset, devices):
    whole = train(tiny_dataset, 50, devices=devices)
    assert_same(whole, train(tiny_dataset, 1, 15, 1, 16, 17, 0, devices=devices))
    assert_same(whole, train(tiny_dataset, *[5] * 10, devices=devices))


@pytest.mark.slow
def test_the_number_of_steps_a_call_changes_no_bit_where_random_numbers_are_drawn(tiny_dataset):
    assert_same(train(tiny_dataset, 20, config=EVERY_OPTION), train(tiny_dataset, 1, 15, 4, config=EVERY_OPTION))


@pytest.mark.slow
@needs_two_devices
def test_calls_may_follow_one_another_without_waiting(tiny_dataset):
    """More calls than XLA's CPU devices could run at a time: each would wait for threads that others hold."""
    assert_same(train(tiny_dataset, *[1] * 100, devices=2), train(tiny_dataset, 100, devices=2))


def test_the_seed_decides_everything(tiny_dataset):
    configs = [dataclasses.replace(CONFIG, seed=seed) for seed in (3, 4)]
    assert_same(train(tiny_dataset, 20, config=configs[0]), train(tiny_dataset, 20, config=configs[0]))
    one, other = (train(tiny_dataset, 20, config=config).params["dense"]["bias"] for config in configs)
    assert np.abs(one - other).max() > 0.1


def test_compiling_ahead_changes_nothing(tiny_dataset):
    program = program_of(tiny_dataset)
    assert_same(run(program, 7), run(program.compile(), 7))
