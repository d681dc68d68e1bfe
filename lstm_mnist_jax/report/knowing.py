"""How soon a network knows: how often its guess is right after each step, over many images; numbers and a picture."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from lstm_mnist_jax.data import Examples
from lstm_mnist_jax.inference import TrainedRun
from lstm_mnist_jax.model import task_of
from lstm_mnist_jax.report.style import WIDTH, series_style, settled, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = 1000
"""Images that are read along, from the front of the split."""

STEPS = EXAMPLES * 784
"""Steps that are read in all, at most: fewer images of long sequences in both directions, which each begin anew."""

LEAST = 100
"""Images: the shares of fewer say little."""

BATCH = 250


@dataclass(frozen=True, eq=False)
class Knowing:
    """What a network knows after each step.

    Attributes:
      examples: how many were read.
      correct: int [time], for how many of them the guess after each step is right.
      given: [time], the mean probability that the right class is given then.
    """

    examples: int
    correct: Int[np.ndarray, " time"]
    given: Float[np.ndarray, " time"]

    @property
    def accuracy(self) -> Float[np.ndarray, " time"]:
        """The share of right guesses after each step."""
        return self.correct / self.examples

    def first_step(self, share: float) -> int | None:
        """The first step, from 1, after which so many of the guesses are right; None where they never are."""
        reached = np.flatnonzero(self.accuracy >= share)
        return int(reached[0]) + 1 if len(reached) else None


def read_many(run: TrainedRun, examples: Examples) -> Knowing | None:
    """Reads many images along; None where they would take too long.

    Args:
      run: whose network.
      examples: of which the first are taken, `EXAMPLES` or fewer.
    """
    config, shape = run.folder.config.model, run.folder.data.image_shape
    steps, _ = task_of(config).shape(shape)
    most = min(EXAMPLES, STEPS // (steps * steps if config.bidirectional else steps))
    if most < LEAST:
        return None
    examples = examples[:most]
    correct, given = np.zeros(steps, int), np.zeros(steps)
    for start in range(0, len(examples), BATCH):
        part = examples[start : start + BATCH]
        along = run.read_along(part.images)
        correct += (along.argmax(axis=-1) == part.labels[:, None]).sum(axis=0)
        given += along[np.arange(len(part)), :, part.labels].sum(axis=0)
    return Knowing(len(examples), correct, given / len(examples))


def draw_knowing(knowing: Knowing, step_name: str) -> "Figure":
    """Draws both over the steps.

    Args:
      knowing: of `read_many`.
      step_name: what a time step reads, such as "row".
    """
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        steps = np.arange(1, len(knowing.correct) + 1)
        axes.plot(steps, 100 * knowing.accuracy, label="guesses that are right", **series_style(0))
        axes.plot(steps, 100 * knowing.given, label="probability of the right class, mean", **series_style(1))
        axes.set(xlabel=f"{step_name}s read", ylabel="%", ylim=(0, 102), xlim=(0, len(steps) + 0.5))
        axes.grid()
        axes.legend(loc="upper left")
        return settled(figure)
