"""Whole trainings: what a run folder holds, resuming to the last bit, signals, kills, full disks, divergence."""

import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_sources import write_folder

from lstm_mnist_jax import load_run, train
from lstm_mnist_jax.config import AugmentationConfig, Config, DataConfig, ModelConfig, OptimizerConfig
from lstm_mnist_jax.data import load
from lstm_mnist_jax.errors import ConfigError, RunError, UserError
from lstm_mnist_jax.reporting.metrics import read_metrics
from lstm_mnist_jax.training import Training, checkpoint
from lstm_mnist_jax.training.run_folder import FORMAT, lock, read_run_folder

SMALL = Config(
    epochs=3,
    data=DataConfig(validation_examples=200, train_examples=1_000),
    model=ModelConfig(hidden_features=(4, 6)),
)
OPTIONS = ["--validation-examples", "200", "--train-examples", "1000", "--hidden-features", "4", "6"]
TIMES = ("seconds", "examples_per_second")


def outcome(run_dir):
    """All that a run leaves and that must not depend on interruptions: final parameters, metrics, the best."""
    last = load_run(run_dir, "last")
    epochs = [
        {name: value for name, value in dataclasses.asdict(metrics).items() if name not in TIMES}
        for metrics in read_metrics(Path(run_dir) / "metrics.jsonl")
    ]
    best = load_run(run_dir, "best")
    leaves = [np.asarray(leaf).tobytes() for run in (last, best) for leaf in jax.tree.leaves(run.params)]
    return last.step, best.step, epochs, leaves


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return train(SMALL, run_dir)


def command(*arguments):
    return [sys.executable, "-m", "lstm_mnist_jax", "train", *map(str, arguments)]


def test_a_run_folder_holds_what_it_should(uninterrupted):
    run_dir, result = uninterrupted.run_dir, uninterrupted
    assert [metrics.epoch for metrics in result.epochs] == [1, 2, 3]
    assert [metrics.step for metrics in result.epochs] == [15, 30, 45]  # 1000 // 64 steps an epoch
    assert result.stopped_by is None
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    required = {"step", "epoch", "train_loss", "validation_accuracy", "test_accuracy", "seconds"}
    assert all(required <= line.keys() for line in lines)
    assert read_run_folder(run_dir).config == SMALL
    contents = json.loads((run_dir / "config.json").read_text())
    assert contents["environment"]["jax"] == jax.__version__
    assert contents["data"]["class_names"] == list("0123456789")
    assert result.best == max(result.epochs, key=lambda metrics: metrics.validation_accuracy)
    assert load_run(run_dir).step == result.best.step


def test_tensorboard_gets_every_epoch(uninterrupted):
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401  (the writer that made the files)
    from tensorboardX.proto import event_pb2

    values = {}
    for file in (uninterrupted.run_dir / "tensorboard").iterdir():
        data = file.read_bytes()
        while data:  # TFRecord: length, checksum, event, checksum
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                values.setdefault(value.tag, {})[event.step] = value.simple_value
    assert values["test/accuracy"].keys() == {15, 30, 45}
    assert values["train/loss"][15] == pytest.approx(uninterrupted.epochs[0].train_loss)


@pytest.mark.parametrize("stop_at", [7, 15, 16, 44])
def test_stopped_by_a_signal_and_resumed_it_is_the_same_run(uninterrupted, tmp_path, monkeypatch, stop_at):
    """At a given step: within an epoch, on its end, just after it, just before the end of the run."""

    run_steps = Training.run_steps

    def run_some(self, state, n):
        state = run_steps(self, state, min(n, max(1, stop_at - int(state.step))))
        if int(state.step) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return state

    monkeypatch.setattr(Training, "run_steps", run_some)
    stopped = train(SMALL, tmp_path / "run")
    assert stopped.stopped_by == signal.SIGTERM
    assert checkpoint.finished_steps(tmp_path / "run" / "checkpoints")[-1] == stop_at
    monkeypatch.undo()
    assert train(SMALL, tmp_path / "run", resume=True).trained
    assert outcome(tmp_path / "run") == outcome(uninterrupted.run_dir)


