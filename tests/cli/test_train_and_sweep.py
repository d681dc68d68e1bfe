"""`lstm-mnist train`, `evaluate` and `sweep`: what they print, and the commands that they suggest."""

import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import programs
import pytest
from runs import DIVERGING, FIRST_OF_MNIST, ONE_LAYER, TINY_DATA, TINY_OPTIONS

from lstm_mnist_jax import load, load_run
from lstm_mnist_jax.cli.parsing import run_dir_of
from lstm_mnist_jax.cli.train import TrainArguments
from lstm_mnist_jax.config import PRESETS
from lstm_mnist_jax.errors import RunError
from lstm_mnist_jax.training import mesh, run
from lstm_mnist_jax.training.program import TrainingProgram
from lstm_mnist_jax.training.run_folder import refuse_occupied

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"


def without_device_count():
    """The environment variables as a user has them: the program decides on the number of devices."""
    return {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"} | {
        "JAX_PLATFORMS": "cpu"
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of TINY_OPTIONS, which has a blank in its path, and what the command printed."""
    run_dir = tmp_path_factory.mktemp("cli") / "a run"
    done = programs.run(["train", "smoke", *TINY_OPTIONS, "--run-dir", run_dir])
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return run_dir, done.stdout.splitlines()


@pytest.mark.slow
def test_lines_that_train_prints(trained):
    run_dir, lines = trained
    assert lines[:3] == [
        f"run {run_dir}",
        f"IDX files {FIRST_OF_MNIST} (1,000 train, 200 validation, 1,100 test)",
        "28 rows of 28 -> LSTM 4 -> LSTM 6 -> 10 classes",
    ]
    assert lines[3].startswith("862 parameters, on 2 x cpu; ready in ")
    for number in (1, 2, 3):
        assert lines[3 + number].startswith(f"epoch {number}/3  loss ")
    assert re.fullmatch(r"best on validation: epoch [123], validation [\d.]+%, test [\d.]+%", lines[7])
    assert re.fullmatch(r"95 % confidence interval of the test accuracy \(1,100 images\): [\d.]+ to [\d.]+ %", lines[8])
    assert lines[9] == f"saved in {run_dir}; next steps:"
    assert lines[10] == "  # HTML page: draw a digit, see curves and errors"
    assert len(lines) == 16
    assert max(len(line) for line in lines[2:] if str(run_dir) not in line) <= 80


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    """And nothing is left of one that ends before it begins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda name: "a")
    parsed = TrainArguments()
    with run_dir_of(parsed, "a") as first, run_dir_of(parsed, "a") as second, run_dir_of(parsed, "a") as third:
        assert [first, second, third] == [Path("runs/a"), Path("runs/a-2"), Path("runs/a-3")]
        refuse_occupied(second)  # is empty
        (second / "config.json").touch()
    assert list(Path("runs").iterdir()) == [second]
    shutil.rmtree("runs")
    Path("runs").touch()
    with pytest.raises(RunError, match="runs cannot be written to: File exists"), run_dir_of(parsed, "a"):
        pass


@pytest.mark.slow
def test_commands_that_are_printed_after_training_succeed(command_line, trained, tmp_path, empty_figures):
    run_dir, lines = trained
    copy = tmp_path / "a run"
    shutil.copytree(run_dir, copy)
    suggested = [line.replace(str(run_dir), str(copy)) for line in lines if line.startswith("  lstm-mnist")]
    commands = [shlex.split(line, comments=True) for line in suggested]
    assert [command[:2] for command in commands] == [["lstm-mnist", verb] for verb in ("report", "predict", "train")]
    picture = tmp_path / "digit.npy"
    np.save(picture, load().test.images[0])
    for _, *words in commands:
        done = command_line(*(picture if word == "PICTURE" else word for word in words))
        assert done.returncode == 0, done.stderr
    assert "epoch 6/6" in done.stdout
    assert 100_000 < (copy / "report.html").stat().st_size < 1_000_000


