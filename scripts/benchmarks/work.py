"""The work that is timed, as plain values: the same for every library. Imports none of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from lstm_mnist_jax.interop.weights import Weights


class Start(NamedTuple):
    """What every library starts an epoch from; NumPy's arrays alone, so that no process imports JAX because of it.

    Attributes:
      layers: kernel, recurrent kernel and bias of each LSTM layer, as in `lstm_mnist_jax.interop.weights.Direction`.
      dense_kernel, dense_bias: of the output layer.
      order: int [steps, batch], the examples of each step.
    """

    layers: tuple[tuple[np.ndarray, ...], ...]
    dense_kernel: np.ndarray
    dense_bias: np.ndarray
    order: np.ndarray

    @property
    def weights(self) -> "Weights":
        from lstm_mnist_jax.interop.weights import Dense, Direction, Layer, Weights

        layers = tuple(Layer(Direction(*layer)) for layer in self.layers)
        return Weights(layers, (Dense(self.dense_kernel, self.dense_bias),))


@dataclass(frozen=True)
class Epoch:
    """An epoch of the tutorial: two LSTM layers over the rows of MNIST's digits, Adam.

    Attributes:
      steps: how many steps of `batch_size`; 859 is the whole training set.
      hidden_features: widths of the LSTM layers.
      learning_rate: of Adam.
      start: given by this package's `start` of an epoch, before any other library begins.
    """

    steps: int = 859
    batch_size: int = 64
    hidden_features: tuple[int, ...] = (32, 64)
    learning_rate: float = 0.01
    start: Start = None  # type: ignore[assignment]

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
    """One recurrent layer over a batch of sequences, as many features in as out, time-major, zeros as initial state.

    With `backward`, the loss is the mean of the squares of the outputs, and the gradients of the inputs and of all
    weights are computed. A GRU has no bias within the reset gate's product.

    Attributes:
      time, batch, hidden: the sizes.
      backward: with the gradient.
      cell: the kind of the layer.
      ragged: the sequences have different lengths, drawn from time / 2 to time; outputs after a sequence's end are 0.
    """

    time: int
    batch: int
    hidden: int
    backward: bool
    cell: Literal["lstm", "gru"] = "lstm"
    ragged: bool = False

    def __str__(self) -> str:
        passes = "forward+backward" if self.backward else "forward"
        name = f"{self.cell.upper()}{', sequences of different lengths' * self.ragged}"
        return f"layer H={self.hidden} B={self.batch} T={self.time} {passes}, {name}"

    @property
    def gates(self) -> int:
        return {"lstm": 4, "gru": 3}[self.cell]

    @property
    def flops(self) -> int:
        """Multiplications and additions in the matrix products."""
        sizes = self.time, self.batch, self.hidden, self.hidden
        return lstm_flops(*sizes, backward=self.backward) * self.gates // 4

    @property
    def bytes(self) -> int:
        """Memory of an ordinary implementation, roughly: inputs, outputs, gates and their gradients."""
        return 4 * self.time * self.batch * self.hidden * (20 if self.backward else 7)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """float32 inputs [time, batch, hidden], kernel and recurrent kernel [hidden, G hidden], bias [G hidden].

        The columns are the gates i, f, g, o, or r, z, n of a GRU; drawn as PyTorch draws its initial weights.
        """
        rng, width, columns = np.random.default_rng(0), self.hidden, self.gates * self.hidden
        inputs = rng.standard_normal((self.time, self.batch, width), np.float32)
        kernel, recurrent_kernel, bias = (
            ((2 * rng.random(shape, np.float32) - 1) / np.float32(np.sqrt(width)))
            for shape in ((width, columns), (width, columns), (columns,))
        )
        return inputs, kernel, recurrent_kernel, bias

    def lengths(self) -> np.ndarray | None:
        """The lengths of the sequences, int32 [batch]; None where all are `time`."""
        if not self.ragged:
            return None
        return np.random.default_rng(1).integers(-(-self.time // 2), self.time + 1, self.batch, np.int32)


@dataclass(frozen=True)
class Inference:
    """The tutorial's network from uint8 images to probabilities, NumPy to NumPy, all conversions included.

    Attributes:
      images: how many images a call, from MNIST's test set.
      start: as of `Epoch`.
    """

    images: int
    start: Start


@dataclass(frozen=True)
class Product:
    """A product of two square float32 matrices: how fast the machine multiplies at most."""

    size: int

    @property
    def flops(self) -> int:
        return 2 * self.size**3

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        left, right = (rng.standard_normal((self.size, self.size), np.float32) for _ in range(2))
        return left, right


Work = Epoch | Layer | Inference | Product


def lstm_flops(time: int, batch: int, inputs: int, hidden: int, *, backward: bool, input_gradient: bool = True) -> int:
    """Multiplications and additions in the matrix products of an LSTM layer.

    Forward: inputs and hidden states by their kernels. Backward as much for the kernels' gradients, and once more
    for those of the inputs and of the hidden states.
    """
    forward = inputs + hidden
    products = forward + backward * (forward + hidden + input_gradient * inputs)
    return 2 * time * batch * 4 * hidden * products
