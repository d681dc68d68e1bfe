"""A reader of the output that goes away, as `head` does: no error, and no run is lost."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import programs
import pytest
from runs import TINY_OPTIONS

from lstm_mnist_jax import load
from lstm_mnist_jax.cli.parsing import OutputConsole, TrainingConsole
from lstm_mnist_jax.progress import say
from lstm_mnist_jax.training import checkpoint


def test_a_pipe_closed_by_its_reader_is_no_error(tiny_run, tmp_path):
    np.save(tmp_path / "many.npy", load().test.images[:600])  # whose answers do not fit into a pipe
    program = programs.Program(["predict", tiny_run, tmp_path / "many.npy", "--json"])
    assert program.stdout.readline().startswith('{"file')
    program.stdout.close()
    assert program.stderr.read() == ""
    program.stderr.close()
    while program.poll() is None:  # it has closed its streams
        time.sleep(0.01)
    assert program.returncode == 128 + signal.SIGPIPE


@pytest.mark.slow
def test_a_run_is_saved_and_stops_when_its_output_is_closed(tmp_path):
    """As by `| head`."""
    program = programs.Program(
        ["train", "smoke", *TINY_OPTIONS[2:], "--epochs", 100_000, "--run-dir", tmp_path / "run"]
    )
    for line in program.stdout:
        if line.startswith("epoch"):
            break
    program.stdout.close()
    assert program.stderr.read() == "lstm-mnist: the output is closed; the run is saved and stops (--resume goes on)\n"
    program.stderr.close()
    while program.poll() is None:
        time.sleep(0.01)
    assert program.returncode == 128 + signal.SIGHUP
    epochs = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert checkpoint.newest_sound_step(tmp_path / "run" / "checkpoints") >= 15 * epochs > 0


@pytest.fixture
def ignored_hang_up():
    """As under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, former)


@pytest.fixture
def default_hang_up():
    """As in a terminal, also where the tests run under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


def test_a_closed_console_of_a_command_that_does_not_train(default_hang_up):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed_pipe:
        for console in (OutputConsole, TrainingConsole):  # of which the second has nothing to save
            with pytest.raises(BrokenPipeError):
                say(console(file=closed_pipe), "a line")


def test_training_goes_on_with_a_closed_console_under_nohup(capfd, ignored_hang_up):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed_pipe:
        console = TrainingConsole(file=closed_pipe)
        say(console, "a line")
        say(console, "another")
    assert capfd.readouterr() == ("", "lstm-mnist: the output is closed; the training run goes on without it\n")


@pytest.mark.parametrize("words", [["--version"], ["--help"], []])
def test_closed_standard_output_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed_pipe:
        done = subprocess.run(
            [sys.executable, "-m", "lstm_mnist_jax", *words], stdout=closed_pipe, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
