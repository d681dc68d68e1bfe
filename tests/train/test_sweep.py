"""Sweeps: each member is the run that it would be alone, whatever interrupts it; results, pictures, members by path."""

import csv
import dataclasses
import json
import math
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from runs import DIVERGING, TINY

from lstm_mnist_jax import load_run, sweeps, train
from lstm_mnist_jax.config import AugmentationConfig, Execution, ModelConfig, OptimizerConfig
from lstm_mnist_jax.config.space import Interval
from lstm_mnist_jax.data import load
from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.statistics import mean_of
from lstm_mnist_jax.sweeps import Space, space_of, sweep
from lstm_mnist_jax.training import TrainingProgram, checkpoint, make_program
from lstm_mnist_jax.training.mesh import make_mesh
from lstm_mnist_jax.training.metrics import MetricsWriter, read_metrics
from lstm_mnist_jax.training.run_folder import Member, lock, read_run_folder, write_config

THREE_SEEDS = Space(seeds=3)
ONE_DEVICE = Execution(devices=1)
TWO_NETWORKS = [(3,), (4, 6)]
ONE_LAYER = dataclasses.replace(TINY, model=ModelConfig(hidden_features=(3,)))
# A group of three or four members is one program on two devices, whatever its optimizer's numbers: most sweeps here
# have as many, so that two networks are compiled for all of them.


def outcome(run_dir):
    """All that a sweep leaves and that must not depend on interruptions."""
    folder = read_run_folder(run_dir)
    lines = [dataclasses.replace(line, seconds=0.0, examples_per_second=0.0) for line in read_metrics(folder.metrics)]
    saved = [checkpoint.newest_sound_step(folder.checkpoints_of(group)) for group in range(len(folder.groups))]
    runs = []
    for member in range(len(folder.members)):
        for name in ("last", "best"):
            run = load_run(run_dir / str(member), name)
            runs.append((run.step, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(run.params)]))
    return folder.members, folder.groups, lines, saved, runs


def untimed(members):
    """Results of members without what depends on the clock."""

    def without(metrics):
        return metrics and dataclasses.replace(metrics, seconds=0.0, examples_per_second=0.0)

    return [dataclasses.replace(m, best=without(m.best), history=tuple(map(without, m.history))) for m in members]


def result_of(folder, space, path):
    """The result of a sweep that is complete, in a copy of its folder."""
    found = sweep(TINY, space, shutil.copytree(folder, path), resume=True)
    assert not found.trained
    return found


@pytest.fixture
def signal_after_each_epoch(monkeypatch):
    """Once called, the sweeps of this test get SIGTERM whenever metrics have been written."""
    write = MetricsWriter.write

    def write_and_signal(self, metrics):
        write(self, metrics)
        os.kill(os.getpid(), signal.SIGTERM)

    return lambda: monkeypatch.setattr(MetricsWriter, "write", write_and_signal)


@pytest.fixture(scope="module")
def three_seeds(tiny_sweep, tmp_path_factory):
    return result_of(tiny_sweep, THREE_SEEDS, tmp_path_factory.mktemp("sweeps") / "seeds")


@pytest.fixture(scope="module")
def three_seeds_of_one_layer(tmp_path_factory):
    return sweep(ONE_LAYER, THREE_SEEDS, tmp_path_factory.mktemp("sweeps") / "seeds")


