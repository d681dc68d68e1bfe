"""Model selection: which weights of a training, or of several, are the best. The validation examples decide alone."""

import math
from collections.abc import Iterable
from typing import Protocol, TypeVar, runtime_checkable

from lstm_mnist_jax.config import Config


@runtime_checkable  # for the tests, which check all types
class Evaluated(Protocol):
    """What is known after an epoch; None of one that diverged."""

    @property
    def validation_loss(self) -> float | None: ...
    @property
    def validation_accuracy(self) -> float | None: ...


E = TypeVar("E", bound=Evaluated)


def best_in_words(config: Config) -> str:
    """What the best is called, for people."""
    return "best on validation" if config.selection_metric == "accuracy" else "best on validation by loss"


def score(config: Config, loss: float | None, accuracy: float | None) -> float:
    """How good weights are, the higher the better: their accuracy, or minus their loss, by `config.selection_metric`.

    All processes of a training find the same, as they do the gradients: all-reduced, so equal to the last bit.

    Args:
      config: of the training.
      loss, accuracy: on the validation examples. None and NaN are worse than any.
    """
    value = accuracy if config.selection_metric == "accuracy" else loss
    if value is None or math.isnan(value):
        return -math.inf
    return value if config.selection_metric == "accuracy" else -value


def score_of(config: Config, epoch: Evaluated) -> float:
    """The score of the weights at the end of an epoch."""
    return score(config, epoch.validation_loss, epoch.validation_accuracy)


def best_epoch(config: Config, epochs: Iterable[E]) -> E | None:
    """The best of epochs in their order, the earliest of equals; None where there are none."""
    return max(epochs, key=lambda epoch: score_of(config, epoch), default=None)
