"""Every command and program of docs/sweeps.md, docs/distributed.md and docs/recipes.md runs."""

import re

import pytest
from pages import LESS_WORK, blocks, commands, python_programs, read, run, run_program
from runs import ONE_LAYER, TINY_DATA, TINY_OPTIONS

from lstm_mnist_jax import load_run


@pytest.mark.slow
def test_commands_of_the_sweeps_page(tmp_path, empty_figures):
    outputs = {}
    for line in commands("sweeps"):
        options = []
        if " smoke " in line:
            options = [*TINY_OPTIONS, "--epochs", "1"]
            if "--hidden-features" in line:  # the networks of other sweeps
                options = [*TINY_DATA, "--hidden-features", "3", "4,6"]
        outputs[line] = run(line, tmp_path, *options)
    _, grid, _, compared, _, reported, resumed = outputs.values()
    best, sweep = re.search(r"on validation: run (\d+), epoch", grid), tmp_path / "runs" / "grid"
    assert best is not None
    assert "hidden_features 4,6" in compared
    assert "runs/grid/3/plots" in reported
    assert (sweep / "3" / "plots" / "confusion.png").exists()
    assert resumed.startswith(f"run runs/grid/{best[1]}\n")
    assert "epoch 4/4" in resumed
    assert load_run(sweep / "best").folder.path == sweep / best[1]
    assert load_run(sweep / "best").folder.config.epochs == 4
    assert not (sweep / "best").exists()


@pytest.mark.slow
def test_a_sweep_from_python(tmp_path):
    (program,) = python_programs("sweeps")
    first, last = run_program(LESS_WORK + program, tmp_path).splitlines()
    assert "learning_rate" in first
    run = load_run(tmp_path / "runs" / "rates" / "best")
    assert last == f"{run.folder.config.seed} {run.folder.config.optimizer.learning_rate}"
    assert run.folder.is_sweep is False


@pytest.mark.slow
def test_the_launcher_starts_processes_with_as_many_devices_as_are_asked_for(folder, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "-1")  # JAX's own default: the program decides
    (line,) = commands("distributed")
    output = run(line, folder, *ONE_LAYER, "--epochs", "1", "--devices", "2")
    assert "on 4 x cpu in 2 processes" in output
    assert output.count("epoch 1/1") == 1


@pytest.mark.slow
def test_commands_of_the_recipes_page(folder):
    first, *_ = [block.text for block in blocks("recipes") if block.language == "sh"]
    train, evaluate, table = first.splitlines()
    less_work = ["--epochs", "1", "--train-examples", "1000", "--validation-examples", "200", "--hidden-features", "3"]
    assert "best on validation" in run(train, folder, *less_work)
    assert "test-time augmentation: mean over 9 shifts of up to 1 pixels" in run(evaluate, folder)
    assert "lstm-mnist train rows-fast" in run(table, folder)


def test_options_of_the_recipes_page_exist(command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    options = re.findall(r"--[\w-]+", command_line("train", "--help-all").stdout)
    for option in re.findall(r"`(--[\w-]+)", read("recipes")):
        assert option in options, option
