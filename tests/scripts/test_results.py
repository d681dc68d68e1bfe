"""scripts/results.py: the runs of a row, its cells, and what is refused."""

import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import FIRST_OF_MNIST, TINY

from lstm_mnist_jax import train
from lstm_mnist_jax.config import PRESETS, OptimizerConfig
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.training.metrics import read_metrics
from results import COLUMNS, commands, group_by_recipe, main, merge, read_runs, read_table, row, to_markdown

ROOT = Path(__file__).parents[2]


def with_config(run, **changes):
    return dataclasses.replace(run, config=dataclasses.replace(run.config, **changes))


def cells_of(group):
    return dict(zip(COLUMNS, row(group), strict=True))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def runs(tiny_run, tiny_sweep):
    """A run of seed 0, two members of a sweep with seeds 1 and 2, and of these copies with another learning rate."""
    (first,), members = read_runs(tiny_run), read_runs(tiny_sweep)[1:]
    fast = dataclasses.replace(TINY.optimizer, learning_rate=0.03)
    return [first, *members, *(dataclasses.replace(with_config(run, optimizer=fast), test=0.5) for run in members)]


def test_runs_that_differ_in_the_seed_alone_make_one_row(runs):
    runs[3:] = [dataclasses.replace(run, validation=0.99) for run in runs[3:]]
    best, other = group_by_recipe(runs)  # the highest validation accuracy first
    assert [run.config.seed for run in best] == [1, 2]
    assert best[0].config.optimizer.learning_rate == 0.03
    assert [run.config.seed for run in other] == [0, 1, 2]
    assert other[0].config.optimizer.learning_rate == 0.01


def test_accuracies_are_those_at_the_best_epoch_on_validation(tiny_run, runs):
    run = runs[0]
    best = max(read_metrics(tiny_run / "metrics.jsonl"), key=lambda epoch: epoch.validation_accuracy)
    assert (run.best_epoch, run.test, run.validation) == (best.epoch, best.test_accuracy, best.validation_accuracy)
    cells = cells_of(runs[:3])
    tests = [100 * run.test for run in runs[:3]]
    assert cells["test %"] == f"{np.mean(tests):.2f}"
    assert cells["sd"] == f"{np.std(tests, ddof=1):.2f}"
    assert cells["validation %"] == f"{100 * np.mean([run.validation for run in runs[:3]]):.2f}"
    assert cells["task"] == "rows, 28 x 28"
    assert cells["seeds"] == "3"
    assert cells["parameters"] == "862"  # 32 x 16, 16, 10 x 24, 24, 6 x 10, 10
    assert cells["machine"] != "?"


