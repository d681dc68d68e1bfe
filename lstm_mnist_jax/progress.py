"""Progress of training: a bar on a terminal, plain lines elsewhere, one line an epoch on both."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_INTERVAL = 30.0
"""Seconds between two lines of progress within an epoch, without a terminal."""


class ProgressDisplay:
    """Shows the progress of training. A context manager: the bar is shown within it."""

    def __init__(self, console: Console, epochs: int, steps_per_epoch: int, step: int) -> None:
        self._console = console
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._last_plain_line = time.monotonic()
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("step"),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} images/s  left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        total = epochs * steps_per_epoch
        self._task = self._bar.add_task("", total=total, completed=step, epoch=self._epoch(step), loss="-", rate="-")

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int, loss: float, examples_per_second: float) -> None:
        """Shows the number of steps made, the mean loss of the epoch so far, and the speed."""
        epoch, rate = self._epoch(step), f"{examples_per_second:,.0f}"
        self._bar.update(self._task, completed=step, epoch=epoch, loss=loss_in_words(loss), rate=rate)
        if self._bar.disable and time.monotonic() - self._last_plain_line > PLAIN_INTERVAL:
            self.say(f"epoch {epoch}  step {step:,}  loss {loss_in_words(loss)}  {rate} images/s")

    def say(self, line: str) -> None:
        """Writes a line above the bar."""
        self._last_plain_line = time.monotonic()
        say(self._console, line)

    def _epoch(self, step: int) -> str:
        return f"{min(step // self._steps_per_epoch + 1, self._epochs)}/{self._epochs}"


def loss_in_words(loss: float) -> str:
    """A loss as text, short even if the run diverges."""
    return f"{loss:.4f}" if loss < 1000 else f"{loss:.3e}"


def say(console: Console, line: str) -> None:
    """Prints a line without styles and line breaks."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
