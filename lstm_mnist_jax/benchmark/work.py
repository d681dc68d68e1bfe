"""The work that is timed, as plain values: what a peer is told to do, the same for all of them.

Knows no peer and imports no library of theirs.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Epoch:
    """An epoch of the tutorial: two LSTM layers over the rows of MNIST's digits, Adam.

    Attributes:
      steps: how many steps of `batch_size`; 859 is the whole training set.
      hidden_features: widths of the LSTM layers.
      learning_rate: Adam's.
      seed: decides the initial weights and the order of the examples.
      prepared: the file with both, which `prepared.write` wrote.
      form: `loop` is the epoch as one call; the others are for this package alone: `calls` is one call a step,
        `bare` is the forward pass, the backward pass and the update, over and over on one batch.
    """

    steps: int = 859
    batch_size: int = 64
    hidden_features: tuple[int, ...] = (32, 64)
    learning_rate: float = 0.01
    seed: int = 0
    prepared: str = ""
    form: Literal["loop", "calls", "bare"] = "loop"

    @property
    def flops(self) -> int:
        """Multiplications and additions in the matrix products; no gradient is needed at the images."""
        widths = (28, *self.hidden_features)
        step = sum(
            lstm_flops(28, self.batch_size, inputs, hidden, backward=True, input_gradient=number > 0)
            for number, (inputs, hidden) in enumerate(zip(widths, self.hidden_features, strict=False))
        )
        return self.steps * step


@dataclass(frozen=True)
class Layer:
    """One LSTM layer over a batch of sequences, as many features in as out, time-major, zeros as initial state.

    With `backward`, the loss is the mean of the squares of the outputs, and the gradients of the inputs and of all
    weights are computed.
    """

    time: int
    batch: int
    hidden: int
    backward: bool

    @property
    def flops(self) -> int:
        """Multiplications and additions in the matrix products."""
        return lstm_flops(self.time, self.batch, self.hidden, self.hidden, backward=self.backward)

    @property
    def bytes(self) -> int:
        """Memory that an ordinary implementation takes, roughly: inputs, outputs, gates and their gradients."""
        return 4 * self.time * self.batch * self.hidden * (20 if self.backward else 7)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """float32 inputs [time, batch, hidden], kernel and recurrent kernel [hidden, 4 hidden], bias [4 hidden].

        The columns are the gates i, f, g, o; drawn as PyTorch draws its initial weights.
        """
        rng, width = np.random.default_rng(0), self.hidden
        inputs = rng.standard_normal((self.time, self.batch, width), np.float32)
        shapes = [(width, 4 * width), (width, 4 * width), (4 * width,)]
        kernel, recurrent_kernel, bias = (
            ((2 * rng.random(shape, np.float32) - 1) / np.float32(np.sqrt(width))) for shape in shapes
        )
        return inputs, kernel, recurrent_kernel, bias


@dataclass(frozen=True)
class Inference:
    """The tutorial's network from uint8 images in NumPy to probabilities in NumPy, all conversions included.

    Attributes:
      images: how many images a call, from MNIST's test set.
      prepared: see `Epoch`.
    """

    images: int
    prepared: str = ""


@dataclass(frozen=True)
class Product:
    """A product of two square float32 matrices: how fast the machine can multiply at all."""

    size: int

    @property
    def flops(self) -> int:
        return 2 * self.size**3

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        left, right = (rng.standard_normal((self.size, self.size), np.float32) for _ in range(2))
        return left, right


Work = Epoch | Layer | Inference | Product

KINDS: dict[str, type[Any]] = {"epoch": Epoch, "layer": Layer, "inference": Inference, "product": Product}


def lstm_flops(time: int, batch: int, inputs: int, hidden: int, *, backward: bool, input_gradient: bool = True) -> int:
    """Multiplications and additions in the matrix products of an LSTM layer.

    Forward: inputs and hidden states by their kernels. Backward as much for the kernels' gradients, and once more
    for those of the inputs and of the hidden states.
    """
    forward = inputs + hidden
    products = forward + backward * (forward + hidden + input_gradient * inputs)
    return 2 * time * batch * 4 * hidden * products


def kind_of(work: Work) -> str:
    """The kind of a work: the name of the function of a peer that does it."""
    return next(kind for kind, cls in KINDS.items() if isinstance(work, cls))


def to_json(work: Work) -> dict[str, Any]:
    return {"kind": kind_of(work), **asdict(work)}


def from_json(value: dict[str, Any]) -> Work:
    fields = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items() if name != "kind"}
    work: Work = KINDS[value["kind"]](**fields)
    return work
