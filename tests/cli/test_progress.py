"""What people see: a bar where there is a terminal, plain lines where there is none."""

import io

from rich.console import Console

from lstm_mnist_jax.reporting import progress
from lstm_mnist_jax.reporting.metrics import EpochMetrics
from lstm_mnist_jax.reporting.progress import ProgressDisplay

METRICS = EpochMetrics(3, 30, 0.25, 0.9, 0.7, 0.5, 0.9866, 0.5, 1.0, 0.01, 1.5, 36_190.4)


def shown(console, step=12, loss=0.123456, rate=40_000.0):
    with ProgressDisplay(console, epochs=10, steps_per_epoch=10, step=0) as display:
        display.advance(step, loss, rate)
        display.epoch(METRICS)
    return console.file.getvalue()


def test_a_terminal_gets_a_bar_with_epoch_step_loss_speed_and_time_left():
    text = shown(Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None))
    for part in ("epoch 2/10", "12/100", "loss 0.1235", "40,000 examples/s", "left"):
        assert part in text, part


def test_elsewhere_there_is_one_line_an_epoch_however_narrow():
    text = shown(Console(file=io.StringIO(), width=40))
    assert text == "epoch  3/10  loss 0.2500  validation  98.66%  test 100.00%  1.5 s  36,190 examples/s\n"


def test_long_epochs_tell_where_they_are(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    text = shown(Console(file=io.StringIO()), loss=4e30)
    assert text.splitlines()[0] == "epoch 2/10  step 12  loss 4.000e+30  40,000 examples/s"


def test_names_are_printed_as_they_are():
    console = Console(file=io.StringIO(), width=40)
    progress.say(console, "run runs/[/b] 12 " + 60 * "x")
    assert console.file.getvalue() == "run runs/[/b] 12 " + 60 * "x" + "\n"
