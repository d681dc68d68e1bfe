"""Runs stopped by signals, errors and damaged files, and resumed: to the last bit the run without a stop."""

import dataclasses
import json
import shutil
import signal

import jax
import jaxlib
import numpy as np
import pytest
from programs import Program
from runs import FIRST_OF_MNIST, TINY, TINY_OPTIONS, best_of, outcome

from lstm_mnist_jax import load_run, train
from lstm_mnist_jax.config import OptimizerConfig
from lstm_mnist_jax.errors import ConfigError, RunError, UserError
from lstm_mnist_jax.training import checkpoint, run_folder
from lstm_mnist_jax.training.metrics import read_metrics
from lstm_mnist_jax.training.run_folder import read_run_folder


@pytest.fixture
def run_dir(tiny_run, tmp_path):
    """A copy of the tiny run, which may be changed."""
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.mark.slow
def test_stopped_by_signals_made_longer_and_resumed_it_is_the_same_run(tiny_run, tmp_path, stop_at):
    """Stopped within an epoch, on its end, just after it, and just before the end of the run."""
    run_dir = tmp_path / "run"

    def stopped_at(step, config):
        stop_at(step)
        stopped = train(config, run_dir, resume=run_dir.exists())
        assert stopped.stopped_by == signal.SIGTERM
        assert checkpoint.finished_steps(run_dir / "checkpoints")[-1] == step

    shorter = dataclasses.replace(TINY, epochs=2)
    for step in (7, 15, 16):
        stopped_at(step, shorter)
    stop_at(None)
    complete = train(shorter, run_dir, resume=True)
    assert complete.trained
    assert complete.stopped_by is None
    assert [metrics.epoch for metrics in complete.epochs] == [1, 2]
    stopped_at(44, TINY)
    stop_at(None)
    longer = train(TINY, run_dir, resume=True)
    assert longer.trained
    assert [metrics.epoch for metrics in longer.epochs] == [1, 2, 3]
    assert longer.best == best_of(longer.epochs)
    assert outcome(run_dir) == outcome(tiny_run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_prints_the_command_to_resume(tmp_path, number):
    program = Program(["train", *TINY_OPTIONS, "--epochs", 100_000, "--run-dir", tmp_path / "run"])
    for line in program.stdout:
        if line.startswith("epoch"):
            break
    program.send_signal(number)
    output, errors = program.communicate(timeout=60)
    assert program.returncode == 128 + number, errors
    assert errors == ""
    assert output.endswith(f"continue with:\n  lstm-mnist train --resume {tmp_path / 'run'}\n")
    assert checkpoint.newest_sound_step(tmp_path / "run" / "checkpoints") is not None


def test_resuming_over_damaged_checkpoints_reports_them_and_gives_the_same_result(tiny_run, run_dir, capsys):
    from rich.console import Console

    for step in (30, 45):
        (run_dir / "checkpoints" / f"{step:08d}" / "record.json").write_text("{}")
    train(TINY, run_dir, resume=True, console=Console())
    printed = capsys.readouterr().out
    assert "Checkpoint 00000045 has a damaged file, record.json; it is set aside as damaged-00000045." in printed
    assert "resumed at step 15: 1 of 3 epochs are done" in printed
    assert outcome(run_dir) == outcome(tiny_run)


def test_a_resumed_run_prints_what_else_decides_its_last_bits(run_dir, capsys):
    from rich.console import Console

    contents = json.loads((run_dir / "config.json").read_text())
    former = {"x64": "True", "devices": "8", "matmul_precision": "default", "jaxlib": "0.9"}
    (run_dir / "config.json").write_text(json.dumps(contents | {"environment": contents["environment"] | former}))
    train(TINY, run_dir, resume=True, console=Console())
    printed = capsys.readouterr().out
    for line in (
        "jax_enable_x64 was True, is False",
        f"number of devices was 8, is {jax.device_count()}",
        "jax_default_matmul_precision was default, is highest",
        f"version of jaxlib was 0.9, is {jaxlib.__version__}",
        "The result may differ in rounding from that of a run without interruption.",
    ):
        assert f"\n{line}\n" in printed
    assert printed.count(" was ") == 4
    # It was complete: what trained it stays on record.
    assert json.loads((run_dir / "config.json").read_text())["environment"]["devices"] == "8"


def test_every_part_of_the_environment_that_decides_the_last_bits_is_compared():
    now = run_folder.environment(2)
    assert run_folder.environment_changes(now, now) == []
    assert run_folder.environment_changes({}, now) == []  # of an older version
    for name in run_folder.DECISIVE:
        found = run_folder.environment_changes(now | {name: "other"}, now)
        assert len(found) == 2, name
        assert found[0].endswith(f" was other, is {now[name] or 'not set'}")
    changed = run_folder.environment_changes(now | {"recurrence": "other", "kernel": "other"}, now)
    assert len(changed) == 2  # of which one follows from the other
    assert run_folder.environment(1) | {"date": ""} != now | {"date": ""}


def test_on_epoch_gets_the_metrics_and_an_exception_in_it_stops_the_run_saved(tiny_run, tmp_path):
    seen = []

    def on_epoch(metrics, run_dir):
        seen.append((metrics, run_dir))
        if len(seen) == 2:
            raise KeyError("full")

    with pytest.raises(RunError, match=r"on_epoch failed with KeyError: 'full', after epoch 2\. .* saved in") as caught:
        train(TINY, tmp_path, on_epoch=on_epoch)
    assert isinstance(caught.value.__cause__, KeyError)
    assert checkpoint.newest_sound_step(tmp_path / "checkpoints") == 30
    train(TINY, tmp_path, resume=True, on_epoch=on_epoch)
    assert [metrics for metrics, _ in seen] == read_metrics(tmp_path / "metrics.jsonl")
    assert {path for _, path in seen} == {tmp_path}
    assert outcome(tmp_path) == outcome(tiny_run)


@pytest.mark.slow
def test_without_any_sound_checkpoint_it_starts_again(tiny_run, run_dir):
    for sums in run_dir.rglob(checkpoint.SUMS):
        sums.write_text("")
    assert train(TINY, run_dir, resume=True).trained
    assert outcome(run_dir) == outcome(tiny_run)


@pytest.mark.slow
def test_a_smaller_patience_ends_a_run_that_is_resumed_within_an_epoch(tmp_path, stop_at):
    unchanged = dataclasses.replace(TINY, epochs=6, optimizer=OptimizerConfig(learning_rate=1e-30))
    stop_at(50)
    assert train(unchanged, tmp_path / "run").stopped_by == signal.SIGTERM
    stop_at(None)
    result = train(dataclasses.replace(unchanged, early_stopping_patience=2), tmp_path / "run", resume=True)
    assert ([metrics.epoch for metrics in result.epochs], result.best.epoch) == ([1, 2, 3, 4], 1)
    assert load_run(tmp_path / "run", "15").step == 15  # the best weights, by their step
    with pytest.raises(RunError, match=r"has no checkpoint '16'; expected best, last, or one of the steps"):
        load_run(tmp_path / "run", "16")


def test_a_run_cannot_become_shorter_than_it_is_which_is_found_before_the_data_are_loaded(run_dir, monkeypatch):
    monkeypatch.setattr("lstm_mnist_jax.training.run.load_again", None)
    with pytest.raises(ConfigError, match=r"epochs is 2, but .* was trained for 3 already. Use --epochs 3 or more"):
        train(dataclasses.replace(TINY, epochs=2), run_dir, resume=True)
    assert read_run_folder(run_dir).config == TINY


def test_metrics_survive_a_damaged_line(run_dir):
    file = run_dir / "metrics.jsonl"
    first, *others = file.read_text().splitlines()
    lines = [first.replace("15", '"x"'), *others]
    file.write_bytes(b'\xff{"step": "x"}\n' + "".join(line + "\n" for line in lines).encode())
    result = train(TINY, run_dir, resume=True)
    assert [metrics.epoch for metrics in result.epochs] == [2, 3]


def test_a_resumed_run_keeps_its_config(run_dir):
    changed = dataclasses.replace(TINY, batch_size=100_000, optimizer=OptimizerConfig(learning_rate=0.1))
    before = outcome(run_dir)
    with pytest.raises(ConfigError) as caught:
        train(changed, run_dir, resume=True)
    assert "batch_size is 64 in the run, 100000 was asked for" in str(caught.value)
    assert "optimizer.learning_rate is 0.01 in the run, 0.1 was asked for" in str(caught.value)
    assert outcome(run_dir) == before


@pytest.mark.slow
def test_a_resumed_run_keeps_its_data(run_dir, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(FIRST_OF_MNIST, moved)
    file = run_dir / "config.json"  # of version 0.4, in which data_dir was ignored
    file.write_text(file.read_text().replace('"data_dir": null', '"data_dir": "/gone"'))
    config = dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, source=str(moved), data_dir="/gone"))
    assert not train(config, run_dir, resume=True).trained
    labels = bytearray((moved / "train-labels-idx1-ubyte").read_bytes())
    labels[8 + 999] ^= 1  # behind the header: an example that it is trained on
    (moved / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(RunError, match="The data are not those"):
        train(config, run_dir, resume=True)
    with pytest.raises(UserError, match="The data are not those"):
        load_run(run_dir).evaluate()


def test_divergence_stops_names_the_step_and_keeps_the_last_good_checkpoint(run_dir, monkeypatch):
    sound = checkpoint.load_state

    def poisoned(path, abstract_state):
        states = sound(path, abstract_state)
        states.newest.params["dense"]["bias"] = states.newest.params["dense"]["bias"] * np.nan
        return states

    monkeypatch.setattr(checkpoint, "load_state", poisoned)
    with pytest.raises(RunError, match=r"not a finite number any more at step 45 \(epoch 4\).* that of step 45"):
        train(dataclasses.replace(TINY, epochs=4), run_dir, resume=True)
    monkeypatch.undo()
    assert checkpoint.newest_sound_step(run_dir / "checkpoints") == 45


@pytest.mark.slow
def test_a_network_with_dense_layers_and_other_activations_is_trained_and_extended(command_line, tmp_path):
    """(That it is resumed to the last bit: test_recipe.py.)"""
    options = ["--dense-features", "5", "--activation", "relu", "--dropout-rate", "0.1", "--pooling", "all"]
    whole = tmp_path / "whole"
    done = command_line("train", *TINY_OPTIONS, *options, "--epochs", "1", "--run-dir", whole)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "LSTM 4 (relu, sigmoid) -> LSTM 6 (relu, sigmoid) -> all steps -> dense 5 (relu) -> 10 classes" in done.stdout
    )
    assert done.stdout.count("slower than the layers with tanh and sigmoid") == 1
    assert train(dataclasses.replace(read_run_folder(whole).config, epochs=2), whole, resume=True).trained
    assert load_run(whole).params["dense_hidden"][0]["kernel"].shape == (28 * 6, 5)
