"""What is best on validation: one notion for runs, sweeps, early stops, comparisons and the table of results."""

import csv
import dataclasses
import math
from types import SimpleNamespace

import pytest

from lstm_mnist_jax import Execution, extract, load_run, space_of, sweep, train
from lstm_mnist_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.records import read_runs
from lstm_mnist_jax.report.comparison import read_entries
from lstm_mnist_jax.reporting.metrics import read_metrics
from lstm_mnist_jax.reporting.statistics import mean_of
from lstm_mnist_jax.sweeps.results import SettingResult
from lstm_mnist_jax.sweeps.search import next_settings
from lstm_mnist_jax.training.selection import best_epoch

OVERFITTING = Config(
    epochs=20,
    batch_size=32,
    best_by="loss",
    tensorboard=False,
    data=DataConfig(validation_examples=200, train_examples=128),
    model=ModelConfig(hidden_features=(16,)),
    optimizer=OptimizerConfig(learning_rate=0.02),
)
"""So few examples that the loss on validation soon rises, while the accuracy still does too."""


def least_loss(epochs):
    return min(epochs, key=lambda epoch: epoch.validation_loss)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(OVERFITTING, tmp_path_factory.mktemp("runs") / "run", execution=Execution(devices=1))


@pytest.mark.parametrize(
    ("best_by", "losses", "accuracies", "expected"),
    [
        ("accuracy", [3.0, 1.0, 2.0], [0.1, 0.2, 0.3], 2),
        ("loss", [3.0, 1.0, 2.0], [0.1, 0.2, 0.3], 1),
        ("accuracy", [3.0, 2.0, 1.0], [0.2, 0.3, 0.3], 1),  # the earliest of equals
        ("loss", [3.0, 1.0, 1.0], [0.1, 0.2, 0.3], 1),
        ("loss", [math.nan, math.inf, 5.0, math.nan], [0.9, 0.9, 0.1, 0.9], 2),
    ],
)
def test_the_best_is_the_highest_accuracy_or_the_least_loss(best_by, losses, accuracies, expected):
    epochs = [
        SimpleNamespace(validation_loss=loss, validation_accuracy=accuracy)
        for loss, accuracy in zip(losses, accuracies, strict=True)
    ]
    config = Config(best_by=best_by)
    assert best_epoch(config, epochs) is epochs[expected]
    assert best_epoch(config, []) is None


def test_a_run_keeps_what_has_the_least_loss(run):
    best = least_loss(run.epochs)
    assert best.validation_accuracy < max(epoch.validation_accuracy for epoch in run.epochs)  # or nothing is shown
    assert run.best == best
    assert load_run(run.run_dir).step == run.best_step == best.step
    (told,) = read_runs(run.run_dir)
    assert (told.best_epoch, told.test) == (best.epoch, best.test_accuracy)
    (entry,), _ = read_entries([run.run_dir])
    assert entry.best_epochs == (best.epoch,)


def test_an_early_stop_waits_for_a_lower_loss(run, tmp_path):
    stopped = train(
        dataclasses.replace(OVERFITTING, early_stop_epochs=3), tmp_path / "run", execution=Execution(devices=1)
    )
    losses = [epoch.validation_loss for epoch in run.epochs]
    end = next(end for end in range(4, 21) if min(losses[: end - 3]) <= min(losses[end - 3 : end]))
    assert len(stopped.epochs) == end < 20


def test_a_sweep_takes_the_settings_and_epochs_with_the_least_loss(run, tmp_path):
    folder = tmp_path / "sweep"
    found = sweep(OVERFITTING, space_of({"learning_rate": [0.005, 0.02]}, seeds=2), folder)
    for member in found.members:
        extract(folder, tmp_path / str(member.member), member.member)
        best = least_loss(read_metrics(tmp_path / str(member.member) / "metrics.jsonl"))
        assert (member.best_epoch, member.best.validation_loss) == (best.epoch, best.validation_loss)
        assert load_run(tmp_path / str(member.member)).step == best.step
    assert found.members[2].best_epoch == run.best.epoch  # the same training
    by_loss = [mean_of([member.best.validation_loss for member in setting.members]).mean for setting in found.settings]
    assert by_loss == sorted(by_loss)
    assert found.members[found.best].best.validation_loss == min(m.best.validation_loss for m in found.members)
    with (folder / "results.csv").open() as file:
        losses = [float(row["validation_loss"]) for row in csv.DictReader(file)]
    assert losses == [member.best.validation_loss for member in found.members]
    assert [member.best_epoch for member in found.members] == [told.best_epoch for told in read_runs(folder)]


def test_optuna_is_told_of_losses_and_of_what_diverged():
    pytest.importorskip("optuna")
    nothing = mean_of([])
    space = space_of({"learning_rate": ["loguniform:0.001:1"]}, samples=40, optuna=True)
    tried = [
        SettingResult({"learning_rate": rate}, (), -math.inf if rate > 0.1 else -rate, nothing, nothing, 0)
        for rate in (0.002, 0.004, 0.01, 0.03, 0.06, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    ]
    proposed = [setting["learning_rate"] for setting in next_settings(space, 0, tried)]
    assert len(proposed) > 5
    assert sum(rate < 0.1 for rate in proposed) > len(proposed) / 2  # a third of the interval, on its scale


def test_a_resumed_run_keeps_what_it_calls_the_best(run):
    with pytest.raises(ConfigError, match="best_by is loss in the run, accuracy was asked for"):
        train(dataclasses.replace(OVERFITTING, best_by="accuracy", epochs=21), run.run_dir, resume=True)