@pytest.mark.slow
def test_every_seed_is_the_run_that_it_would_be_alone(three_seeds, tmp_path):
    assert [(member.seed, member.epochs, member.diverged) for member in three_seeds.members] == [
        (0, 3, False),
        (1, 3, False),
        (2, 3, False),
    ]
    for member in three_seeds.members:
        config = dataclasses.replace(TINY, seed=member.seed)
        alone = train(config, tmp_path / f"alone-{member.seed}", execution=ONE_DEVICE)
        path = three_seeds.run_dir / str(member.member)
        assert load_run(path).folder.config == config
        lines = read_metrics(three_seeds.run_dir / "metrics.jsonl", member.member)
        for found, expected in zip(lines, alone.epochs, strict=True):
            other = {"member": 0, "seconds": 0, "examples_per_second": 0}
            values = (dataclasses.asdict(m) | other for m in (found, expected))
            assert next(values) == pytest.approx(next(values), rel=1e-4)
        history = load_run(path).history()
        assert history["test_accuracy"].tolist() == [metrics.test_accuracy for metrics in lines]
        assert load_run(path).step == alone.best_step
        assert member.best_epoch == alone.best.epoch
        assert member.best.test_accuracy == pytest.approx(alone.best.test_accuracy)
        for name in ("best", "last"):
            runs = load_run(path, name), load_run(alone.run_dir, name)
            for a, b in zip(*(jax.tree.leaves(run.params) for run in runs), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_member_is_resumed_as_the_run_would_have_been(tiny_sweep, tmp_path):
    folder = shutil.copytree(tiny_sweep, tmp_path / "sweep")
    longer = dataclasses.replace(TINY, seed=1, epochs=4)
    with pytest.raises(ConfigError, match="batch_size is 64 in the run, 32 was asked for"):
        train(dataclasses.replace(longer, batch_size=32), folder / "1", resume=True)
    with pytest.raises(ConfigError, match=r"1 is complete after 3 epochs. Ask for more with --epochs"):
        train(dataclasses.replace(TINY, seed=1), folder / "1", resume=True)
    with pytest.raises(ConfigError, match=r"epochs is 2, but .*1 was trained for 3 already"):
        train(dataclasses.replace(TINY, seed=1, epochs=2), folder / "1", resume=True)
    assert not (folder / "1").exists()
    found = train(longer, folder / "1", resume=True, execution=ONE_DEVICE)
    expected = train(longer, tmp_path / "alone", execution=ONE_DEVICE)
    assert [metrics.epoch for metrics in found.epochs] == [1, 2, 3, 4]
    assert found.epochs[-1].validation_loss == pytest.approx(expected.epochs[-1].validation_loss, rel=1e-4)
    # Now it is a run of its own, and the sweep is as it was.
    assert load_run(folder / "1").folder.config == longer
    assert load_run(folder / "2").folder.config.epochs == 3
    assert not train(longer, folder / "1", resume=True, execution=ONE_DEVICE).trained
    assert not sweep(TINY, THREE_SEEDS, folder, resume=True).trained


@pytest.mark.slow
def test_two_processes_that_resume_one_run_of_a_sweep_make_one_folder(tiny_sweep, tmp_path, monkeypatch):
    run_dir = shutil.copytree(tiny_sweep, tmp_path / "sweep") / "1"
    longer = dataclasses.replace(TINY, seed=1, epochs=4)
    results = []

    def lock_after_another_process(path):
        monkeypatch.undo()
        results.append(train(longer, run_dir, resume=True, execution=ONE_DEVICE))
        return lock(path)

    monkeypatch.setattr("lstm_mnist_jax.training.new_run.lock", lock_after_another_process)
    results.append(train(longer, run_dir, resume=True, execution=ONE_DEVICE))
    assert [result.trained for result in results] == [True, False]
    assert results[1].epochs == results[0].epochs == read_metrics(run_dir / "metrics.jsonl")


def test_metrics_of_each_member_and_their_mean_with_its_confidence_interval(three_seeds):
    lines = [json.loads(line) for line in (three_seeds.run_dir / "metrics.jsonl").read_text().splitlines()]
    found = [(line["member"], line["epoch"], line["step"]) for line in lines]
    assert found == [(member, epoch, 15 * epoch) for epoch in (1, 2, 3) for member in (0, 1, 2)]
    accuracies = [lines[3 * (member.best_epoch - 1) + member.member]["test_accuracy"] for member in three_seeds.members]
    (setting,) = three_seeds.settings
    assert setting.test.mean == pytest.approx(np.mean(accuracies))
    # Student's t with two degrees of freedom: 4.303 standard errors.
    half_width = 4.30265 * np.std(accuracies, ddof=1) / math.sqrt(3)
    assert setting.test.half_width == pytest.approx(half_width, rel=1e-4)
    assert setting.test.count == 3


def test_the_interval_of_a_mean():
    assert mean_of([1.0, 2.0, 3.0, 4.0]).half_width == pytest.approx(2.0540, rel=1e-3)  # 3.18245 * 1.29099 / 2
    assert math.isnan(mean_of([1.0]).half_width)
    assert math.isnan(mean_of([]).mean)


@pytest.mark.slow
def test_stopped_by_signals_and_resumed_it_is_the_same_sweep(three_seeds, tmp_path, monkeypatch):
    stops = (7, 15, 44)  # within an epoch, at the end of one, before the last step
    run_steps = TrainingProgram.run_steps

    def run_to_the_next_stop(self, state, n):
        step = int(state.step[0])
        stop = next(stop for stop in stops if stop > step)
        if step + n >= stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_steps(self, state, min(n, stop - step))

    monkeypatch.setattr(TrainingProgram, "run_steps", run_to_the_next_stop)
    for stop in stops:
        stopped = sweep(TINY, THREE_SEEDS, tmp_path / "stopped", resume=stop > stops[0])
        assert stopped.stopped_by == signal.SIGTERM
        assert checkpoint.finished_steps(tmp_path / "stopped" / "checkpoints" / "0")[-1] == stop
    monkeypatch.undo()
    resumed = sweep(TINY, THREE_SEEDS, tmp_path / "stopped", resume=True)
    assert resumed.trained
    assert untimed(resumed.members) == untimed(three_seeds.members)
    assert outcome(tmp_path / "stopped") == outcome(three_seeds.run_dir)


@pytest.mark.slow
def test_resumed_on_other_devices_it_is_the_same_to_rounding(three_seeds_of_one_layer, tmp_path):
    sweep(dataclasses.replace(ONE_LAYER, epochs=1), THREE_SEEDS, tmp_path / "other", execution=ONE_DEVICE)
    found = sweep(ONE_LAYER, THREE_SEEDS, tmp_path / "other", resume=True)
    for a, b in zip(found.members, three_seeds_of_one_layer.members, strict=True):
        assert a.last.validation_loss == pytest.approx(b.last.validation_loss, rel=1e-4)


@pytest.mark.slow
def test_fewer_members_than_devices_share_them(tiny_run, tmp_path):
    found = sweep(TINY, Space(seeds=1), tmp_path / "one").members[0]
    expected = read_metrics(tiny_run / "metrics.jsonl")  # on all devices, too
    assert found.last.validation_loss == pytest.approx(expected[-1].validation_loss, rel=1e-4)


@pytest.mark.slow
def test_a_split_that_does_not_fit_is_evaluated_in_pieces(tiny_sweep, tmp_path):
    limited = Execution(device_data_limit=800_000 / 2**30)  # the 1,000 training images fit, the 10,000 of the test not
    found = sweep(dataclasses.replace(TINY, epochs=1), THREE_SEEDS, tmp_path / "run", execution=limited)
    first = [metrics for metrics in read_metrics(tiny_sweep / "metrics.jsonl") if metrics.epoch == 1]
    assert [member.last.test_accuracy for member in found.members] == [metrics.test_accuracy for metrics in first]


@pytest.mark.slow
def test_a_grid_runs_in_groups_of_one_shape_and_ranks_by_validation(tmp_path):
    space = space_of({"learning_rate": [0.001, 0.05], "hidden_features": TWO_NETWORKS, "b1": [0.8]}, seeds=2)
    result = sweep(TINY, space, tmp_path / "grid")
    folder = read_run_folder(result.run_dir)
    assert folder.groups == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert [m.setting for m in folder.members[::2]] == [
        {"learning_rate": rate, "hidden_features": features, "b1": 0.8}
        for rate in (0.001, 0.05)
        for features in TWO_NETWORKS
    ]
    config = folder.member_config(7)
    assert (config.seed, config.model.hidden_features) == (1, (4, 6))
    assert config.optimizer == OptimizerConfig(learning_rate=0.05, b1=0.8)
    accuracies = [setting.validation.mean for setting in result.settings]
    assert accuracies == sorted(accuracies, reverse=True)
    best = max(result.members, key=lambda member: member.best.validation_accuracy)
    assert result.members[result.best].best.validation_accuracy == best.best.validation_accuracy
    alone = train(config, tmp_path / "alone", execution=ONE_DEVICE)
    assert result.members[7].last.validation_loss == pytest.approx(alone.epochs[-1].validation_loss, rel=1e-4)
    with (result.run_dir / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert rows[7]["learning_rate"] == "0.05"
    assert rows[7]["hidden_features"] == "4,6"
    assert float(rows[7]["test_accuracy"]) == result.members[7].best.test_accuracy
    for name in ("results.png", "results-curves.png"):
        assert (result.run_dir / name).read_bytes().startswith(b"\x89PNG")
    assert not sweep(TINY, space, result.run_dir, resume=True).trained


def test_a_member_that_diverges_is_marked_and_the_others_go_on(three_seeds, diverging_sweep, tmp_path):
    result = result_of(diverging_sweep, read_run_folder(diverging_sweep).space, tmp_path / "run")
    assert [member.diverged for member in result.members] == [False, False, True, True]
    assert [setting.diverged for setting in result.settings] == [0, 2]
    assert result.best in (0, 1)
    undisturbed = three_seeds.members[:2]
    assert [m.last.test_accuracy for m in result.members[:2]] == [m.last.test_accuracy for m in undisturbed]
    lines = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_loss"] is None for line in lines] == 3 * [False, False, True, True]
    diverged = dataclasses.replace(read_run_folder(result.run_dir / "2").config, epochs=4)
    with pytest.raises(RunError, match=r"Run .*2 diverged at step 1, before its first epoch was complete"):
        train(diverged, result.run_dir / "2", resume=True)
    assert not (result.run_dir / "2").exists()


@pytest.mark.slow
@pytest.mark.parametrize("chunk_seconds", [1.0, 1e-9])
def test_where_all_diverge_the_group_ends_early(tmp_path, monkeypatch, chunk_seconds):
    monkeypatch.setattr("lstm_mnist_jax.training.loop.CHUNK_SECONDS", chunk_seconds)
    space = space_of({"learning_rate": [DIVERGING], "hidden_features": TWO_NETWORKS}, seeds=3)
    result = sweep(TINY, space, tmp_path / "run")
    assert all(member.diverged and member.epochs == 0 for member in result.members)
    assert result.best is None
    assert not sweep(TINY, space, tmp_path / "run", resume=True).trained
    with pytest.raises(RunError, match=r"No run of .* was evaluated yet"):
        load_run(result.run_dir / "best")


@pytest.fixture(scope="module")
def programs_on_one_device():
    """Of one, two and three members."""
    dataset = load(**vars(ONE_LAYER.data))
    programs = []
    for members in (1, 2, 3):
        configs = [dataclasses.replace(ONE_LAYER, seed=seed) for seed in range(members)]
        mesh = make_mesh(ONE_DEVICE, ONE_LAYER.batch_size, members)
        programs.append(make_program(configs, dataset, mesh).compile())
    return programs


@pytest.mark.slow
def test_the_estimate_of_memory_holds_the_states_and_the_programs(programs_on_one_device):
    estimates = [program.device_bytes() for program in programs_on_one_device]
    states = programs_on_one_device[-1].init()._replace(key=())
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(states)) / 3
    assert estimates[2] - estimates[1] == pytest.approx(estimates[1] - estimates[0], rel=0.2)
    assert 4 * state <= estimates[1] - estimates[0] < 6 * state  # four of each member, one after another on a CPU


@pytest.mark.slow
def test_what_does_not_fit_into_memory_is_trained_in_parts(three_seeds_of_one_layer, programs_on_one_device, tmp_path):
    one, two = (program.device_bytes() for program in programs_on_one_device[:2])
    limit = (two + (two - one) / 2) / 2**30
    execution = Execution(devices=1, memory_limit=limit)
    result = sweep(ONE_LAYER, THREE_SEEDS, tmp_path / "parts", execution=execution)
    assert read_run_folder(result.run_dir).groups == ((0, 1), (2,))
    for a, b in zip(result.members, three_seeds_of_one_layer.members, strict=True):
        assert a.last.validation_loss == pytest.approx(b.last.validation_loss, rel=1e-4)
    with pytest.raises(ConfigError, match=r"1 run at once would take [\d.]+ MiB of each device's memory"):
        sweep(ONE_LAYER, THREE_SEEDS, tmp_path / "none", execution=Execution(devices=1, memory_limit=one / 2**31))


def test_data_that_stream_cannot_train_several_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"device_data_limit is 1e-05 GiB. Raise it with --device-data-limit"):
        sweep(TINY, Space(seeds=2), tmp_path / "run", execution=Execution(device_data_limit=1e-5))