@pytest.mark.slow
def test_training_imports_nothing_that_it_does_not_use(tmp_path):
    program = (
        "import sys; from lstm_mnist_jax.cli.main import _run;"
        f"words = ['train', 'smoke', *{TINY_OPTIONS}, '--devices', '1', '--no-tensorboard'];"
        f"words += ['--run-dir', {str(tmp_path / 'run')!r}];"
        "code = _run(words, False);"
        "heavy = {'tensorflow', 'torch', 'keras', 'tensorflow_datasets', 'tensorboardX', 'matplotlib', 'pandas'};"
        "sys.exit(code or ', '.join(sorted(heavy & sys.modules.keys())) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "862 parameters, on 1 x cpu; ready in " in done.stdout  # of the two of this environment


@pytest.mark.slow
def test_the_classic_script_is_the_same_program_and_uses_all_cores_with_enough_examples(tmp_path):
    """The preset may stand last. No resuming is suggested where the learning rate has fallen."""
    program = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    words = ["--epochs", "1", "--train-examples", "1000", "--hidden-features", "3", "--schedule", "cosine", "smoke"]
    done = programs.run(words, code=program, cwd=tmp_path, env=without_device_count())
    assert done.returncode == 0, done.stderr
    assert f"on {mesh._default_count(mesh.usable_cores(), PRESETS['smoke'].batch_size)} x cpu" in done.stdout
    assert "MNIST, embedded in the package (1,000 train, 500 validation, 10,000 test)" in done.stdout
    (run_dir,) = (tmp_path / "runs").iterdir()
    run = load_run(run_dir)
    assert run.folder.config.data.validation_examples == 500
    assert run.novelty is not None  # fitted by this process: the others inherit that of TINY's data
    assert "LSTM 3 -> 10 classes" in done.stdout
    assert "lstm-mnist evaluate" in done.stdout
    assert "--resume" not in done.stdout
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("smoke-")
    assert (run_dir / "metrics.jsonl").exists()


@pytest.mark.slow
def test_as_many_devices_are_used_as_are_asked_for(tmp_path):
    words = ["train", "smoke", *ONE_LAYER, "--devices", "4", "--run-dir", tmp_path / "run"]
    program = programs.Program(words, env=without_device_count())
    found = [line for line, _ in zip(program.stdout, range(5), strict=False)]
    program.kill()
    program.communicate()
    assert "on 4 x cpu" in found[3], found
    assert (mesh.usable_cores() < 4) == found[4].startswith("4 devices share "), found


def test_evaluate_prints_a_table(command_line, tiny_run):
    done = command_line("evaluate", tiny_run)
    assert done.returncode == 0, done.stderr
    for word in ("train", "validation", "test", "loss", "accuracy", "class 0", "class 9", "1,100"):
        assert word in done.stdout


def test_shifts_that_are_too_large_are_refused_by_the_name_of_the_option(command_line, tiny_run):
    done = command_line("evaluate", tiny_run, "--tta-shift-pixels", 30)
    assert (
        done.stderr
        == "lstm-mnist: --tta-shift-pixels is 30, expected an integer from 0 to 7, a quarter of the image.\n"
    )


def test_evaluate_prints_json_and_warns_of_more_devices_than_cores(tiny_run):
    words = ["evaluate", tiny_run, "--json", "--checkpoint", "last", "--devices", "4"]
    done = programs.run(words, env=without_device_count())
    assert done.returncode == 0, done.stderr
    assert (mesh.usable_cores() < 4) == done.stderr.startswith("lstm-mnist: warning: 4 devices share "), done.stderr
    found = json.loads(done.stdout)
    metrics = json.loads((tiny_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["step"] == 45
    assert found["splits"]["test"]["accuracy"] == metrics["test_accuracy"]
    assert found["splits"]["validation"]["loss"] == pytest.approx(metrics["validation_loss"])
    assert list(found["splits"]["train"]["accuracy_by_class"]) == list("0123456789")


def test_resuming_a_complete_run_prints_that_it_is_complete(command_line, tiny_run):
    done = command_line("train", "--resume", tiny_run)
    assert done.returncode == 0
    assert "complete after 3 epochs; train longer with --epochs" in done.stdout


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_says_what_was_saved(command_line, monkeypatch, tmp_path):
    run_dir = tmp_path / "run"
    words = ["train", "smoke", *TINY_OPTIONS, "--run-dir", run_dir]
    for place, name, message in (
        (run, "load_same", "interrupted: nothing was saved yet, so start the run again with the same command"),
        (TrainingProgram, "compile", f"interrupted: no step was saved yet; begin with: {{}} --resume {run_dir}"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, lambda *_: signal.raise_signal(signal.SIGINT))
            done = command_line(*words)
        assert done.returncode == 128 + signal.SIGINT
        assert done.stderr == f"lstm-mnist: {message.format('lstm-mnist train')}\n"
    done = command_line("train", "--resume", run_dir)
    assert done.returncode == 0
    assert "may be too high" not in done.stdout


def test_a_loss_far_above_that_of_guessing_is_reported(command_line, tmp_path, empty_figures):
    words = [*TINY_OPTIONS, "--epochs", "1", "--learning-rate", "1000", "--run-dir", tmp_path / "run"]
    done = command_line("train", "smoke", *words)
    found = re.search(
        r"^no epoch is much better than guessing on validation: accuracy .*%, loss [\d.e+]+\n"
        r"  \(of the most frequent class .*%, of the classes' frequencies 2\.\d+\)\n"
        r"  the learning rate \(1000\) may be too high$",
        done.stdout,
        re.MULTILINE,
    )
    warning = found[0]
    for words in (["evaluate"], ["report", "--html", tmp_path / "page.html"]):
        assert f"{warning}\n" in command_line(*words, tmp_path / "run").stdout
    assert json.loads(command_line("evaluate", tmp_path / "run", "--json").stdout)["warning"] == warning
    assert f"<dt>warning</dt><dd>{html.escape(warning)}</dd>" in (tmp_path / "page.html").read_text("utf-8")


def test_a_sweep_in_which_no_run_learned_names_no_best_one(command_line, tmp_path):
    words = ["--epochs", "1", "--seeds", "2", "--learning-rate", "1e-9", f"{DIVERGING:g}"]
    done = command_line("sweep", "smoke", *ONE_LAYER, *words, "--run-dir", tmp_path / "sweep")
    assert done.returncode == 0, done.stderr
    assert "no epoch is much better than guessing on validation in 2 runs: 0, 1\n" in done.stdout
    assert "no run has learned anything (2 diverged): none is the best\n  sweep other learning rates" in done.stdout
    assert "best on validation" not in done.stdout
    assert "lstm-mnist evaluate" not in done.stdout


def test_a_sweep_its_best_run_and_resuming_it_and_one_run_of_it(command_line, tiny_sweep, tmp_path):
    rates = ["--seeds", "2", "--learning-rate", "1e-9", "0.02", "--hidden-features", "3", "4,6"]
    grid = tmp_path / "grid"
    done = command_line("sweep", "smoke", *TINY_DATA, "--epochs", "1", *rates, "--run-dir", grid)
    assert done.returncode == 0, done.stderr
    epoch = r"epoch 1/1  loss [\d.]+  validation +[\d.]+%  test .*\n  best of 2: learning_rate [\d.]+"
    assert re.search(epoch, done.stdout)
    assert "group 2 of 2: 4 runs at once of 2 settings, hidden_features 4,6" in done.stdout
    assert "8 of 8 runs done" in done.stdout
    # Those with the learning rate 1e-9, and perhaps others.
    assert re.search(
        r"^no epoch is much better than guessing on validation in \d runs: 0, 1, 2, 3", done.stdout, re.MULTILINE
    )
    assert f"the best run is {grid}/best" in done.stdout
    (suggested,) = re.findall("^  lstm-mnist (evaluate .*)$", done.stdout, re.MULTILINE)
    assert command_line(*shlex.split(suggested)).returncode == 0
    done = command_line("evaluate", grid / "5", "--json", "--checkpoint", "last")
    found = json.loads(done.stdout)
    lines = [json.loads(line) for line in (grid / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["member"] == 5]
    assert found["step"] == 15
    assert found["splits"]["test"]["accuracy"] == last["test_accuracy"]
    before = {path.name for path in grid.iterdir()}
    done = command_line("train", "--resume", grid / "5", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "resumed at step 15: 1 of 2 epochs are done" in done.stdout
    assert "epoch 2/2" in done.stdout
    assert {path.name for path in grid.iterdir()} - before == {"5"}
    config = json.loads((grid / "5" / "config.json").read_text())
    assert (config["config"]["seed"], config["config"]["epochs"], config["space"]) == (1, 2, None)
    assert config["config"]["optimizer"]["learning_rate"] == 0.02
    assert config["config"]["model"]["hidden_features"] == [3]
    seeds = shutil.copytree(tiny_sweep, tmp_path / "seeds")
    for command in ("train", "sweep"):
        done = command_line(command, "--resume", seeds)
        assert done.returncode == 0, done.stderr
        assert "complete after 3 epochs; train longer with --epochs" in done.stdout
    done = command_line("sweep", "--resume", seeds, "--epochs", "4")
    assert "epoch 4/4" in done.stdout
    assert "3 of 3 runs done" in done.stdout
    for words, message in [
        (["train", "--resume", seeds, "--seeds", "3"], "leave out --seeds"),
        (["sweep", "--resume", grid, "--b1", "0.8"], "leave out --b1"),
        (["sweep", "--resume", grid / "5"], f"is a single run: continue it with lstm-mnist train --resume {grid}/5"),
    ]:
        done = command_line(*words)
        assert done.returncode == 2
        assert message in done.stderr
