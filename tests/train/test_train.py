"""Whole runs: the files of a run folder, folders that are refused, full disks, early stopping, predictions."""

import dataclasses
import errno
import inspect
import json
import os
import resource
import shutil

import jax
import numpy as np
import programs
import pytest
from rich.console import Console
from runs import TINY, TINY_OPTIONS, best_of

from lstm_mnist_jax import load_run, train
from lstm_mnist_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from lstm_mnist_jax.data import load
from lstm_mnist_jax.data.sources import load_again
from lstm_mnist_jax.errors import ConfigError, RunError, UserError
from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.training.metrics import read_metrics
from lstm_mnist_jax.training.run import load_same
from lstm_mnist_jax.training.run_folder import FORMAT, lock, read_run_folder


def test_a_run_folder_holds_config_data_environment_and_metrics(tiny_run):
    epochs = read_metrics(tiny_run / "metrics.jsonl")
    assert [metrics.epoch for metrics in epochs] == [1, 2, 3]
    assert [metrics.step for metrics in epochs] == [15, 30, 45]  # 1000 // 64 steps an epoch
    assert epochs[-1].train_loss < epochs[0].train_loss
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    required = {"step", "epoch", "train_loss", "validation_accuracy", "test_accuracy", "seconds"}
    assert all(required <= line.keys() for line in lines)
    assert read_run_folder(tiny_run).config == TINY
    contents = json.loads((tiny_run / "config.json").read_text())
    assert contents["environment"]["jax"] == jax.__version__
    assert contents["data"]["class_names"] == list("0123456789")
    assert load_run(tiny_run).step == best_of(epochs).step


def test_tensorboard_gets_every_epoch(tiny_run):
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401  (the writer that made the files)
    from tensorboardX.proto import event_pb2

    values = {}
    for file in (tiny_run / "tensorboard").iterdir():
        data = file.read_bytes()
        while data:  # TFRecord: length, checksum, event, checksum
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                values.setdefault(value.tag, {})[event.step] = value.simple_value
    assert values["test/accuracy"].keys() == {15, 30, 45}
    assert values["train/loss"][15] == pytest.approx(read_metrics(tiny_run / "metrics.jsonl")[0].train_loss)


@pytest.mark.slow
def test_of_equal_epochs_the_earliest_is_the_best(tmp_path):
    unchanged = dataclasses.replace(TINY, optimizer=OptimizerConfig(learning_rate=1e-30))
    result = train(unchanged, tmp_path / "run")
    assert len({metrics.validation_accuracy for metrics in result.epochs}) == 1
    best = load_run(tmp_path / "run")
    assert (result.best.epoch, best.step) == (1, 15)
    # The checkpoint before a damaged one holds the same best weights.
    (tmp_path / "run" / "checkpoints" / "00000045" / "record.json").write_text("{}")
    again = load_run(tmp_path / "run")
    assert again.step == 15
    jax.tree.map(np.testing.assert_array_equal, again.params, best.params)
    with pytest.raises(RunError, match="has a damaged file"):
        load_run(tmp_path / "run", "last")


def test_a_path_where_orbax_cannot_save_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"has a '\[' in its path"):
        train(TINY, tmp_path / "run[1]")


def test_a_damaged_checkpoint_is_refused(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run, tmp_path / "run")
    (run_dir / "checkpoints" / "00000045" / "record.json").write_text("")
    for name in ("best", "last"):
        with pytest.raises(RunError, match=r"has a damaged file, record\.json\. Use --checkpoint 30 or 15\."):
            load_run(run_dir, name)


@pytest.mark.slow
def test_a_run_folder_in_use_is_refused(tmp_path):
    with lock(tmp_path), pytest.raises(RunError, match="is in use by another run"):
        train(TINY, tmp_path)
    assert train(dataclasses.replace(TINY, epochs=1), tmp_path).trained