def test_commands_make_the_same_config_again(runs):
    runs = [with_config(run, epochs=2) for run in runs]  # as the preset `smoke` has
    found = {command for group in group_by_recipe(runs) for command in commands(group)}
    options = f"--source {FIRST_OF_MNIST.name} --validation-examples 200 --train-examples 1000 --hidden-features 4 6"
    assert found == {
        f"lstm-mnist train smoke {options} --seeds 3",
        f"lstm-mnist train smoke {options} --learning-rate 0.03 --seeds 2 --seed 1",
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_needs_no_option(runs, name):
    assert commands([dataclasses.replace(runs[0], config=PRESETS[name])]) == [f"lstm-mnist train {name}"]


def test_fashion_mnist_in_any_folder_is_one_data_set(runs):
    here = PRESETS["fashion"]
    elsewhere = dataclasses.replace(here, seed=1, data=dataclasses.replace(here.data, source="/data/fashion-mnist"))
    for configs, options in (([elsewhere], " --seed 1"), ([elsewhere, here], " --seeds 2")):
        (group,) = group_by_recipe([dataclasses.replace(runs[0], config=config) for config in configs])
        assert commands(group) == [f"lstm-mnist train fashion{options}"]


def test_nonconsecutive_seeds_take_several_commands(runs):
    (group,) = group_by_recipe([with_config(runs[0], seed=seed) for seed in (9, 0, 4, 5, 1)])
    ends = [command.split("--hidden-features 4 6")[1] for command in commands(group)]
    assert ends == [" --seeds 2", " --seeds 2 --seed 4", " --seed 9"]


def test_the_time_is_that_of_undisturbed_epochs(tiny_run, tmp_path):
    seconds = [epoch.seconds for epoch in read_metrics(tiny_run / "metrics.jsonl")]
    assert read_runs(tiny_run)[0].seconds == pytest.approx(3 * statistics.median(seconds))


@pytest.mark.slow
def test_the_time_of_a_run_of_a_sweep_is_its_share(tiny_sweep, tmp_path):
    sweep = tmp_path / "sweep"
    shutil.copytree(tiny_sweep, sweep)
    (run,), members = read_runs(sweep / "1"), read_runs(sweep)
    assert run == dataclasses.replace(members[1], folder=sweep / "1")
    assert run.config.seed == 1
    train(dataclasses.replace(run.config, epochs=4), sweep / "1", resume=True)  # a run of its own now
    assert (sweep / "1" / "config.json").is_file()
    assert [own.config.epochs for own in read_runs(sweep / "1")] == [4]
    of_own = read_metrics(sweep / "1" / "metrics.jsonl")[:3]
    of_sweep = read_metrics(sweep / "metrics.jsonl", 1)
    assert of_own == [dataclasses.replace(epoch, member=0) for epoch in of_sweep]
    for epoch in of_own:
        assert epoch.seconds * epoch.examples_per_second == pytest.approx(15 * 64, rel=0.01)


def test_the_same_run_twice_is_refused(runs):
    with pytest.raises(RunError, match=r"hold the same run, of seed 0. Name one."):
        group_by_recipe([runs[0], runs[0]])


def test_a_run_is_complete_after_its_last_epoch_or_where_its_patience_ends(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    edit(tmp_path / "run" / "config.json", '"epochs": 3,', '"epochs": 5,')
    with pytest.raises(RunError, match=r"run is not complete. Continue with: lstm-mnist train --resume .*run$"):
        read_runs(tmp_path / "run")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    metrics[1]["validation_accuracy"] = 0.999  # nothing better in the one epoch after it
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in metrics))
    edit(tmp_path / "run" / "config.json", '"early_stopping_patience": null', '"early_stopping_patience": 1')
    assert read_runs(tmp_path / "run")[0].best_epoch == 2
    edit(tmp_path / "run" / "config.json", '"early_stopping_patience": 1', '"early_stopping_patience": 2')
    with pytest.raises(RunError, match="is not complete"):
        read_runs(tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_stopped_early_is_complete(tmp_path):
    config = dataclasses.replace(
        TINY, epochs=30, early_stopping_patience=1, optimizer=OptimizerConfig(learning_rate=0.3)
    )
    train(config, tmp_path / "run")
    assert read_runs(tmp_path / "run")[0].best_epoch < 30


@pytest.mark.slow
def test_diverged_runs_are_counted_and_unfinished_sweeps_refused(diverging_sweep, tmp_path):
    shutil.copytree(diverging_sweep, tmp_path / "sweep")
    good, bad = group_by_recipe(read_runs(tmp_path / "sweep"))
    assert cells_of(good)["seeds"] == "2"
    assert (cells_of(bad)["seeds"], cells_of(bad)["test %"]) == ("0 (2 more diverged)", "-")
    assert commands(bad)[0].endswith("--seeds 2")
    edit(tmp_path / "sweep" / "config.json", '"epochs": 3,', '"epochs": 5,')
    with pytest.raises(RunError, match=r"2 of 4 runs in .*sweep are not complete. Continue with: .*sweep$"):
        read_runs(tmp_path / "sweep")
    with pytest.raises(RunError, match=r"sweep/0 is not complete. Continue with: lstm-mnist train --resume .*sweep$"):
        read_runs(tmp_path / "sweep" / "0")


def test_runs_that_began_with_given_weights_are_refused(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    edit(tmp_path / "run" / "config.json", '"initial_weights": null', '"initial_weights": "x"')
    with pytest.raises(RunError, match=r"began with given weights \(x\): no command here makes them"):
        read_runs(tmp_path / "run")


@pytest.mark.slow
def test_the_script_writes_the_table_into_a_page(tiny_run, diverging_sweep, tmp_path, monkeypatch, capsys):
    def results(*arguments):
        monkeypatch.setattr(sys, "argv", ["results.py", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    done = results(tiny_run)
    assert done.returncode == 0, done.stderr
    assert done.stdout == to_markdown([row(read_runs(tiny_run))])
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- results -->\n<!-- end of results -->\nbelow\n")
    assert results(tiny_run, "--into", page).returncode == 0
    assert page.read_text() == f"above\n<!-- results -->\n\n{done.stdout}\n<!-- end of results -->\nbelow\n"
    # The sweep's runs of that recipe take the place of its row; the others come after it.
    assert results(diverging_sweep, "--into", page).returncode == 0
    of_sweep = [row(group) for group in group_by_recipe(read_runs(diverging_sweep))]
    assert page.read_text().split("<!-- results -->\n\n")[1].startswith(to_markdown(of_sweep))
    page.write_text("<!-- results -->\n| task | other |\n| --- | --- |\n| a | b |\n<!-- end of results -->\n")
    failed = results(tiny_run, "--into", page)
    assert failed.returncode == 2
    assert "is no table of the columns task, data" in failed.stderr
    assert "| a | b |" in page.read_text()
    page.write_text("no marks")
    failed = results(tiny_run, "--into", page)
    assert failed.returncode == 2
    assert "has no place for the table" in failed.stderr
    assert results(tmp_path).returncode == 2


def test_the_runs_that_are_kept_make_rows_of_the_table():
    folders = sorted((ROOT / "scripts" / "results").iterdir())
    runs = [run for folder in folders for run in read_runs(folder)]
    assert {run.folder for run in runs} == set(folders) != set()
    page = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    text = page.split("<!-- results -->\n")[1].split("<!-- end of results -->")[0]
    assert {row(group) for group in group_by_recipe(runs)} <= set(read_table(text))


def test_new_rows_replace_old_rows_of_the_same_recipe():
    def of(preset, seeds, test):
        command = f"`lstm-mnist train {preset} --permutation-seed 3{seeds}`"
        return ("rows", "MNIST", *[test] * (len(COLUMNS) - 3), command)

    old = [of("a", " --seeds 3", "1"), of("b --source 'scans | old and new'", "", "2")]
    assert read_table(to_markdown(old)) == old
    new = [of("c", "", "3"), of("a", " --seeds 2` and `lstm-mnist train a --seed 9", "4")]
    assert merge(old, new) == [new[1], old[1], new[0]]
    assert merge([], new) == new
    assert read_table("\n") == []
