"""What `lstm-mnist predict` prints for people: a table, pictures in characters, guesses step by step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lstm_mnist_jax.progress import say
from lstm_mnist_jax.report.terminal import bar, percent, shades

if TYPE_CHECKING:
    from lstm_mnist_jax.inference import TrainedRun

TOP = 3
"""The number of classes printed for each picture."""

GUESSES = 28
"""The number of predictions printed for a picture whose steps are not its rows."""

BAR = 20
"""Characters of a bar of probability, where there is room."""


@dataclass(frozen=True)
class Answer:
    """What became of a picture.

    Attributes:
      name: of the file, and of the picture within it.
      image: in the run's form; None where there was an error.
      probabilities: of all classes; None until it is classified.
      error: why there is no answer.
    """

    name: str
    image: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    error: str | None = None


def top(run: "TrainedRun", answer: Answer) -> list[tuple[str, float]]:
    """The likeliest classes with their probabilities, the likeliest first."""
    assert answer.probabilities is not None
    order = np.argsort(-answer.probabilities, kind="stable")[:TOP]
    return [(run.class_names[label], float(answer.probabilities[label])) for label in order]


def print_answers(run: "TrainedRun", answers: list[Answer], *, show: bool, explain: bool) -> None:
    """A table of all, and then each picture as it was seen, or as it was read."""
    if not answers:
        return
    from lstm_mnist_jax.data.pictures import printable

    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # in a file or a pipe, one line for each picture
    table = Table()
    for title in ("picture", "label"):
        table.add_column(title, overflow="fold")
    table.add_column("probability", justify="right")
    table.add_column("then", overflow="fold")
    for answer in answers:
        (label, probability), *others = top(run, answer)
        then = ", ".join(f"{other} {percent(share)}" for other, share in others)
        table.add_row(*map(Text, (printable(answer.name), label, percent(probability), then)))
    console.print(table)
    for answer in answers:
        if explain:
            _explain(console, run, answer, show)
        elif show:
            say(console, f"{printable(answer.name)}, as the network sees it:")
            _show(console, answer)


def _explain(console: Console, run: "TrainedRun", answer: Answer, show: bool) -> None:
    """The guess after each step; where a step is a row, or some, the row stands before it."""
    assert answer.image is not None
    from lstm_mnist_jax.data.pictures import printable
    from lstm_mnist_jax.model import task_of

    config = run.folder.config.model
    along, rows = run.read_along(answer.image[None])[0], _grey(answer)
    task = task_of(config).describe(run.folder.data.image_shape)
    say(console, f"{printable(answer.name)}, read as {task}; after each step the best guess and its probability:")
    names = max(map(len, run.class_names))
    room = console.width - 2 * rows.shape[1] - names - 17  # of a guess without its bar
    is_wide, is_plain = room >= 0, _is_plain(console)

    def guess(step: int, length: int) -> str:
        best = int(along[step].argmax())
        share = float(along[step, best])
        drawn = bar(share, min(BAR, max(0, length)), plain=is_plain)
        return f"{step + 1:4d}  {run.class_names[best]:>{names}}  {percent(share):>8} {drawn}".rstrip()

    if config.task == "rows" and len(rows) % len(along) == 0:
        height = len(rows) // len(along)
        for n, row in enumerate(rows):  # the prediction is printed beside the last row that was read
            line = shades(row, wide=is_wide, plain=is_plain)
            length = room if is_wide else room + rows.shape[1]
            say(console, line + (guess(n // height, length) if n % height == height - 1 else ""))
        return
    if show:
        _show(console, answer)
    for step in np.unique(np.linspace(0, len(along) - 1, GUESSES).round().astype(int)):
        say(console, guess(int(step), BAR))


def _show(console: Console, answer: Answer) -> None:
    rows = _grey(answer)
    for row in rows:
        say(console, shades(row, wide=2 * rows.shape[1] <= console.width, plain=_is_plain(console)))


def _grey(answer: Answer) -> np.ndarray:
    assert answer.image is not None
    return answer.image if answer.image.ndim == 2 else answer.image.mean(axis=-1)


def _is_plain(console: Console) -> bool:
    """Whether the terminal has no more than ASCII."""
    return not console.encoding.lower().startswith("utf")
