"""What commands print: the progress of training (a bar on a terminal, elsewhere plain lines), lines and tables."""

import time

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segments
from rich.table import Table

BAR_WIDTH = 80
"""Columns of a terminal that has room for the bar, the speed and the time left, too."""

PLAIN_INTERVAL = 30.0
"""Seconds between two lines of progress within an epoch, without a terminal."""


class ProgressDisplay:
    """Shows the progress of training. A context manager: the bar is shown within it."""

    def __init__(self, console: Console, epochs: int, steps_per_epoch: int, step: int) -> None:
        self._console = console
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._last_plain_line = time.monotonic()
        others = [BarColumn(), TextColumn("{task.fields[rate]} images/s  left"), TimeRemainingColumn(compact=True)]
        self._bar = Progress(
            TextColumn("{task.description}  loss {task.fields[loss]}"),
            *(others if console.width >= BAR_WIDTH else []),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        total = epochs * steps_per_epoch
        self._task = self._bar.add_task(self._position(step), total=total, completed=step, loss="-", rate="-")

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int, loss: float, examples_per_second: float) -> None:
        """Shows the number of steps made, the mean loss of the epoch so far, and the speed."""
        position, rate = self._position(step), f"{examples_per_second:,.0f}"
        self._bar.update(self._task, completed=step, description=position, loss=loss_in_words(loss), rate=rate)
        if self._bar.disable and time.monotonic() - self._last_plain_line > PLAIN_INTERVAL:
            self.say(f"{position}  loss {loss_in_words(loss)}  {rate} images/s")

    def say(self, line: str) -> None:
        """Writes a line above the bar."""
        self._last_plain_line = time.monotonic()
        say(self._console, line)

    def _position(self, step: int) -> str:
        epoch = min(step // self._steps_per_epoch, self._epochs - 1)
        within = step - epoch * self._steps_per_epoch
        return f"epoch {epoch + 1}/{self._epochs}  step {within}/{self._steps_per_epoch}"


def loss_in_words(loss: float) -> str:
    """A loss as text, short even if the run diverges."""
    return f"{loss:.4f}" if loss < 1000 else f"{loss:.3e}"


def say(console: Console, line: str) -> None:
    """Prints a line without styles and line breaks."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Prints a table in its full width: nothing of it is cut in a pipe or on a narrow terminal."""
    options = console.options.update(max_width=10_000)
    options = options.update(width=Measurement.get(console, options, table).maximum)
    console.print(Segments(console.render(table, options)), crop=False, soft_wrap=True)


class Reading:
    """Shows on standard error how far the reading of files is: a bar on a terminal, elsewhere a line now and then.

    A context manager. Nothing is shown of what takes less than a second.
    """

    def __init__(self, what: str, total: int | None) -> None:
        """Args: a few words, and the number of files or rows, if it is known."""
        self._what, self._total, self._done = what, total, 0
        self._console = Console(stderr=True)
        self._next = time.monotonic() + (1.0 if self._console.is_terminal else PLAIN_INTERVAL)

    def __enter__(self) -> "Reading":
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal and self._done:
            self._console.file.write("\r\x1b[K")

    def advance(self, n: int) -> None:
        """Notes that `n` more are read."""
        self._done += n
        if (now := time.monotonic()) < self._next:
            return
        of = f" of {self._total:,}" if self._total else ""
        count = f": {self._done:,}{of}"
        line = self._what + count
        if self._console.is_terminal:
            if len(line) >= self._console.width:  # a second line would stay
                line = f"{self._what[: max(0, self._console.width - len(count) - 4)]}...{count}"
            self._console.file.write(f"\r\x1b[K{line}")
            self._console.file.flush()
            self._next = now + 0.2
        else:
            say(self._console, line)
            self._next = now + PLAIN_INTERVAL
