"""`--help` and `--help-all` of every command."""

import re
import subprocess
import sys
from dataclasses import asdict

import pytest

from lstm_mnist_jax import __version__
from lstm_mnist_jax.cli import main as cli
from lstm_mnist_jax.config import PRESETS, SWEEPABLE


def test_help_names_every_command_and_preset(command_line):
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        done = command_line(*arguments)
        assert done.returncode == 0
        assert "extract" not in done.stdout
        for word in ("train [PRESET]", "evaluate RUN_DIR", "SWEEP/NUMBER or SWEEP/best", *PRESETS, *cli.COMMANDS):
            assert word in " ".join(done.stdout.split())


def test_python_m_prints_the_version():
    words = [sys.executable, "-m", "lstm_mnist_jax", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.strip() == __version__


def leaf_names(values):
    return [name for key, value in values.items() for name in (leaf_names(value) if isinstance(value, dict) else [key])]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_field_of_the_config_is_an_option_with_the_presets_default(command_line, monkeypatch, preset):
    monkeypatch.setenv("COLUMNS", "200")
    done = command_line("train", preset, "--help-all")
    assert done.returncode == 0
    for name in [*leaf_names(asdict(PRESETS[preset])), "devices", "compilation_cache", "run_dir", "resume"]:
        assert f"--{name.replace('_', '-')}" in done.stdout, name
    assert f"(default: {PRESETS[preset].epochs})" in done.stdout
    assert f"(default: {','.join(map(str, PRESETS[preset].model.hidden_features))})" in done.stdout


def test_help_imports_no_jax():
    run = "from lstm_mnist_jax.cli.main import _run; _run(['--help'], False)"
    program = f"import sys; {run}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_help_texts_have_no_line_breaks_of_the_source(command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def help_of(command):
        return " ".join(command_line(command, "--help-all").stdout.split())

    assert "by gradient accumulation over two, four, ... steps." in help_of("train")
    assert "Train a stacked LSTM." in help_of("train")
    assert "Adam, as TensorFlow 1 computes it" in help_of("train")
    assert "Learning rate; with a schedule, its peak. (default: the preset's)" in help_of("sweep")
    assert help_of("sweep").count("(default: the preset's)") == len(SWEEPABLE)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_is_no_wider_than_the_terminal_or_80_columns(command_line, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in ([], *([command, option] for command in cli.COMMANDS for option in ("--help", "--help-all"))):
        text = command_line(*words).stdout
        # Commands to copy stay in one line.
        lines = [line for line in text.splitlines() if not line.lstrip().startswith(("~/.", "fish:"))]
        assert max(map(len, lines)) <= min(columns, 80), words
        assert 0.7 * min(columns, 80) < max(map(len, lines))


def test_short_help_has_the_ten_options_that_people_change(command_line):
    text = command_line("train", "rows", "--help").stdout
    options = re.findall(r"^  --([\w-]+)", text, re.MULTILINE)
    assert len(options) == 10
    assert {"epochs", "batch-size", "learning-rate", "hidden-features", "run-dir", "resume"} < set(options)
    assert "(default: 192,192)" in text
    assert "lstm-mnist train --help-all prints all options." in text
    everything = re.findall(r"^  --([\w-]+)", command_line("train", "--help-all").stdout, re.MULTILINE)
    assert set(options) < set(everything)
    assert command_line("help", "train").stdout == command_line("train", "--help").stdout


def test_help_names_folders_and_files(command_line):
    for command, names in {"export": ["FORMAT", "RUN_DIR", "FILE"], "evaluate": ["RUN_DIR"]}.items():
        text = command_line(command, "--help").stdout
        assert re.findall(r"^  ([A-Z_]+) ", text, re.MULTILINE) == names


def test_every_hyperparameter_of_the_optimizer_can_be_swept(command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = command_line("sweep", "--help-all")
    for name in [*leaf_names(asdict(PRESETS["tutorial"].optimizer)), "hidden_features", "batch_size"]:
        assert f"--{name.replace('_', '-')} VALUE ..." in done.stdout
