"""Progress: a bar on a terminal, plain lines elsewhere."""

import dataclasses
import io
from pathlib import Path

from rich.console import Console

from lstm_mnist_jax import progress
from lstm_mnist_jax.config import Config
from lstm_mnist_jax.progress import ProgressDisplay
from lstm_mnist_jax.training.loop import epoch_line
from lstm_mnist_jax.training.metrics import EpochMetrics
from lstm_mnist_jax.training.run_folder import DataFacts, Member, RunFolder

METRICS = EpochMetrics(0, 3, 30, 0.25, 0.9, 0.7, 0.5, 0.9866, 0.5, 1.0, 0.01, 1.5, 36_190.4)


SECONDS = 6.0


def folder_of(*members):
    return RunFolder(Path("run"), Config(), DataFacts("", (), (), ""), {}, members=members)


def shown(console, step=12, loss=0.123456, rate=40_000.0):
    with ProgressDisplay(console, epochs=10, steps_per_epoch=10, step=0) as display:
        display.advance(step, loss, rate)
        display.say(epoch_line([METRICS], folder_of(Member(0, {})), 10, METRICS.seconds))
    return console.file.getvalue()


def test_bar_with_epoch_step_loss_speed_and_time_left():
    text = shown(Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None))
    for part in ("epoch 2/10", "12/100", "loss 0.1235", "40,000 examples/s", "left"):
        assert part in text, part


def test_one_unbroken_line_an_epoch_without_a_terminal():
    text = shown(Console(file=io.StringIO(), width=40))
    assert text == "epoch  3/10  loss 0.2500  validation  98.66%  test 100.00%  1.5 s  36,190 examples/s\n"


def test_long_epochs_print_their_progress(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    text = shown(Console(file=io.StringIO()), loss=4e30)
    assert text.splitlines()[0] == "epoch 2/10  step 12  loss 4.000e+30  40,000 examples/s"


def test_markup_in_names_is_printed_as_text():
    console = Console(file=io.StringIO(), width=40)
    progress.say(console, "run runs/[/b] 12 " + 60 * "x")
    assert console.file.getvalue() == "run runs/[/b] 12 " + 60 * "x" + "\n"


def test_epoch_line_of_a_sweep_has_the_best_setting_with_means_over_seeds():
    slow, fast = {"learning_rate": 0.003}, {"learning_rate": 0.02}
    members = [Member(seed, setting) for setting in (slow, fast) for seed in (0, 1)]
    accuracies = (0.90, 0.92, 0.95, 0.97)
    epochs = [
        dataclasses.replace(METRICS, member=member, validation_accuracy=accuracy, test_accuracy=accuracy - 0.1)
        for member, accuracy in enumerate(accuracies)
    ]
    line = epoch_line(epochs, folder_of(*members), 10, SECONDS)
    # Student's t with one degree of freedom, 12.706, times the standard error, 0.01.
    assert line == (
        "epoch  3/10  best of 2: learning_rate 0.02  loss 0.2500 ± 0.0000  validation 96.00% ± 12.71  "
        "test 86.00% ± 12.71  6.0 s  36,190 examples/s"
    )
    nan = float("nan")
    diverged = [dataclasses.replace(metrics, validation_accuracy=nan) for metrics in epochs]
    assert "  best of" not in epoch_line([*epochs[:2], *diverged[2:]], folder_of(*members), 10, SECONDS)
    assert "all have diverged" in epoch_line(diverged, folder_of(*members), 10, SECONDS)
