"""Progress: a bar on a terminal, plain lines elsewhere."""

import dataclasses
import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.table import Table

from lstm_mnist_jax import progress
from lstm_mnist_jax.config import Config
from lstm_mnist_jax.config.space import Space
from lstm_mnist_jax.progress import ProgressDisplay
from lstm_mnist_jax.training.loop import epoch_lines
from lstm_mnist_jax.training.metrics import EpochMetrics
from lstm_mnist_jax.training.run_folder import DataFacts, Member, RunFolder

METRICS = EpochMetrics(0, 3, 30, 0.25, 0.9, 0.7, 0.5, 0.9866, 0.5, 1.0, 0.01, 1.5, 36_190.4)


SECONDS = 6.0


def folder_of(*members):
    return RunFolder(Path("run"), Config(), DataFacts("", (), (), ""), {}, members=members)


def shown(console, step=12, loss=0.123456, rate=40_000.0):
    with ProgressDisplay(console, epochs=10, steps_per_epoch=10, step=0) as display:
        display.advance(step, loss, rate)
        for line in epoch_lines([METRICS], folder_of(Member(0, {})), 10, METRICS.seconds):
            display.say(line)
    return console.file.getvalue()


def test_bar_with_epoch_step_loss_speed_and_time_left():
    text = shown(Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None))
    for part in ("epoch 2/10", "step 2/10", "loss 0.1235", "40,000 images/s", "left"):
        assert part in text, part


@pytest.mark.parametrize(("width", "line"), [
    (80, r"epoch 60/100  step 431/859  loss 900.0000 \S+ +128,373 images/s  left --:--"),
    (79, r"epoch 60/100  step 431/859  loss 900.0000"),
    (50, r"epoch 60/100  step 431/859  loss 900.0000"),
])  # fmt: skip
def test_nothing_of_the_bar_is_cut_on_narrow_terminals(width, line):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with ProgressDisplay(console, epochs=100, steps_per_epoch=859, step=0) as display:
        display.advance(59 * 859 + 431, 900.0, 128_373.0)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()))
    last = [shown.rstrip() for shown in lines if shown.strip()][-1]
    assert re.fullmatch(line, last.replace("-:--:--", "--:--"))


@pytest.mark.parametrize("is_terminal", [False, True])
def test_nothing_of_a_table_is_cut_on_narrow_consoles(is_terminal):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=40, color_system=None)
    names = [f"column {number} of the table" for number in range(5)]
    table = Table(*names)
    table.add_row(*["98.43% ± 0.12"] * 5)
    progress.print_table(console, table)
    text = console.file.getvalue()
    assert all(name in text for name in names)
    assert text.count("98.43% ± 0.12") == 5
    assert len(text.splitlines()) == 5


def test_the_reading_of_files_stays_on_one_line(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    seconds = iter((0.0, 2.0))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with progress.Reading(f"reading {60 * 'x'}", 20_000) as reading:
        reading.advance(1_000)
        assert capsys.readouterr().err == f"\r\x1b[Kreading {11 * 'x'}...: 1,000 of 20,000"


def test_one_unbroken_line_an_epoch_without_a_terminal():
    text = shown(Console(file=io.StringIO(), width=40))
    assert text == "epoch  3/10  loss 0.2500  validation 98.66%  test 100.00%  1.5 s  36,190 images/s\n"


def test_long_epochs_print_their_progress(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    text = shown(Console(file=io.StringIO()), loss=4e30)
    assert text.splitlines()[0] == "epoch 2/10  step 2/10  loss 4.000e+30  40,000 images/s"


def test_markup_in_names_is_printed_as_text():
    console = Console(file=io.StringIO(), width=40)
    progress.say(console, "run runs/[/b] 12 " + 60 * "x")
    assert console.file.getvalue() == "run runs/[/b] 12 " + 60 * "x" + "\n"


def test_epoch_lines_of_a_sweep_have_the_best_setting_with_means_over_seeds():
    slow, fast = {"learning_rate": 0.003}, {"learning_rate": 0.02}
    members = [Member(seed, setting) for setting in (slow, fast) for seed in (0, 1)]
    accuracies = (0.90, 0.92, 0.95, 0.97)
    epochs = [
        dataclasses.replace(METRICS, member=member, validation_accuracy=accuracy, test_accuracy=accuracy - 0.1)
        for member, accuracy in enumerate(accuracies)
    ]
    sweep = dataclasses.replace(folder_of(*members), space=Space(seeds=2))
    assert epoch_lines(epochs, sweep, 10, SECONDS) == [
        "epoch  3/10  loss 0.2500  validation 96.00%  test 86.00%",
        "  best of 2: learning_rate 0.02  6.0 s  36,190 images/s",
    ]
    nan = float("nan")
    diverged = [dataclasses.replace(metrics, validation_accuracy=nan) for metrics in epochs]
    assert epoch_lines([*epochs[:2], *diverged[2:]], sweep, 10, SECONDS)[1] == "  6.0 s  36,190 images/s"
    assert "all have diverged" in epoch_lines(diverged, sweep, 10, SECONDS)[0]
