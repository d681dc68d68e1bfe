"""Model selection on validation, the same in runs, sweeps, early stopping, comparisons and tables of results."""

import csv
import dataclasses
import json
import math
import re
import shutil

import jax
import numpy as np
import pytest
from idx_files import write_folder
from rich.console import Console
from runs import TINY_OPTIONS

from lstm_mnist_jax import Execution, load_run, space_of, sweep, train
from lstm_mnist_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from lstm_mnist_jax.data import load
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.report.comparison import read_entries
from lstm_mnist_jax.statistics import mean_of
from lstm_mnist_jax.sweeps import next_settings
from lstm_mnist_jax.training import begin_run, checkpoint
from lstm_mnist_jax.training.metrics import EpochMetrics, Guessing, read_metrics, score
from lstm_mnist_jax.training.results import SettingResult, best_member, member_results, setting_results
from lstm_mnist_jax.training.run_folder import read_run_folder, write_config
from results import read_runs

TWO_SETTINGS = space_of({"learning_rate": [0.02, 0.03]}, seeds=2)


def least_loss(epochs):
    return min(epochs, key=lambda epoch: epoch.validation_loss)


@pytest.fixture(scope="module")
def overfitting(tmp_path_factory):
    """So few examples that the loss on validation soon rises, while the accuracy still does too; few to evaluate."""
    folder, digits = tmp_path_factory.mktemp("data") / "digits", load()
    arrays = {}
    for name, part in (("train", digits.train[:328]), ("t10k", digits.test[:50])):
        arrays |= {f"{name}_images": part.images, f"{name}_labels": part.labels.astype(np.uint8)}
    write_folder(folder, **arrays)
    return Config(
        epochs=20,
        batch_size=32,
        selection_metric="loss",
        tensorboard=False,
        data=DataConfig(str(folder), validation_examples=200),
        model=ModelConfig(hidden_features=(16,)),
        optimizer=OptimizerConfig(learning_rate=0.02),
    )


@pytest.fixture(scope="module")
def run(overfitting, tmp_path_factory):
    return train(overfitting, tmp_path_factory.mktemp("runs") / "run", execution=Execution(devices=1))


@pytest.mark.parametrize(
    ("selection_metric", "losses", "accuracies", "expected"),
    [
        ("accuracy", [3.0, 1.0, 2.0], [0.1, 0.2, 0.3], 2),
        ("loss", [3.0, 1.0, 2.0], [0.1, 0.2, 0.3], 1),
        ("accuracy", [3.0, 2.0, 1.0], [0.2, 0.3, 0.3], 1),  # the earliest of equals
        ("loss", [3.0, 1.0, 1.0], [0.1, 0.2, 0.3], 1),
        ("loss", [math.nan, math.inf, 5.0, math.nan], [0.9, 0.9, 0.1, 0.9], 2),
    ],
)
def test_model_selection_by_accuracy_or_by_loss(selection_metric, losses, accuracies, expected):
    scores = [
        score(Config(selection_metric=selection_metric), *epoch) for epoch in zip(losses, accuracies, strict=True)
    ]
    assert scores.index(max(scores)) == expected


@pytest.mark.slow
def test_a_run_keeps_the_weights_with_the_lowest_loss(run):
    best = least_loss(run.epochs)
    assert best.validation_accuracy < max(epoch.validation_accuracy for epoch in run.epochs)  # or nothing is shown
    assert run.best == best
    assert load_run(run.run_dir).step == run.best_step == best.step
    (row,) = read_runs(run.run_dir)
    assert (row.best_epoch, row.test) == (best.epoch, best.test_accuracy)
    (entry,), _ = read_entries([run.run_dir])
    assert entry.best_epochs == (best.epoch,)


@pytest.mark.slow
def test_early_stopping_waits_for_a_lower_loss(overfitting, run, tmp_path):
    stopped = train(
        dataclasses.replace(overfitting, early_stopping_patience=3), tmp_path / "run", execution=Execution(devices=1)
    )
    losses = [epoch.validation_loss for epoch in run.epochs]
    end = next(end for end in range(4, 21) if min(losses[: end - 3]) <= min(losses[end - 3 : end]))
    assert len(stopped.epochs) == end < 20


@pytest.mark.slow
def test_members_of_a_sweep_stop_early_and_are_selected_by_loss(overfitting, run, tmp_path, capsys, empty_figures):
    folder = tmp_path / "sweep"
    patient = dataclasses.replace(overfitting, early_stopping_patience=3)
    found = sweep(patient, TWO_SETTINGS, folder, console=Console(width=100))
    assert "validation loss" in capsys.readouterr().out
    for member in found.members:
        best = least_loss(read_metrics(folder / "metrics.jsonl", member.member))
        assert (member.best_epoch, member.best.validation_loss) == (best.epoch, best.validation_loss)
        assert load_run(folder / str(member.member)).step == best.step
        assert member.epochs == best.epoch + 3 < 20
    alone = [epoch.validation_loss for epoch in run.epochs[: found.members[0].epochs]]
    assert found.members[0].best.validation_loss == pytest.approx(min(alone), rel=1e-3)
    with (folder / "results.csv").open() as file:
        losses = [float(row["validation_loss"]) for row in csv.DictReader(file)]
    assert losses == [member.best.validation_loss for member in found.members]
    assert [member.best_epoch for member in found.members] == [row.best_epoch for row in read_runs(folder)]


@pytest.fixture(scope="module")
def two_settings(overfitting, tmp_path_factory):
    """The folder of a sweep of two seeds of two settings."""
    config = dataclasses.replace(overfitting, epochs=2)
    return sweep(config, TWO_SETTINGS, tmp_path_factory.mktemp("sweeps") / "two").run_dir


