"""What changes no bit: how many steps a call makes, calls without waiting, compiling ahead, a second run, streamed
data, kills, sweeps stopped by signals, damaged checkpoints."""

import dataclasses
import random
import signal
import time

import jax
import numpy as np
import pytest
from programs import Program
from runs import TINY, TINY_OPTIONS, damage_the_newest_checkpoint, metrics_of, outcome
from step_programs import CONFIG, needs_two_devices, program_of, run, train

import lstm_mnist_jax
from lstm_mnist_jax import load_run
from lstm_mnist_jax.config import Execution, ModelConfig
from lstm_mnist_jax.sweeps import Space, sweep
from lstm_mnist_jax.training import checkpoint
from lstm_mnist_jax.training.results import member_results
from lstm_mnist_jax.training.run_folder import read_run_folder

LONG = dataclasses.replace(TINY, epochs=16)


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
    options = ["train", *TINY_OPTIONS, "--epochs", LONG.epochs, "--checkpoint-minutes", 1e-6]
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


def outcomes(run_dir):
    """All that a sweep leaves and that must not depend on interruptions."""
    folder = read_run_folder(run_dir)
    saved = [checkpoint.newest_sound_step(folder.checkpoints_of(group)) for group in range(len(folder.groups))]
    runs = [outcome(run_dir / str(member)) for member in range(len(folder.members))]
    return folder.members, folder.groups, metrics_of(run_dir), saved, runs


@pytest.mark.slow
def test_a_sweep_stopped_by_signals_and_with_a_damaged_checkpoint_is_resumed_to_the_same(
    tmp_path, stop_at, empty_figures
):
    config = dataclasses.replace(LONG, epochs=3, model=ModelConfig(hidden_features=(3,)))
    whole, parts, space = tmp_path / "whole", tmp_path / "parts", Space(seeds=2)
    assert sweep(config, space, whole).trained
    for step in (7, 15, 44, None):  # within an epoch, at the end of one, before the last step
        stop_at(step)
        found = sweep(config, space, parts, resume=step != 7)
        assert found.trained
        assert found.stopped_by == (step and signal.SIGTERM)
        assert checkpoint.finished_steps(parts / "checkpoints" / "0")[-1] == (step or 45)
    assert found.members == member_results(read_run_folder(parts))
    expected = outcomes(whole)
    assert outcomes(parts) == expected
    damage_the_newest_checkpoint(parts / "checkpoints" / "0")  # it is set aside, and the one before is used
    assert sweep(config, space, parts, resume=True).trained
    assert outcomes(parts) == expected


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
