"""Sweeps: each member is the run that it would be alone; groups, divergence, memory, results."""

import csv
import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
from runs import DIVERGING, TINY, TWO_NETWORKS, stop_after_group

from lstm_mnist_jax import load_run, sweeps, train
from lstm_mnist_jax.config import AugmentationConfig, Execution, ModelConfig, OptimizerConfig
from lstm_mnist_jax.data import load
from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.statistics import mean_of, percent
from lstm_mnist_jax.sweeps import Space, space_of, sweep
from lstm_mnist_jax.training import make_program
from lstm_mnist_jax.training.mesh import make_mesh
from lstm_mnist_jax.training.metrics import read_metrics
from lstm_mnist_jax.training.run_folder import read_run_folder

THREE_SEEDS = Space(seeds=3)
ONE_DEVICE = Execution(devices=1)


def result_of(folder, space, path):
    """The result of a sweep that is complete, in a copy of its folder."""
    found = sweep(TINY, space, shutil.copytree(folder, path), resume=True)
    assert not found.trained
    return found


@pytest.fixture(scope="module")
def three_seeds(tiny_sweep, tmp_path_factory):
    return result_of(tiny_sweep, THREE_SEEDS, tmp_path_factory.mktemp("sweeps") / "seeds")


@pytest.mark.slow
def test_every_seed_is_the_run_that_it_would_be_alone(three_seeds, tmp_path):
    members = [(member.seed, member.epochs, member.diverged) for member in three_seeds.members]
    assert members == [(seed, 3, False) for seed in range(3)]
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
    assert mean_of([1.0, 2.0]).mean == 1.5
    assert percent(mean_of([0.5, 0.75])) == "62.50%"  # its interval would be from -96 to 221 %
    assert math.isnan(mean_of([]).mean)


@pytest.mark.slow
def test_resumed_on_other_devices_it_is_the_same_to_rounding(three_seeds, tmp_path, empty_figures):
    sweep(dataclasses.replace(TINY, epochs=1), THREE_SEEDS, tmp_path / "other", execution=ONE_DEVICE)
    found = sweep(TINY, THREE_SEEDS, tmp_path / "other", resume=True)
    for a, b in zip(found.members, three_seeds.members, strict=True):
        assert a.last.validation_loss == pytest.approx(b.last.validation_loss, rel=1e-4)


@pytest.mark.slow
def test_fewer_members_than_devices_share_them(tiny_run, tmp_path, empty_figures):
    found = sweep(TINY, Space(seeds=1), tmp_path / "one").members[0]
    expected = read_metrics(tiny_run / "metrics.jsonl")  # on all devices, too
    assert found.last.validation_loss == pytest.approx(expected[-1].validation_loss, rel=1e-4)


@pytest.mark.slow
def test_a_grid_runs_in_groups_of_one_shape_and_ranks_by_validation(tmp_path):
    space = space_of({"learning_rate": [0.001, 0.05], "hidden_features": TWO_NETWORKS, "b1": [0.8]}, seeds=2)
    tiny = dataclasses.replace(TINY, epochs=1)
    result = sweep(tiny, space, tmp_path / "grid")
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
    assert not sweep(tiny, space, result.run_dir, resume=True).trained


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
    (result.run_dir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines[2:4])))
    with pytest.raises(RunError, match=r"No run of .* has a finished epoch yet"):  # of others there is no line yet
        load_run(result.run_dir / "best")


@pytest.mark.slow
@pytest.mark.parametrize("chunk_seconds", [1.0, 1e-9])
def test_where_all_diverge_the_group_ends_early(tmp_path, monkeypatch, chunk_seconds, empty_figures):
    monkeypatch.setattr("lstm_mnist_jax.training.loop.CHUNK_SECONDS", chunk_seconds)
    space = space_of({"learning_rate": [DIVERGING], "hidden_features": TWO_NETWORKS}, seeds=3)
    result = sweep(TINY, space, tmp_path / "run")
    assert all(member.diverged and member.epochs == 0 for member in result.members)
    assert (result.best, result.learned) == (None, False)
    assert not sweep(TINY, space, tmp_path / "run", resume=True).trained
    with pytest.raises(RunError, match=r"The loss of all runs of .* became infinite or NaN: sweep lower"):
        load_run(result.run_dir / "best")


@pytest.fixture(scope="module")
def programs_on_one_device():
    """Of one, two and three members."""
    dataset = load(**vars(TINY.data))
    programs = []
    for members in (1, 2, 3):
        configs = [dataclasses.replace(TINY, seed=seed) for seed in range(members)]
        mesh = make_mesh(ONE_DEVICE, TINY.batch_size, members)
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
def test_what_does_not_fit_into_memory_is_trained_in_parts(
    three_seeds, programs_on_one_device, tmp_path, empty_figures
):
    one, two = (program.device_bytes() for program in programs_on_one_device[:2])
    limit = (two + (two - one) / 2) / 2**30
    execution = Execution(devices=1, memory_limit=limit)
    result = sweep(TINY, THREE_SEEDS, tmp_path / "parts", execution=execution)
    assert read_run_folder(result.run_dir).groups == ((0, 1), (2,))
    for a, b in zip(result.members, three_seeds.members, strict=True):
        assert a.last.validation_loss == pytest.approx(b.last.validation_loss, rel=1e-4)
    with pytest.raises(ConfigError, match=r"1 run at once would take [\d.]+ MiB of each device's memory"):
        sweep(TINY, THREE_SEEDS, tmp_path / "none", execution=Execution(devices=1, memory_limit=one / 2**31))


def test_data_that_stream_cannot_train_several_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"device_data_limit is 1e-05 GiB. Raise it with --device-data-limit"):
        sweep(TINY, Space(seeds=2), tmp_path / "run", execution=Execution(device_data_limit=1e-5))


def test_impossible_members_are_refused_before_training(tmp_path):
    for axes, message in (
        ({"batch_size": [50, 1001]}, "batch_size is 1,001, but there are only 1,000"),
        ({"sequence_length": [28, 27]}, "sequence_length is 27, but an image of 28 x 28 has 784 pixels"),
    ):
        with pytest.raises(ConfigError, match=message):
            sweep(TINY, space_of(axes), tmp_path / "run")
        assert not (tmp_path / "run" / "config.json").exists()


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


@pytest.mark.slow
def test_members_stop_early_as_they_would_alone(tmp_path, empty_figures):
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
def test_networks_optimizers_and_data_augmentation_are_swept_in_groups(tmp_path, empty_figures):
    axes = {"cell": ["lstm", "gru"], "clip_norm": [1.0, None], "bidirectional": [False, True], "shift_pixels": [0.5]}
    config = dataclasses.replace(TINY, epochs=1, model=ModelConfig(hidden_features=(3,)))
    # Of the eight groups the first is trained: what it adds to other sweeps here compiles soonest.
    result = sweep(config, space_of(axes), tmp_path / "grid", on_epoch=stop_after_group)
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