@pytest.fixture
def opposed(two_settings, tmp_path):
    """Makes the folder of a sweep in which setting 1 has the least loss, and setting 0 the highest accuracy."""

    def make(selection_metric):
        folder = read_run_folder(shutil.copytree(two_settings, tmp_path / selection_metric))
        write_config(
            dataclasses.replace(folder, config=dataclasses.replace(folder.config, selection_metric=selection_metric))
        )
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        for line in lines:
            loss, accuracy = ((0.6, 0.9), (0.6, 0.9), (0.5, 0.8), (0.5, 0.8))[line["member"]]
            line |= {"validation_loss": loss, "validation_accuracy": accuracy}
        folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder.path

    return make


@pytest.mark.slow
def test_settings_are_ranked_by_the_selection_metric(opposed):
    order = {}
    for selection_metric in ("accuracy", "loss"):
        folder = opposed(selection_metric)
        members = member_results(read_run_folder(folder))
        entries, notes = read_entries([folder])
        order[selection_metric] = [
            best_member(members),
            [setting.members[0].member for setting in setting_results(members)],
            [entry.label for entry in entries],
        ]
        assert any("the lowest loss" in note for note in notes) == (selection_metric == "loss")
    assert order["accuracy"] == [0, [0, 2], ["learning_rate 0.02", "learning_rate 0.03"]]
    assert order["loss"] == [2, [2, 0], ["learning_rate 0.03", "learning_rate 0.02"]]
    entries, notes = read_entries([folder.parent / name for name in order])
    assert [entry.result("validation").value for entry in entries] == pytest.approx([0.9, 0.9, 0.8, 0.8])
    assert any("the order is by validation accuracy" in note for note in notes)


def test_optuna_gets_losses_and_diverged_settings():
    pytest.importorskip("optuna")
    nothing = mean_of([])
    space = space_of({"learning_rate": ["loguniform:0.001:1"]}, samples=40, optuna=True)
    tried = [
        SettingResult({"learning_rate": rate}, (), -math.inf if rate > 0.01 else -rate, nothing, nothing, 0)
        for rate in (0.0015, 0.002, 0.003, 0.004, 0.006, 0.02, 0.04, 0.1, 0.2, 0.4, 0.6, 0.8)
    ]
    proposed = [setting["learning_rate"] for setting in next_settings(space, 0, tried)]
    assert len(proposed) == 8
    assert sum(rate < 0.01 for rate in proposed) > 4  # chance would come to a third: one decade of three


@pytest.mark.slow
def test_imported_weights_with_a_loss_of_nan_are_never_the_best(overfitting, run, tmp_path):
    params = jax.tree.map(lambda leaf: 1e38 * leaf, load_run(run.run_dir).params)
    begin_run(params, dataclasses.replace(overfitting, epochs=1), tmp_path / "run", origin="huge weights")
    record = checkpoint.read_record(checkpoint.checkpoint_path(tmp_path / "run" / "checkpoints", 0))
    assert record.members[0].best_step is None
    assert load_run(tmp_path / "run").step == 0


@pytest.mark.slow
def test_the_command_line_prints_the_selection_metric(command_line, tmp_path):
    words = ["--selection-metric", "loss", "--epochs", "1", "--run-dir", tmp_path / "run"]
    done = command_line("train", "smoke", *TINY_OPTIONS, *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"best on validation by loss: epoch 1, validation [\d.]+% \(loss \d\.\d{4}\), test", done.stdout)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_selection_metric(overfitting, run):
    with pytest.raises(ConfigError, match="selection_metric is loss in the run, accuracy was asked for"):
        train(dataclasses.replace(overfitting, selection_metric="accuracy", epochs=21), run.run_dir, resume=True)


@pytest.mark.parametrize(
    ("shares", "accuracies", "losses", "is_as_good"),
    [
        ([50] * 10, [0.10, 0.12], [2.31, 2.29], True),
        ([50] * 10, [0.10, 0.16], [2.31, 2.29], False),  # four standard deviations
        ([50] * 10, [0.12, 0.12], [2.31, 2.20], False),  # the lower loss has found something
        ([50] * 10, [0.16, 0.10], [2.31, 9.0], True),  # too high a learning rate
        ([50] * 10, [0.40, 0.10], [2.31, 9.0], False),
        ([950, 50], [0.95], [0.2], True),
        ([950, 50], [0.95], [0.1], False),
        ([2500, 2500], [0.74, 0.60], [0.69, 1.4], False),
        ([1, 1, 1, 1], [0.75], [2.0], False),
        ([4], [1.0], [0.0], False),
        ([10, 10], [0.5], [0.7], True),
        ([10, 9], [0.5], [0.7], False),  # too few to tell
        ([50], [0.9], [0.3], False),  # of one class
    ],
)
def test_what_is_no_better_than_guessing(shares, accuracies, losses, is_as_good):
    guessing = Guessing.of(np.array(shares))
    assert guessing.loss == pytest.approx(-sum(n / sum(shares) * math.log(n / sum(shares)) for n in shares))
    epoch = EpochMetrics(0, 1, 15, *[0.0] * 10)
    epochs = [
        dataclasses.replace(epoch, validation_accuracy=accuracy, validation_loss=loss)
        for accuracy, loss in zip(accuracies, losses, strict=True)
    ]
    assert guessing.is_as_good_as(epochs) == is_as_good
    assert (guessing.warning(Config(), epochs, np.ones((1, 2, 2), np.uint8)) is not None) == is_as_good