def test_draws_are_within_their_intervals_and_the_same_again():
    space = space_of({"learning_rate": "loguniform:1e-4:1e-1", "b1": "uniform:0.5:0.95"}, samples=200)
    settings = space.settings(3)
    assert settings == space.settings(3) != space.settings(4)
    rates = np.log10([setting["learning_rate"] for setting in settings])
    assert -4 <= rates.min() < -3.8
    assert -1.2 < rates.max() <= -1
    assert np.mean(rates) == pytest.approx(-2.5, abs=0.2)
    assert np.mean([setting["b1"] for setting in settings]) == pytest.approx(0.725, abs=0.03)
    combined = space_of({"learning_rate": "uniform:0.1:0.2", "b1": [0.8, 0.9]}, samples=3).settings(0)
    assert len(combined) == 6
    assert [list(setting) for setting in combined] == [["learning_rate", "b1"]] * 6
    narrow = space_of({"b2": "uniform:0.9999:0.99999"}, samples=100).settings(0)
    values = {setting["b2"] for setting in narrow}
    assert len(values) > 90
    assert min(values) >= 0.9999
    assert max(values) <= 0.99999
    assert space.axes()["learning_rate"] == Interval(1e-4, 0.1, True)


@pytest.mark.parametrize(
    ("axes", "options", "message"),
    [
        ({"speed": [1]}, {}, "speed cannot be swept; expected one of learning_rate, b1"),
        ({"seed": [1]}, {}, "seed cannot be swept"),
        ({"learing_rate": [1]}, {}, "label_smoothing; did you mean learning_rate?"),
        ({"learning_rate": 0.1}, {}, "learning_rate is 0.1, expected a list of values, or an interval as text"),
        ({"learning_rate": []}, {}, "learning_rate has no value to try"),
        ({"learning_rate": ["fast"]}, {}, "learning_rate is 'fast', expected a number"),
        ({"learning_rate": [0.1, -1]}, {}, "learning_rate is -1.0, expected a number above 0"),
        ({"learning_rate": [0.1, 0.1]}, {}, "learning_rate names a value twice"),
        ({"hidden_features": ["32x64"]}, {}, "hidden_features is '32x64', expected integers with commas between"),
        ({"batch_size": ["1.5"]}, {}, "batch_size is '1.5', expected an integer"),
        (
            {"learning_rate": "uniform:1:2:3"},
            {"samples": 2},
            "expected values, uniform:LOW:HIGH or loguniform:LOW:HIGH",
        ),
        ({"learning_rate": "normal:1:2"}, {"samples": 2}, "expected values, uniform:LOW:HIGH or loguniform:LOW:HIGH"),
        ({"learning_rate": "uniform:2:1"}, {"samples": 2}, "expected LOW < HIGH"),
        ({"learning_rate": "loguniform:0:1"}, {"samples": 2}, "expected LOW < HIGH, both above 0"),
        ({"b1": "uniform:0:1"}, {"samples": 2}, "b1 is 1.0, expected at least 0 and below 1"),
        ({"learning_rate": "uniform:0.1:nan"}, {"samples": 2}, "learning_rate is nan, expected a finite number"),
        ({"batch_size": "uniform:1:9"}, {"samples": 2}, "an interval is for numbers with decimals: list its values"),
        ({"learning_rate": "uniform:0.1:1"}, {}, "set samples, the number of settings to draw"),
        ({"learning_rate": ["uniform:0.1:1", "3"]}, {"samples": 2}, "expected values, or one interval"),
        ({"learning_rate": [0.1]}, {"samples": 2}, "samples is for intervals"),
        ({"learning_rate": [0.1]}, {"seeds": 0}, "seeds is 0, expected 1 or more"),
        ({"learning_rate": "uniform:0.1:1"}, {"samples": 0}, "samples is 0, expected 1 or more"),
        ({}, {"optuna": True, "samples": 3}, "Optuna needs something to vary"),
    ],
)
def test_impossible_spaces_are_refused(axes, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        space_of(axes, **options)


def test_impossible_members_are_refused_before_training(tmp_path):
    for axes, message in (
        ({"batch_size": [50, 1001]}, "batch_size is 1,001, but there are only 1,000"),
        ({"sequence_length": [28, 27]}, "sequence_length is 27, but an image of 28 x 28 has 784 pixels"),
    ):
        with pytest.raises(ConfigError, match=message):
            sweep(TINY, space_of(axes), tmp_path / "run")
        assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_optuna_goes_on_as_if_it_had_not_been_interrupted(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr("lstm_mnist_jax.sweeps.ROUND", 2)
    axes = {"learning_rate": "loguniform:1e-3:1e-1", "hidden_features": TWO_NETWORKS}
    space = space_of(axes, samples=3, seeds=3, optuna=True)
    config = dataclasses.replace(TINY, epochs=1)
    whole = sweep(config, space, tmp_path / "whole")
    assert len(whole.settings) == 3
    assert len(read_run_folder(whole.run_dir).groups) == 3
    run_steps, begun = TrainingProgram.run_steps, []

    def run_and_stop(self, state, n):
        if int(state.step[0]) == 0:
            begun.append(self)
            if len(begun) > 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return run_steps(self, state, n)

    monkeypatch.setattr(TrainingProgram, "run_steps", run_and_stop)
    for groups in (2, 3):  # in the midst of the first round, and at the start of the second
        stopped = sweep(config, space, tmp_path / "parts", resume=groups > 2)
        assert stopped.stopped_by == signal.SIGTERM
        assert len(begun) == groups
    resumed = sweep(config, space, tmp_path / "parts", resume=True)
    assert untimed(resumed.members) == untimed(whole.members)


@pytest.mark.slow
def test_a_longer_sweep_keeps_what_is_known_of_every_group(tmp_path):
    space = space_of({"batch_size": [64, 32]})  # the second group's steps have higher numbers
    sweep(dataclasses.replace(TINY, epochs=1), space, tmp_path / "run")
    known = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(known) == 2
    seen = []
    longer = dataclasses.replace(TINY, epochs=2)
    result = sweep(longer, space, tmp_path / "run", resume=True, on_epoch=lambda *words: seen.append(words))
    assert [member.epochs for member in result.members] == [2, 2]
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert seen == [(line, tmp_path / "run" / str(line.member)) for line in lines if line.epoch == 2]
    assert set(known) < set((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_a_signal_at_the_end_of_a_group_ends_the_sweep_and_at_the_end_of_all_does_not(
    tmp_path, signal_after_each_epoch
):
    space = space_of({"hidden_features": TWO_NETWORKS}, seeds=3)
    config = dataclasses.replace(TINY, epochs=1)
    signal_after_each_epoch()
    stopped = sweep(config, space, tmp_path / "run")
    assert stopped.stopped_by == signal.SIGTERM
    assert [member.epochs for member in stopped.members] == [1, 1, 1, 0, 0, 0]
    resumed = sweep(config, space, tmp_path / "run", resume=True)
    assert resumed.stopped_by is None
    assert [member.epochs for member in resumed.members] == [1] * 6


@pytest.mark.slow
def test_optuna_ends_when_all_listed_settings_were_tried(tmp_path):
    pytest.importorskip("optuna")
    config = dataclasses.replace(TINY, epochs=1)
    space = space_of({"learning_rate": [0.003, 0.01, 0.03]}, samples=7, optuna=True)
    result = sweep(config, space, tmp_path / "run")
    assert sorted(member.setting["learning_rate"] for member in result.members) == [0.003, 0.01, 0.03]


@pytest.mark.slow
def test_a_folder_that_another_process_takes_meanwhile_is_refused(tmp_path, monkeypatch):
    fit = sweeps.fit

    def fit_while_another_begins(*arguments, **options):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.json").write_text("{}")
        return fit(*arguments, **options)

    monkeypatch.setattr(sweeps, "fit", fit_while_another_begins)
    with pytest.raises(RunError, match="already holds a run"):
        sweep(TINY, THREE_SEEDS, tmp_path / "run")


def test_members_have_paths(three_seeds):
    best = load_run(three_seeds.run_dir / "best").folder
    assert (best.member, best.path) == (three_seeds.best, three_seeds.run_dir / str(three_seeds.best))
    accuracies = {m.member: m.best.validation_accuracy for m in three_seeds.members}
    assert accuracies[best.member] == max(accuracies.values())
    with pytest.raises(RunError, match="has no run 3, expected 0 to 2"):
        load_run(three_seeds.run_dir / "3")
    with pytest.raises(RunError, match=r"worst is not a run folder: there is no such folder"):
        load_run(three_seeds.run_dir / "worst")
    with pytest.raises(RunError, match=r"1.5 is not a run folder: there is no such folder"):
        load_run(three_seeds.run_dir / "1.5")


def test_a_sweep_is_refused_as_a_run_and_a_run_as_a_sweep(three_seeds, tiny_run, tmp_path):
    with pytest.raises(RunError, match=r"is a sweep of 3 runs. Name one of them: .*best .*, or .*0 to .*2, as results"):
        load_run(three_seeds.run_dir)
    with pytest.raises(RunError, match=r"is a sweep of 3 runs"):
        train(TINY, three_seeds.run_dir, resume=True)
    with pytest.raises(RunError, match=r"is a single run, not a sweep. Continue with: lstm-mnist train --resume"):
        sweep(TINY, THREE_SEEDS, tiny_run, resume=True)
    with pytest.raises(RunError, match=r"has no config.json"):
        read_run_folder(tmp_path)
    (tmp_path / "population.json").write_text("{}")
    with pytest.raises(RunError, match=r"is a sweep of version 0.4 or older .*Use lstm-mnist-jax 0.4.0 with it"):
        read_run_folder(tmp_path)
    with pytest.raises(RunError, match="already holds a run"):
        sweep(TINY, THREE_SEEDS, tmp_path)
    with pytest.raises(RunError, match="already holds a run"):
        train(TINY, three_seeds.run_dir)
    with pytest.raises(RunError, match="already holds a run"):
        sweep(TINY, THREE_SEEDS, three_seeds.run_dir)
    with pytest.raises(ConfigError, match="A resumed run keeps its config, but batch_size is 64 in the run, 32"):
        sweep(dataclasses.replace(TINY, batch_size=32), THREE_SEEDS, three_seeds.run_dir, resume=True)
    with pytest.raises(ConfigError, match=r"epochs is 2, but .* was trained for 3 already"):
        sweep(dataclasses.replace(TINY, epochs=2), THREE_SEEDS, three_seeds.run_dir, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda contents: contents | {"format": 9}, "is a run folder of format 9"),
        (lambda contents: contents | {"members": [{"seed": "x"}]}, "damaged or of another version"),
        (lambda contents: contents | {"members": [{}]}, "damaged or of another version"),
        (lambda contents: contents | {"space": {}}, "damaged or of another version"),
        (lambda contents: {}, "is damaged: KeyError"),
        (lambda contents: [], "is damaged: TypeError"),
    ],
)
def test_a_damaged_sweep_is_refused(three_seeds, tmp_path, change, message):
    contents = json.loads((three_seeds.run_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(change(contents)))
    with pytest.raises(RunError, match=message):
        read_run_folder(tmp_path)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(three_seeds, tmp_path):
    run_dir = shutil.copytree(three_seeds.run_dir, tmp_path / "run")
    newest = checkpoint.checkpoint_path(run_dir / "checkpoints" / "0", 45)
    (newest / "record.json").write_text("{}")
    found = sweep(TINY, THREE_SEEDS, run_dir, resume=True)
    assert found.trained
    assert untimed(found.members) == untimed(three_seeds.members)


@pytest.mark.slow
def test_members_stop_early_as_they_would_alone(tmp_path):
    config = dataclasses.replace(TINY, seed=1, epochs=8, early_stopping_patience=1)
    result = sweep(config, THREE_SEEDS, tmp_path / "seeds")
    ends = {}
    for member in result.members:
        seed = dataclasses.replace(config, seed=member.seed)
        alone = train(seed, tmp_path / f"alone-{member.seed}", execution=ONE_DEVICE)  # as a member has
        assert (member.epochs, member.best_epoch) == (len(alone.epochs), alone.best.epoch)
        ends[member.member] = member.epochs
        assert load_run(tmp_path / "seeds" / str(member.member)).step == alone.best_step
    assert len(set(ends.values())) > 1  # or nothing was shown
    longest = max(ends.values())
    assert read_metrics(tmp_path / "seeds" / "metrics.jsonl")[-1].epoch == longest
    _, first = sorted((end, member) for member, end in ends.items())[0]
    # What stopped early goes on from its best epoch.
    best = result.members[first].best_epoch
    folder = shutil.copytree(tmp_path / "seeds", tmp_path / "copy")
    patient = dataclasses.replace(read_run_folder(folder / str(first)).config, early_stopping_patience=None)
    resumed = train(patient, folder / str(first), resume=True, execution=ONE_DEVICE)
    assert [metrics.epoch for metrics in resumed.epochs] == list(range(1, 9))
    assert [m.validation_loss for m in resumed.epochs[:best]] == [
        m.validation_loss for m in read_metrics(tmp_path / "seeds" / "metrics.jsonl", first)[:best]
    ]
    assert not sweep(config, THREE_SEEDS, tmp_path / "seeds", resume=True).trained
    patient = dataclasses.replace(config, early_stopping_patience=5)
    with pytest.raises(ConfigError, match=r"early_stopping_patience is 1 in the sweep, 5 was asked"):
        sweep(patient, THREE_SEEDS, tmp_path / "seeds", resume=True)


@pytest.mark.slow
def test_networks_optimizers_and_data_augmentation_are_swept_in_groups(tmp_path, signal_after_each_epoch):
    axes = {"cell": ["lstm", "gru"], "clip_norm": [1.0, None], "bidirectional": [False, True], "shift_pixels": [0.5]}
    config = dataclasses.replace(ONE_LAYER, epochs=1)
    # Of the eight groups the first is trained: what it adds to other sweeps here compiles soonest.
    signal_after_each_epoch()
    result = sweep(config, space_of(axes), tmp_path / "grid")
    assert [member.epochs for member in result.members] == [1, *[0] * 7]
    assert not result.members[0].diverged
    folder = read_run_folder(tmp_path / "grid")
    assert folder.groups == tuple((n,) for n in range(8))
    assert [folder.member_config(n) for n in range(8)] == [
        dataclasses.replace(
            folder.config,
            model=dataclasses.replace(config.model, cell=cell, bidirectional=both),
            optimizer=OptimizerConfig(clip_norm=clip_norm),
            augmentation=AugmentationConfig(shift_pixels=0.5),
        )
        for cell in ("lstm", "gru")
        for clip_norm in (1.0, None)
        for both in (False, True)
    ]


def test_the_order_of_the_pixels_is_kept_where_all_members_have_it(three_seeds, tmp_path):
    folder = read_run_folder(three_seeds.run_dir)
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, task="permuted"))
    for name, axes in (("one", {}), ("two", {"permutation_seed": [0, 1]}), ("mixed", {"task": ["rows", "permuted"]})):
        (tmp_path / name).mkdir()
        write_config(dataclasses.replace(folder, path=tmp_path / name, config=config, space=space_of(axes, seeds=3)))
        assert (tmp_path / name / "permutation.json").exists() == (name == "one")


def test_runs_with_a_learning_rate_schedule_cannot_be_extended(tiny_run, tiny_sweep, tmp_path):
    falling = OptimizerConfig(schedule="cosine")
    run = read_run_folder(shutil.copytree(tiny_run, tmp_path / "run"))
    write_config(dataclasses.replace(run, config=dataclasses.replace(run.config, optimizer=falling)))
    seeds = read_run_folder(shutil.copytree(tiny_sweep, tmp_path / "seeds"))
    write_config(dataclasses.replace(seeds, config=dataclasses.replace(seeds.config, optimizer=falling)))
    # A sweep whose config has no schedule, but one of its members.
    either = space_of({"schedule": ["constant", "cosine"]})
    members = tuple(Member(0, setting) for setting in either.settings(0))
    path = shutil.copytree(tiny_sweep, tmp_path / "either")
    write_config(dataclasses.replace(seeds, path=path, space=either, members=members, groups=((0,), (1,))))
    longer = dataclasses.replace(TINY, epochs=4)
    falling_longer = dataclasses.replace(longer, optimizer=falling)
    for go_on in (lambda: sweep(falling_longer, THREE_SEEDS, tmp_path / "seeds", resume=True),
                  lambda: sweep(longer, either, tmp_path / "either", resume=True),
                  lambda: train(falling_longer, tmp_path / "run", resume=True)):  # fmt: skip
        with pytest.raises(ConfigError, match=r"epochs is 3 in the run, 4 was asked for. Its learning-rate schedule"):
            go_on()