def test_a_folder_with_something_in_it_is_refused_and_kept(tiny_run, tmp_path):
    with pytest.raises(RunError, match=r"already holds a run\. Continue it with --resume"):
        train(TINY, tiny_run)
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(RunError, match="holds other files"):
        train(TINY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="is a file, expected the name of a folder"):
        train(TINY, tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            None,
            "has no config.json. The run in it ended before its first step was saved: start it again with --run-dir",
        ),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": 99, "environment": {"lstm-mnist-jax": "9.9"}}', "is a run folder of format 99.*version 9.9"),
        (
            f'{{"format": {FORMAT}, "config": {{}}, "data": {{}}}}',
            "damaged or of another version: the config lacks augmentation",
        ),
    ],
)
def test_folders_without_a_valid_config_are_refused(tmp_path, contents, message):
    if contents is None:
        (tmp_path / ".lock").touch()
    else:
        (tmp_path / "config.json").write_text(contents)
    for use in (load_run, lambda path: train(TINY, path, resume=True)):
        with pytest.raises(RunError, match=message):
            use(tmp_path)


FULL_DISKS = """
import resource, signal, sys
from lstm_mnist_jax.cli.main import main

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.dont_write_bytecode = True  # Python would leave damaged .pyc files
for limit in ("300", "3300", "12000"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        main([*sys.argv[1:], "--run-dir", limit])
    except SystemExit as end:
        print(end.code, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits on file sizes")
def test_a_full_disk_is_an_error_and_loses_no_checkpoint(tmp_path):
    """Files that cannot grow stand for a full disk: the config, then the metrics, then the checkpoint fails."""
    options = [*TINY_OPTIONS, "--hidden-features", "32", "--epochs", 1, "--no-compilation-cache"]
    options += ["--validation-examples", 100]  # too few for novelty.npz, which is larger than these files
    done = programs.run(["train", *options], code=FULL_DISKS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    messages, codes = (done.stderr.splitlines()[place::2] for place in range(2))
    assert codes == ["2"] * 3, done.stderr
    expected = ("300 cannot be written to", "could not be written", "The checkpoint of step 15 could not be")
    data = dataclasses.replace(TINY.data, validation_examples=100)
    config = dataclasses.replace(TINY, epochs=1, data=data, model=ModelConfig(hidden_features=(32,)))
    for path, found, message in zip(("300", "3300", "12000"), messages, expected, strict=True):
        assert message in found
        train(config, tmp_path / path, resume=(tmp_path / path / "config.json").exists())
        assert load_run(tmp_path / path, "last").step == 15


LIBRARY = """
import dataclasses
import jax
from runs import TINY
from lstm_mnist_jax import load_run, sweep, train
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.sweeps import Space

