"""Every command and program of docs/sweeps.md, docs/distributed.md and docs/recipes.md runs."""

import re

import pytest
from pages import blocks, commands, python_programs, read, run, run_program
from runs import TINY_OPTIONS

from lstm_mnist_jax import load_run

LESS_WORK = ["--epochs", "1", "--train-examples", "1000"]


@pytest.mark.slow
def test_commands_of_the_sweeps_page(tmp_path):
    for line in commands("sweeps"):
        options = LESS_WORK if " smoke " in line else []
        assert run(line, tmp_path, *options)
    assert load_run(tmp_path / "runs" / "best").class_names == tuple("0123456789")


@pytest.mark.slow
def test_a_sweep_from_python(tmp_path):
    (program,) = python_programs("sweeps")
    assert "learning_rate" in run_program(program, tmp_path)
    assert load_run(tmp_path / "runs" / "best-rate").class_names == tuple("0123456789")


@pytest.mark.slow
def test_two_processes(folder):
    (line,) = commands("distributed")
    # The options of a program that other tests compile for two processes as well.
    assert "on 2 x cpu in 2 processes" in run(line, folder, *TINY_OPTIONS)


@pytest.mark.slow
def test_commands_of_the_recipes_page(folder):
    first, *_ = [block.text for block in blocks("recipes") if block.language == "sh"]
    train, evaluate, table = first.splitlines()
    less_work = ["--epochs", "2", "--train-examples", "6400"]  # not a minute of a core
    assert "best on validation" in run(train, folder, *less_work)
    assert "not the model alone: averaged over 9 shifts of up to 1 pixels" in run(evaluate, folder)
    assert "lstm-mnist train rows-fast" in run(table, folder)


def test_options_of_the_recipes_page_exist(command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    options = re.findall(r"--[\w-]+", command_line("train", "--help").stdout)
    for option in re.findall(r"`(--[\w-]+)", read("recipes")):
        assert option in options, option
