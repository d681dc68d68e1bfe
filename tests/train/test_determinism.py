"""What changes no bit: how many steps a call makes, calls without waiting, compiling ahead, a second run, streamed
data, kills, signals, damaged checkpoints."""

import dataclasses
import random
import signal
import time

import jax
import numpy as np
import pytest
from programs import Program
from runs import ONE_LAYER, TINY, damage_the_newest_checkpoint, outcome
from step_programs import CONFIG, needs_two_devices, program_of, run, train

import lstm_mnist_jax
from lstm_mnist_jax import load_run
from lstm_mnist_jax.config import Execution, ModelConfig
from lstm_mnist_jax.sweeps import Space, sweep

LONG = dataclasses.replace(TINY, epochs=16, model=ModelConfig(hidden_features=(3,)))  # of ONE_LAYER


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=[needs_two_devices, pytest.mark.slow])])
def test_the_number_of_steps_a_call_changes_no_bit(tiny_dataset, devices):
    whole = train(tiny_dataset, 50, devices=devices)
    assert_same(whole, train(tiny_dataset, 1, 15, 1, 16, 17, 0, devices=devices))
    assert_same(whole, train(tiny_dataset, *[5] * 10, devices=devices))


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of LONG, never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    lstm_mnist_jax.train(LONG, folder)
    return folder


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_is_the_same_run(whole, tmp_path):
    """Kills while steps are made and checkpoints written, until two resumed runs were killed too."""
    options = ["train", *ONE_LAYER, "--epochs", LONG.epochs, "--checkpoint-minutes", 1e-6]
    moments = random.Random(0)
    run_dir, resumed_at = tmp_path / "killed", []
    while len(resumed_at) < 2:
        program = Program(["train", "--resume", run_dir] if run_dir.exists() else [*options, "--run-dir", run_dir])
        ready, epochs = False, moments.randint(0, 1)  # it is killed after so many, within the next
        for line in program.stdout:
            if line.startswith("resumed at step"):
                resumed_at.append(int(line.split()[3].rstrip(":").replace(",", "")))
            ready = ready or "ready in" in line
            epochs -= line.startswith("epoch")
            if ready and epochs <= 0:
                break
        time.sleep(moments.uniform(0, 0.15))
        assert program.poll() is None, f"over before it was killed, having resumed at {resumed_at}"
        program.kill()
        program.communicate()
    assert resumed_at == sorted(resumed_at)
    assert lstm_mnist_jax.train(LONG, run_dir, resume=True).trained
    assert outcome(run_dir) == outcome(whole)
    damage_the_newest_checkpoint(run_dir / "checkpoints")
    assert lstm_mnist_jax.train(LONG, run_dir, resume=True).trained
    assert outcome(run_dir) == outcome(whole)


@pytest.mark.slow
def test_a_sweep_stopped_and_with_a_damaged_checkpoint_is_resumed_to_the_same(tmp_path, stop_at, empty_figures):
    config, space = dataclasses.replace(LONG, epochs=1), Space(seeds=2)
    sweep(config, space, tmp_path / "whole")
    expected = [outcome(tmp_path / "whole" / member) for member in "01"]
    for step in (4, 9, None):
        stop_at(step)
        assert sweep(config, space, tmp_path / "parts", resume=step != 4).stopped_by == (step and signal.SIGTERM)
    assert [outcome(tmp_path / "parts" / member) for member in "01"] == expected
    damage_the_newest_checkpoint(tmp_path / "parts" / "checkpoints" / "0")
    assert sweep(config, space, tmp_path / "parts", resume=True).trained
    assert [outcome(tmp_path / "parts" / member) for member in "01"] == expected


@pytest.mark.slow
def test_a_whole_run_streams_and_resumes(whole, tmp_path):
    execution = Execution(device_data_limit=100_000 / 2**30)
    lstm_mnist_jax.train(dataclasses.replace(LONG, epochs=1), tmp_path / "streamed", execution=execution)
    lstm_mnist_jax.train(LONG, tmp_path / "streamed", resume=True, execution=execution)
    expected, found = (load_run(path, "last") for path in (whole, tmp_path / "streamed"))
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_array_equal(a, b)
    whole, pieces = expected.evaluate(), found.evaluate(execution)
    for name, evaluation in whole.items():
        np.testing.assert_array_equal(pieces[name].correct, evaluation.correct)
        np.testing.assert_array_equal(pieces[name].count, evaluation.count)
        np.testing.assert_allclose(pieces[name].loss, evaluation.loss, rtol=1e-5)
