"""The table of results: what it is made of, and what it leaves out."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import programs
import pytest
from runs import TINY

import lstm_mnist_jax
from lstm_mnist_jax import extract, space_of, sweep, train
from lstm_mnist_jax.config import PRESETS, OptimizerConfig
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.records import COLUMNS, make_records, merge, read_runs, read_table, row, to_markdown
from lstm_mnist_jax.reporting.metrics import read_metrics

SCRIPT = Path(__file__).parents[2] / "scripts" / "results.py"
PACKAGE = Path(lstm_mnist_jax.__file__).parent


@pytest.fixture(scope="module")
def folders(tiny_run, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(tiny_run, root / "one")
    train(dataclasses.replace(TINY, seed=1, tensorboard=False), root / "two")
    sweep(dataclasses.replace(TINY, seed=2), space_of({"learning_rate": [0.01, 0.03]}, seeds=2), root / "sweep")
    return root


def runs_in(root, *names):
    return [run for name in names for run in read_runs(root / name)]


@pytest.mark.slow
def test_trainings_that_differ_in_the_seed_alone_make_one_row(folders):
    records = make_records(runs_in(folders, "one", "two", "sweep"))
    by_rate = {record.runs[0].config.optimizer.learning_rate: record for record in records}
    assert [run.config.seed for run in by_rate[0.01].runs] == [0, 1, 2, 3]
    assert [run.config.seed for run in by_rate[0.03].runs] == [2, 3]
    means = [record.values("validation").mean() for record in records]
    assert means == sorted(means, reverse=True)


def test_accuracies_are_those_at_the_best_epoch_on_validation(folders):
    (run,) = read_runs(folders / "one")
    best = max(read_metrics(folders / "one" / "metrics.jsonl"), key=lambda epoch: epoch.validation_accuracy)
    assert (run.best_epoch, run.test, run.validation) == (best.epoch, best.test_accuracy, best.validation_accuracy)
    (record,) = make_records(runs_in(folders, "one", "two"))
    cells = dict(zip(COLUMNS, row(record), strict=True))
    tests = 100 * record.values("test")
    assert cells["test %"] == f"{tests.mean():.2f}"
    assert cells["sd"] == f"{np.std(tests, ddof=1):.2f}"
    assert cells["task"] == "rows, 28 x 28"
    assert cells["seeds"] == "2"
    assert cells["parameters"] == "862"  # 32 x 16, 16, 10 x 24, 24, 6 x 10, 10
    assert cells["machine"] != "?"


def test_commands_make_the_same_config_again(folders):
    runs = [
        dataclasses.replace(run, config=dataclasses.replace(run.config, epochs=2))  # as the preset `smoke` has
        for run in runs_in(folders, "one", "two", "sweep")
    ]
    commands = {command for record in make_records(runs) for command in record.commands}
    options = "--validation-examples 200 --train-examples 1000 --hidden-features 4 6"
    assert commands == {
        f"lstm-mnist train smoke {options} --seeds 4",
        f"lstm-mnist train smoke {options} --learning-rate 0.03 --seeds 2 --seed 2",
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_needs_no_option(folders, name):
    (run,) = read_runs(folders / "one")
    (record,) = make_records([dataclasses.replace(run, config=PRESETS[name])])
    assert record.commands == [f"lstm-mnist train {name}"]


def test_fashion_mnist_is_one_set_wherever_it_lies(folders):
    (run,) = read_runs(folders / "one")
    here = PRESETS["fashion"]
    elsewhere = dataclasses.replace(here, seed=1, data=dataclasses.replace(here.data, source="/data/fashion-mnist"))
    for configs, options in (([elsewhere], " --seed 1"), ([elsewhere, here], " --seeds 2")):
        (record,) = make_records([dataclasses.replace(run, config=config) for config in configs])
        assert record.commands == [f"lstm-mnist train fashion{options}"]


def test_an_extracted_training_took_its_share_of_the_time(folders, tmp_path):
    extract(folders / "sweep", tmp_path / "taken", 0)
    (run,), (first, *_) = read_runs(tmp_path / "taken"), read_runs(folders / "sweep")
    assert run.seconds == pytest.approx(first.seconds)
    for epoch in read_metrics(tmp_path / "taken" / "metrics.jsonl"):
        assert epoch.seconds * epoch.examples_per_second == pytest.approx(15 * 64, rel=0.01)


def test_the_same_training_twice_and_unfinished_ones_are_refused(folders, tmp_path):
    with pytest.raises(RunError, match=r"hold the same training, of seed 0. Name one only"):
        make_records(runs_in(folders, "one", "one"))
    shutil.copytree(folders / "one", tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text().replace('"epochs": 3,', '"epochs": 5,')
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"The training is not complete in .* Go on with"):
        read_runs(tmp_path / "run")


@pytest.mark.slow
def test_a_training_that_stopped_early_is_complete(tmp_path):
    config = dataclasses.replace(TINY, epochs=30, early_stop_epochs=1, optimizer=OptimizerConfig(learning_rate=0.3))
    train(config, tmp_path / "run")
    assert read_runs(tmp_path / "run")[0].best_epoch < 30


@pytest.mark.slow
def test_the_script_writes_the_table_into_a_page(folders, tmp_path):
    def results(*arguments):
        return programs.run(arguments, code=SCRIPT.read_text("utf-8"))

    done = results(folders / "one", folders / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout == to_markdown([row(*make_records(runs_in(folders, "one", "two")))])
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- results -->\n<!-- end of results -->\nbelow\n")
    assert results(folders / "one", folders / "two", "--into", page).returncode == 0
    assert page.read_text() == f"above\n<!-- results -->\n\n{done.stdout}\n<!-- end of results -->\nbelow\n"
    # The sweep's trainings of that recipe take the place of its row; the others come after it.
    assert results(folders / "sweep", "--into", page).returncode == 0
    of_sweep = [row(record) for record in make_records(runs_in(folders, "sweep"))]
    of_sweep.sort(key=lambda cells: "--learning-rate" in cells[-1])
    assert page.read_text().split("<!-- results -->\n\n")[1].startswith(to_markdown(of_sweep))
    page.write_text("<!-- results -->\n| task | other |\n| --- | --- |\n| a | b |\n<!-- end of results -->\n")
    failed = results(folders / "one", "--into", page)
    assert failed.returncode == 2
    assert "is no table of the columns task, data" in failed.stderr
    assert "| a | b |" in page.read_text()
    page.write_text("no marks")
    failed = results(folders / "one", "--into", page)
    assert failed.returncode == 2
    assert "has no place for the table" in failed.stderr
    assert results(tmp_path).returncode == 2


def test_the_runs_that_are_kept_make_rows_of_the_table():
    folders = sorted((PACKAGE / "records" / "measured").iterdir())
    runs = [run for folder in folders for run in read_runs(folder)]
    assert len(runs) == len(folders) > 0
    text = (PACKAGE / "recipes.md").read_text().split("<!-- results -->\n")[1].split("<!-- end of results -->")[0]
    assert {row(record) for record in make_records(runs)} <= set(read_table(text))


def test_rows_measured_anew_take_the_place_of_the_old():
    def of(preset, seeds, test):
        command = f"`lstm-mnist train {preset} --permutation-seed 3{seeds}`"
        return ("rows", "MNIST", *[test] * (len(COLUMNS) - 3), command)

    old = [of("a", " --seeds 3", "1"), of("b --source 'scans | old and new'", "", "2")]
    assert read_table(to_markdown(old)) == old
    new = [of("c", "", "3"), of("a", " --seeds 2` and `lstm-mnist train a --seed 9", "4")]
    assert merge(old, new) == [new[1], old[1], new[0]]
    assert merge([], new) == new
    assert read_table("\n") == []


def test_seeds_that_do_not_follow_one_another_take_several_commands(folders):
    (run,) = read_runs(folders / "one")
    runs = [dataclasses.replace(run, config=dataclasses.replace(TINY, seed=seed)) for seed in (9, 0, 4, 5, 1)]
    (record,) = make_records(runs)
    ends = [command.split("--hidden-features 4 6")[1] for command in record.commands]
    assert ends == [" --seeds 2", " --seeds 2 --seed 4", " --seed 9"]


def test_diverged_trainings_are_told_and_unfinished_sweeps_refused(diverging_sweep, tmp_path):
    shutil.copytree(diverging_sweep, tmp_path / "sweep")
    good, bad = make_records(read_runs(tmp_path / "sweep"))
    assert dict(zip(COLUMNS, row(good), strict=True))["seeds"] == "2"
    cells = dict(zip(COLUMNS, row(bad), strict=True))
    assert (cells["seeds"], cells["test %"]) == ("0 (2 more diverged)", "-")
    assert bad.commands[0].endswith("--seeds 2")
    text = (tmp_path / "sweep" / "population.json").read_text().replace('"epochs": 3,', '"epochs": 5,')
    (tmp_path / "sweep" / "population.json").write_text(text)
    with pytest.raises(RunError, match=r"2 of 4 trainings are not complete in"):
        read_runs(tmp_path / "sweep")


def test_runs_that_began_with_given_weights_are_refused(folders, tmp_path):
    shutil.copytree(folders / "one", tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "run" / "config.json").write_text(text.replace('"initial_weights": null', '"initial_weights": "x"'))
    with pytest.raises(RunError, match="began with weights that no command here makes"):
        read_runs(tmp_path / "run")
