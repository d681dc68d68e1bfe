"""What the names of an ONNX graph stand for, beside constants."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True, eq=False)
class Source:
    """The entries that a node makes.

    Attributes:
      kind: "images"; "affine" (the images times a number, plus a number); "layer" [time, directions, batch, hidden];
        "mean", "max" or "attention" over time; "dense" (a product with a matrix), "bias" (plus a constant), "relu" or
        "tanh" after it; "weights" (a softmax over time) or "product" (outputs times such weights).
      start: the number of the first entry.
      shape: of the entries.
      place: the operator, for messages.
      below: the numbers of the entries that these are computed from; of pooling over time, those of the first step.
      data: what the operator has of its own, such as a kernel.
    """

    kind: str
    start: int
    shape: tuple[int, ...]
    place: str
    below: np.ndarray
    data: Any = None

    @property
    def entries(self) -> np.ndarray:
        return np.arange(self.start, self.start + math.prod(self.shape)).reshape(self.shape)

    @property
    def by_step(self) -> np.ndarray:
        """Of a layer, [time, batch, features]: the forward direction's features before the backward one's."""
        return np.moveaxis(self.entries, 1, 2).reshape(self.shape[0], self.shape[2], -1)

    def under(self, entries: np.ndarray) -> np.ndarray:
        """Those from which these entries are computed, where it is one for one."""
        return self.below.reshape(-1)[entries - self.start]


@dataclass(frozen=True, eq=False)
class Signal:
    """What the network computes: the numbers of its entries, whether these are integers, the operator after logits."""

    entries: np.ndarray
    integer: bool = False
    end: str = ""


@dataclass(frozen=True)
class Unread:
    """What this classifier does not have, such as the last cell state."""

    what: str


class Place(NamedTuple):
    """A node: its operator, its name, and both as text for messages."""

    kind: str
    name: str
    text: str


def short(name: Any) -> str:
    """A name of the file for a message; damaged files have names of bytes, or long ones."""
    text = str(name)[:100]
    return text if text.isprintable() else repr(text)


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:300] or type(error).__name__