def test_killed_at_any_moment_and_resumed_it_is_the_same_run(tmp_path):
    """Kills while steps are made and checkpoints written, until four resumes from a checkpoint were killed too."""
    options = [*OPTIONS, "--epochs", 120, "--checkpoint-minutes", 1e-6]
    subprocess.run(command(*options, "--run-dir", tmp_path / "whole"), check=True, timeout=240)
    random.seed(0)
    run_dir, resumed_at, latest = tmp_path / "killed", [], 1.2
    while len(resumed_at) < 4:
        arguments = ["--resume", run_dir] if run_dir.exists() else [*options, "--run-dir", run_dir]
        process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True)
        latest *= 1.3  # unless it comes as far as to resume: where imports are slow, nothing is saved so early
        for line in process.stdout:
            if line.startswith("resumed at step"):
                latest /= 1.3
                resumed_at.append(int(line.split()[3].rstrip(":").replace(",", "")))
            if "ready in" in line:
                break
        time.sleep(random.uniform(0.3, latest))
        assert process.poll() is None, f"over before it was killed, having resumed at {resumed_at}"
        process.kill()
        process.communicate()
    assert resumed_at == sorted(resumed_at)
    subprocess.run(command("--resume", run_dir), check=True, timeout=240)
    assert outcome(run_dir) == outcome(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number):
    options = [*OPTIONS, "--epochs", 100_000, "--run-dir", tmp_path / "run"]
    process = subprocess.Popen(command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert errors == ""
    assert output.splitlines()[-1].endswith(f"go on with: lstm-mnist train --resume {tmp_path / 'run'}")
    assert checkpoint.newest_sound_step(tmp_path / "run" / "checkpoints") is not None


def test_resuming_over_damaged_checkpoints_says_so_and_ends_the_same(uninterrupted, tmp_path, capsys):
    from rich.console import Console

    train(SMALL, tmp_path / "run")
    for step in (30, 45):
        (tmp_path / "run" / "checkpoints" / f"{step:08d}" / "record.json").write_text("{}")
    train(SMALL, tmp_path / "run", resume=True, console=Console())
    told = capsys.readouterr().out
    assert "Checkpoint 00000045 has a damaged file, record.json; it is set aside as damaged-00000045." in told
    assert "resumed at step 15: 1 of 3 epochs are done" in told
    assert outcome(tmp_path / "run") == outcome(uninterrupted.run_dir)


def test_without_any_sound_checkpoint_it_starts_again(uninterrupted, tmp_path):
    train(SMALL, tmp_path / "run")
    for sums in (tmp_path / "run").rglob(checkpoint.SUMS):
        sums.write_text("")
    train(SMALL, tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == outcome(uninterrupted.run_dir)


def test_a_longer_run_goes_on_from_a_shorter_one(uninterrupted, tmp_path):
    train(dataclasses.replace(SMALL, epochs=2), tmp_path / "run")
    result = train(SMALL, tmp_path / "run", resume=True)
    assert [metrics.epoch for metrics in result.epochs] == [1, 2, 3]
    assert outcome(tmp_path / "run") == outcome(uninterrupted.run_dir)
    assert not train(SMALL, tmp_path / "run", resume=True).trained


def test_a_run_cannot_become_shorter_than_it_is(uninterrupted):
    with pytest.raises(ConfigError, match=r"epochs is 2, but .* was trained for 3 already"):
        train(dataclasses.replace(SMALL, epochs=2), uninterrupted.run_dir, resume=True)
    assert read_run_folder(uninterrupted.run_dir).config == SMALL


def test_metrics_survive_a_damaged_line(tmp_path):
    train(dataclasses.replace(SMALL, epochs=2), tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    first, second = file.read_text().splitlines()
    file.write_bytes(b'\xff{"step": "x"}\n' + (first.replace("15", '"x"') + "\n" + second + "\n").encode())
    result = train(SMALL, tmp_path / "run", resume=True)
    assert [metrics.epoch for metrics in result.epochs] == [2, 3]


def test_a_path_where_orbax_cannot_save_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"has a '\[' in its path"):
        train(SMALL, tmp_path / "run[1]")


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_damaged_checkpoint_is_not_used_in_silence(tmp_path, name):
    train(SMALL, tmp_path / "run")
    step = load_run(tmp_path / "run", name).step
    (tmp_path / "run" / "checkpoints" / f"{step:08d}" / "record.json").write_text("")
    with pytest.raises(RunError, match=r"has a damaged file, record\.json\. Name another by its step: \["):
        load_run(tmp_path / "run", name)


def test_a_resumed_run_keeps_its_config(uninterrupted):
    changed = dataclasses.replace(SMALL, batch_size=32, optimizer=OptimizerConfig(learning_rate=0.1))
    before = outcome(uninterrupted.run_dir)
    with pytest.raises(ConfigError) as caught:
        train(changed, uninterrupted.run_dir, resume=True)
    assert "batch_size is 64 in the run, 32 was asked for" in str(caught.value)
    assert "optimizer.learning_rate is 0.01 in the run, 0.1 was asked for" in str(caught.value)
    assert outcome(uninterrupted.run_dir) == before


def test_a_resumed_run_keeps_its_data(tmp_path):
    write_folder(tmp_path / "data")
    config = dataclasses.replace(
        SMALL, batch_size=4, epochs=1, data=DataConfig(source=str(tmp_path / "data"), validation_examples=5)
    )
    train(config, tmp_path / "run")
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(tmp_path / "moved")))
    (tmp_path / "data").rename(tmp_path / "moved")
    assert not train(moved, tmp_path / "run", resume=True).trained
    write_folder(tmp_path / "moved", train_labels=np.arange(20, dtype=np.uint8) * 2 % 3)
    with pytest.raises(RunError, match="The data are not those"):
        train(moved, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="The data are not those"):
        load_run(tmp_path / "run").evaluate()