jax.config.update("jax_enable_x64", True)
before = dict(jax.config.values)
config = dataclasses.replace(TINY, epochs=1, model=ModelConfig(hidden_features=(3,)))
assert before["jax_num_cpu_devices"] == -1
train(config, "run")
sweep(config, Space(seeds=2), "sweep")
load_run("run").evaluate()
assert dict(jax.config.values) == before
"""


@pytest.mark.slow
def test_library_functions_run_in_64_bit_mode_and_change_no_option_of_jax(tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    done = programs.run(code=LIBRARY, env=env | {"JAX_PLATFORMS": "cpu"}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")  # nor a warning of orbax
    assert load_run(tmp_path / "run").step == load_run(tmp_path / "sweep" / "1").step == 15


def test_predictions_are_those_that_the_evaluation_counts(tiny_run):
    run = load_run(tiny_run)
    test = load(**vars(TINY.data)).test
    labels, probabilities = run.predict(test.images[:700])
    assert probabilities.shape == (700, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(run.predict(test.images[:3].astype(np.float64) / 255)[0], labels[:3])
    assert run.predict(test.images[:0])[1].shape == (0, 10)
    everything, _ = run.predict(test.images)
    accuracy = best_of(read_metrics(tiny_run / "metrics.jsonl")).test_accuracy
    assert (everything == test.labels).mean() == run.evaluate()["test"].accuracy == accuracy


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((28, 28), np.uint8),
        np.zeros((1, 28, 27), np.uint8),
        np.full((1, 28, 28), 256),
        np.full((1, 28, 28), 255.0),
        np.full((1, 28, 28), -0.1),
        np.full((1, 28, 28), np.nan),
        np.array([["a"]]),
    ],
)
def test_arrays_that_are_not_images_are_refused(tiny_run, images):
    with pytest.raises(UserError, match=r"Images of shape|array of images"):
        load_run(tiny_run).predict(images)


@pytest.mark.parametrize("name", ["worst", 16, "1e3"])
def test_missing_checkpoints_are_refused(tiny_run, name):
    with pytest.raises(
        RunError, match=r"has no checkpoint .* expected best, last, or one of the steps \[15, 30, 45\]"
    ) as caught:
        load_run(tiny_run, name)
    assert str(tiny_run) in str(caught.value)
    assert load_run(tiny_run, 30).step == load_run(tiny_run, "30").step == 30


@pytest.mark.slow
def test_early_stopping_once_validation_has_not_improved(tmp_path):
    patient = dataclasses.replace(TINY, epochs=60, early_stopping_patience=1)
    result = train(patient, tmp_path / "run")
    accuracies = [metrics.validation_accuracy for metrics in result.epochs]
    assert 1 < len(accuracies) < 60
    assert accuracies[-1] <= max(accuracies[:-1])
    assert accuracies[:-1] == sorted(accuracies[:-1])
    assert result.best.epoch == len(accuracies) - 1
    again = train(patient, tmp_path / "run", resume=True)
    assert not again.trained
    more = train(dataclasses.replace(patient, early_stopping_patience=2), tmp_path / "run", resume=True)
    assert more.trained


@pytest.mark.slow
def test_test_time_augmentation_is_the_mean_of_probabilities(tiny_run):
    run = load_run(tiny_run)
    test = load(**vars(TINY.data)).test
    padded = np.pad(test.images, [(0, 0), (1, 1), (1, 1)])
    moved = [run.predict(padded[:, y : y + 28, x : x + 28])[1] for y in range(3) for x in range(3)]
    probabilities = np.mean(moved, axis=0)
    evaluate = inspect.unwrap(TrainedRun.evaluate)  # without the tests' type checks
    found = evaluate(run, tta_shift_pixels=np.int64(1))["test"]
    assert found.accuracy == pytest.approx((probabilities.argmax(axis=1) == test.labels).mean(), abs=2e-4)
    expected = -np.log(probabilities[np.arange(len(test)), test.labels]).mean()
    assert found.loss == pytest.approx(expected, rel=1e-3)
    for shifts in (-1, 8, 1.0, True):
        with pytest.raises(
            ConfigError, match=f"tta_shift_pixels is {shifts}, expected an integer from 0 to 7, a quarter"
        ):
            evaluate(run, tta_shift_pixels=shifts)


def test_what_the_training_images_look_like_is_kept(tiny_run, tiny_sweep, tmp_path, monkeypatch, capsys):
    """Once for a sweep; a resumed run of an older version gets it too. A full disk does not end a run."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "novelty.npz").unlink()
    assert load_run(tmp_path / "run").novelty is None
    with monkeypatch.context() as patch:
        patch.setattr("lstm_mnist_jax.data.novelty.save", full)
        assert train(TINY, tmp_path / "run", resume=True, console=Console(width=200)).best is not None
    assert "run cannot be written to: No space left on device. Its predictions have no warn" in capsys.readouterr().out
    train(TINY, tmp_path / "run", resume=True)
    images = load().test.images[:9]
    scores = [load_run(path).novelty.scores(images) for path in (tiny_run, tmp_path / "run", tiny_sweep / "1")]
    np.testing.assert_array_equal(scores[1], scores[0])
    np.testing.assert_array_equal(scores[2], scores[0])
    assert not (tiny_sweep / "1").exists()


def test_a_validation_split_that_is_smaller_than_asked_for_is_the_same_when_it_is_loaded_again(tmp_path):
    labels = [15, 16, 18, 15, 1, 12, 11, 14, 2, 7, 10, 5, 19, 9, 17, 4, 3, 0, 6, 13, 8]  # of one class two, else one
    images = np.arange(21 * 64, dtype=np.uint32).reshape(21, 8, 8).astype(np.uint8)
    images[:, 0, 0] = np.arange(21)
    np.savez(tmp_path / "few.npz", x_train=images, y_train=labels, x_test=images[:3], y_test=labels[:3])
    config, dataset = load_same(Config(data=DataConfig(str(tmp_path / "few.npz"))), None)
    assert (len(dataset.validation), config.data.validation_examples) == (1, 2)
    assert load_again(config.data, config.data).fingerprint() == dataset.fingerprint()
