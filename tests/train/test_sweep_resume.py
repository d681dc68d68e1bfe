"""Sweeps that are made longer and stopped; members that are resumed as runs; folders by path; damaged files.

(That a sweep is resumed to the last bit: test_determinism.py.)
"""

import dataclasses
import json
import shutil
import signal

import pytest
from runs import TINY, TWO_NETWORKS, stop_after_group

from lstm_mnist_jax import load_run, train
from lstm_mnist_jax.config import Execution, OptimizerConfig
from lstm_mnist_jax.errors import ConfigError, RunError
from lstm_mnist_jax.sweeps import Space, space_of, sweep
from lstm_mnist_jax.training.metrics import read_metrics
from lstm_mnist_jax.training.results import best_member, member_results
from lstm_mnist_jax.training.run_folder import Member, lock, read_run_folder, write_config

pytestmark = pytest.mark.usefixtures("empty_figures")
THREE_SEEDS = Space(seeds=3)
ONE_DEVICE = Execution(devices=1)


@pytest.mark.slow
def test_a_split_that_does_not_fit_is_evaluated_in_pieces(tmp_path):
    config = dataclasses.replace(TINY, epochs=1, data=dataclasses.replace(TINY.data, train_examples=300))
    limited = Execution(device_data_limit=250_000 / 2**30)  # the training images fit, the test split is four pieces
    found, whole = (
        [
            member.last.test_accuracy
            for member in sweep(config, THREE_SEEDS, tmp_path / name, execution=execution).members
        ]
        for name, execution in (("pieces", limited), ("whole", Execution()))
    )
    assert found == whole


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
def test_a_signal_at_the_end_of_a_group_ends_the_sweep_and_at_the_end_of_all_does_not(tmp_path):
    space = space_of({"hidden_features": TWO_NETWORKS}, seeds=3)
    config = dataclasses.replace(TINY, epochs=1)
    stopped = sweep(config, space, tmp_path / "run", on_epoch=stop_after_group)
    assert stopped.stopped_by == signal.SIGTERM
    assert [member.epochs for member in stopped.members] == [1, 1, 1, 0, 0, 0]
    resumed = sweep(config, space, tmp_path / "run", resume=True, on_epoch=stop_after_group)
    assert resumed.stopped_by is None
    assert [member.epochs for member in resumed.members] == [1] * 6


@pytest.mark.slow
def test_a_member_is_resumed_as_the_run_would_have_been(tiny_sweep, tmp_path, monkeypatch):
    """By one of two processes that resume it at once; the other finds the folder that it has made."""
    folder = shutil.copytree(tiny_sweep, tmp_path / "sweep")
    longer = dataclasses.replace(TINY, seed=1, epochs=4)
    with pytest.raises(ConfigError, match="batch_size is 64 in the run, 32 was asked for"):
        train(dataclasses.replace(longer, batch_size=32), folder / "1", resume=True)
    with pytest.raises(ConfigError, match=r"1 is complete after 3 epochs. Ask for more with --epochs"):
        train(dataclasses.replace(TINY, seed=1), folder / "1", resume=True)
    with pytest.raises(ConfigError, match=r"epochs is 2, but .*1 was trained for 3 already"):
        train(dataclasses.replace(TINY, seed=1, epochs=2), folder / "1", resume=True)
    assert not (folder / "1").exists()
    results = []

    def lock_after_another_process(path):
        monkeypatch.undo()
        results.append(train(longer, folder / "1", resume=True, execution=ONE_DEVICE))
        return lock(path)

    monkeypatch.setattr("lstm_mnist_jax.training.new_run.lock", lock_after_another_process)
    results.append(train(longer, folder / "1", resume=True, execution=ONE_DEVICE))
    assert [result.trained for result in results] == [True, False]
    found, late = (result.epochs for result in results)
    assert late == found == read_metrics(folder / "1" / "metrics.jsonl")
    expected = train(longer, tmp_path / "alone", execution=ONE_DEVICE)
    assert [metrics.epoch for metrics in found] == [1, 2, 3, 4]
    assert found[-1].validation_loss == pytest.approx(expected.epochs[-1].validation_loss, rel=1e-4)
    # Now it is a run of its own, and the sweep is as it was.
    assert load_run(folder / "1").folder.config == longer
    assert load_run(folder / "2").folder.config.epochs == 3
    assert not sweep(TINY, THREE_SEEDS, folder, resume=True).trained


def test_members_have_paths(tiny_sweep):
    best = load_run(tiny_sweep / "best").folder
    assert best.path == tiny_sweep / str(best.member)
    members = member_results(read_run_folder(tiny_sweep))
    assert best_member(members) == best.member
    accuracies = {m.member: m.best.validation_accuracy for m in members}
    assert accuracies[best.member] == max(accuracies.values())
    with pytest.raises(RunError, match="has no run 3, expected 0 to 2"):
        load_run(tiny_sweep / "3")
    with pytest.raises(RunError, match=r"worst is not a run folder: the runs of the sweep .* are best or numbers"):
        load_run(tiny_sweep / "worst")
    with pytest.raises(RunError, match=r"1.5 is not a run folder: the runs of the sweep .* are best or numbers"):
        load_run(tiny_sweep / "1.5")


def test_a_sweep_is_refused_as_a_run_and_a_run_as_a_sweep(tiny_sweep, tiny_run, tmp_path):
    with pytest.raises(RunError, match=r"is a sweep of 3 runs. Name one of them: .*best .*, or .*0 to .*2, as results"):
        load_run(tiny_sweep)
    with pytest.raises(RunError, match=r"is a sweep of 3 runs"):
        train(TINY, tiny_sweep, resume=True)
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
        train(TINY, tiny_sweep)
    with pytest.raises(RunError, match="already holds a run"):
        sweep(TINY, THREE_SEEDS, tiny_sweep)
    with pytest.raises(ConfigError, match="A resumed run keeps its config, but batch_size is 64 in the run, 32"):
        sweep(dataclasses.replace(TINY, batch_size=32), THREE_SEEDS, tiny_sweep, resume=True)
    with pytest.raises(ConfigError, match=r"epochs is 2, but .* was trained for 3 already"):
        sweep(dataclasses.replace(TINY, epochs=2), THREE_SEEDS, tiny_sweep, resume=True)


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
def test_a_damaged_sweep_is_refused(tiny_sweep, tmp_path, change, message):
    contents = json.loads((tiny_sweep / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(change(contents)))
    with pytest.raises(RunError, match=message):
        read_run_folder(tmp_path)


def test_the_order_of_the_pixels_is_kept_where_all_members_have_it(tiny_sweep, tmp_path):
    folder = read_run_folder(tiny_sweep)
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