def test_a_run_folder_in_use_is_refused(tmp_path):
    with lock(tmp_path), pytest.raises(RunError, match="is in use by another training"):
        train(SMALL, tmp_path)
    assert train(dataclasses.replace(SMALL, epochs=1), tmp_path).trained


def test_a_folder_with_something_in_it_is_refused_and_kept(uninterrupted, tmp_path):
    with pytest.raises(RunError, match=r"already holds a run\. Go on with it by --resume"):
        train(SMALL, uninterrupted.run_dir)
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(RunError, match="holds other files"):
        train(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="is a file, expected the name of a folder"):
        train(SMALL, tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "has no config.json"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 99, "environment": {"lstm-mnist-jax": "9.9"}}', "is a run folder of format 99.*version 9.9"),
        (
            f'{{"format": {FORMAT}, "config": {{}}, "data": {{}}}}',
            "damaged or of another version: the config lacks augmentation",
        ),
    ],
)
def test_what_is_no_run_folder_is_refused(tmp_path, contents, message):
    if contents is not None:
        (tmp_path / "config.json").write_text(contents)
    for use in (load_run, lambda path: train(SMALL, path, resume=True)):
        with pytest.raises(RunError, match=message):
            use(tmp_path)


def test_divergence_stops_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    train(dataclasses.replace(SMALL, epochs=1), tmp_path / "run")
    sound = checkpoint.load_state

    def poisoned(path, abstract_state):
        state = sound(path, abstract_state)
        state.params["dense"]["bias"] = state.params["dense"]["bias"] * np.nan
        return state

    monkeypatch.setattr(checkpoint, "load_state", poisoned)
    with pytest.raises(RunError, match=r"not a finite number any more at step 15 \(epoch 2\).* that of step 15"):
        train(SMALL, tmp_path / "run", resume=True)
    monkeypatch.undo()
    assert checkpoint.newest_sound_step(tmp_path / "run" / "checkpoints") == 15


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits on file sizes")
@pytest.mark.parametrize(
    ("bytes_a_file", "message"),
    [
        (300, "run cannot be written to"),
        (2_700, "could not be written"),
        (12_000, "The checkpoint of step 15 could not be"),
    ],
)
def test_a_disk_that_takes_no_more_is_an_error_and_loses_nothing(tmp_path, bytes_a_file, message):
    """Files that cannot grow stand for a full disk: the config, then the metrics, then the checkpoint fails."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_a_file}, {bytes_a_file}));"
    limit += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    program = f"{limit} from lstm_mnist_jax.cli import main; main()"
    options = ["train", *OPTIONS, "--run-dir", str(tmp_path / "run"), "--no-compilation-cache"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options, "--hidden-features", "32"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    begun = (tmp_path / "run" / "config.json").exists()
    again = ["--resume", tmp_path / "run"] if begun else [*OPTIONS, "--run-dir", tmp_path / "run"]
    subprocess.run(command(*again), check=True, timeout=120)
    assert load_run(tmp_path / "run", "last").step == 150


def test_it_trains_in_64_bit_mode(tmp_path):
    done = subprocess.run(
        command(*OPTIONS, "--epochs", 1, "--run-dir", tmp_path / "run"),
        env=os.environ | {"JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert load_run(tmp_path / "run").step == 15


def test_predictions_are_those_that_the_evaluation_counts(uninterrupted):
    run = load_run(uninterrupted.run_dir)
    test = load(validation_examples=200, train_examples=1_000).test
    labels, probabilities = run.predict(test.images[:1_500])
    assert probabilities.shape == (1_500, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(run.predict(test.images[:3].astype(np.float64) / 255)[0], labels[:3])
    assert run.predict(test.images[:0])[1].shape == (0, 10)
    everything, _ = run.predict(test.images)
    assert (everything == test.labels).mean() == run.evaluate()["test"].accuracy == uninterrupted.best.test_accuracy


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((28, 28), np.uint8),
        np.zeros((1, 28, 27), np.uint8),
        np.zeros((1, 28, 28), np.int64),
        np.full((1, 28, 28), 255.0),
        np.full((1, 28, 28), -0.1),
        np.full((1, 28, 28), np.nan),
        np.array([["a"]]),
    ],
)
def test_images_that_are_none_are_refused(uninterrupted, images):
    with pytest.raises(UserError, match="Images"):
        load_run(uninterrupted.run_dir).predict(images)


@pytest.mark.parametrize("name", ["worst", 16, "1e3"])
def test_checkpoints_that_are_none_are_refused(uninterrupted, name):
    with pytest.raises(RunError, match=r"has no checkpoint .* expected best, last, or one of the steps \[15, 30, 45\]"):
        load_run(uninterrupted.run_dir, name)
    assert load_run(uninterrupted.run_dir, 30).step == load_run(uninterrupted.run_dir, "30").step == 30


RECIPE = dataclasses.replace(
    SMALL,
    batch_ramp=(1,),
    label_smoothing=0.1,
    optimizer=OptimizerConfig(weight_decay=0.01, ema_decay=0.9, clip_norm=1.0, schedule="cosine"),
    augmentation=AugmentationConfig(rotation_degrees=10.0, shift_pixels=1.0, elastic_pixels=0.5),
)


def test_a_recipe_with_everything_resumes_to_the_last_bit(tmp_path, monkeypatch):
    whole = train(RECIPE, tmp_path / "whole")
    assert [metrics.learning_rate for metrics in whole.epochs] == sorted(
        (metrics.learning_rate for metrics in whole.epochs), reverse=True
    )
    original, calls = Training.run_steps, []

    def interrupted(training, state, n):
        calls.append(n)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(training, state, min(n, 7))

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run_steps", interrupted)
        assert train(RECIPE, tmp_path / "part").stopped_by == signal.SIGTERM
    train(RECIPE, tmp_path / "part", resume=True)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "part")


def test_what_is_evaluated_and_loaded_is_the_mean_of_the_parameters(tmp_path):
    config = dataclasses.replace(SMALL, epochs=1, optimizer=OptimizerConfig(ema_decay=0.99))
    result = train(config, tmp_path / "run")
    found = load_run(tmp_path / "run").evaluate()["test"].accuracy
    assert found == pytest.approx(result.epochs[-1].test_accuracy, abs=1e-4)
    plain = train(dataclasses.replace(SMALL, epochs=1), tmp_path / "plain")
    assert abs(found - plain.epochs[-1].test_accuracy) > 1e-3


def test_a_training_stops_early_once_validation_has_not_improved(tmp_path):
    patient = dataclasses.replace(SMALL, epochs=30, early_stop_epochs=1, optimizer=OptimizerConfig(learning_rate=0.3))
    result = train(patient, tmp_path / "run")
    accuracies = [metrics.validation_accuracy for metrics in result.epochs]
    assert 1 < len(accuracies) < 30
    assert accuracies[-1] <= max(accuracies[:-1])
    assert accuracies[:-1] == sorted(accuracies[:-1])
    assert result.best.epoch == len(accuracies) - 1
    again = train(patient, tmp_path / "run", resume=True)
    assert not again.trained
    more = train(dataclasses.replace(patient, early_stop_epochs=2), tmp_path / "run", resume=True)
    assert more.trained


def test_a_run_over_permuted_pixels_holds_their_order(tmp_path):
    config = dataclasses.replace(
        SMALL, epochs=1, model=ModelConfig("permuted", sequence_length=28, permutation_seed=5, hidden_features=(4,))
    )
    train(config, tmp_path / "run")
    order = json.loads((tmp_path / "run" / "permutation.json").read_text())
    assert order == np.random.RandomState(5).permutation(784).tolist()


def test_averages_over_shifts_are_the_means_of_their_probabilities(uninterrupted):
    run = load_run(uninterrupted.run_dir)
    test = load(**vars(SMALL.data)).test
    padded = np.pad(test.images, [(0, 0), (1, 1), (1, 1)])
    moved = [run.predict(padded[:, y : y + 28, x : x + 28])[1] for y in range(3) for x in range(3)]
    probabilities = np.mean(moved, axis=0)
    found = run.evaluate(average_shifts=1)["test"]
    assert found.accuracy == pytest.approx((probabilities.argmax(axis=1) == test.labels).mean(), abs=2e-4)
    expected = -np.log(probabilities[np.arange(len(test)), test.labels]).mean()
    assert found.loss == pytest.approx(expected, rel=1e-3)
    for shifts in (-1, 8):
        with pytest.raises(ConfigError, match=f"average_shifts is {shifts}, expected 0 to 7 pixels"):
            run.evaluate(average_shifts=shifts)
