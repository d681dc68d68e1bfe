"""What the inputs of an imported network were: folded into its first layer, or tried where they are not known."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.data import Examples
from lstm_mnist_jax.errors import WeightsError
from lstm_mnist_jax.interop.weights import folded, from_params, to_params

LOW_ACCURACY = 0.6
"""A trained classifier of ten classes that is less accurate had probably other inputs than were assumed."""

TRIED_EXAMPLES = 2000


@dataclass(frozen=True)
class Inputs:
    """The inputs that a network was trained with: (pixel / scale - mean) / std, of pixels from 0 to 255.

    Attributes:
      mean: subtracted from the scaled pixels.
      std: divides what is left. A negative one, with its mean, inverts the pixels.
      scale: divides the pixels. 255 gives numbers from 0 to 1, and 1 leaves the pixels as they are.

    Raises:
      WeightsError: a number is not finite, or a divisor is zero.

    Examples:
      >>> import numpy as np
      >>> from lstm_mnist_jax.interop.inputs import Inputs
      >>> dense_h = {"kernel": np.ones((4, 16)), "bias": np.ones(16)}
      >>> cell = {"dense_i": {"kernel": np.ones((28, 16))}, "dense_h": dense_h}
      >>> dense = {"kernel": np.ones((4, 10)), "bias": np.ones(10)}
      >>> params = {"rnn": {"layers": {0: {"cell": cell}}}, "dense": dense}
      >>> inputs = Inputs(mean=0.5, std=0.25)
      >>> folded = inputs.fold(params)["rnn"]["layers"][0]["cell"]
      >>> str(inputs), float(folded["dense_i"]["kernel"][0, 0]), float(folded["dense_h"]["bias"][0])
      ('(pixel / 255 - 0.5) / 0.25', 4.0, -55.0)
    """

    mean: float = 0.0
    std: float = 1.0
    scale: float = 255.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float):
                raise WeightsError(
                    f"--input-{name} is {value}, expected one number for all pixels. Means and standard deviations of "
                    "each channel are not folded: train the network on in the program that has them, or without them."
                )
            if not math.isfinite(value) or (not value and name != "mean"):
                expected = "a number" if name == "mean" else "a number, and not 0"
                raise WeightsError(f"--input-{name} is {value:g}, expected {expected}.")

    def __str__(self) -> str:
        scaled = "pixel" if self.scale == 1 else f"pixel / {self.scale:g}"
        if (self.mean, self.std) == (0, 1):
            return scaled
        return f"({scaled} - {self.mean:g}) / {self.std:g}"

    def options(self) -> str:
        """The options of `lstm-mnist import` for these inputs."""
        changed = {name: value for name, value in vars(self).items() if value != getattr(Inputs, name)}
        return " ".join(f"--input-{name} {value:g}" for name, value in changed.items()) or "no --input options"

    def fold(self, params: model.Params) -> model.Params:
        """The parameters of a network that computes the same from pixels / 255: W and b of the first layer, in float64.

        With x = gain u + shift for u = pixel / 255, W becomes gain W, and b becomes b + shift times the sum of W over
        the inputs.

        Args:
          params: the model's parameters, of LSTM or GRU layers in one direction or both.

        Returns:
          New parameters, float32.

        Raises:
          WeightsError: the layers are of other cells, or the weights become infinite.
        """
        if self == Inputs():
            return params
        gain, shift = 255 / self.scale / self.std, -self.mean / self.std
        weights = from_params(params)
        first = folded(weights.layers[0], gain, shift)
        if not all(np.isfinite(array).all() for cell in first.directions for array in cell[:3]):
            raise WeightsError(
                f"Inputs multiplied by {gain:g}, plus {shift:g}: the first layer's weights become infinite."
            )
        return to_params(weights._replace(layers=(first, *weights.layers[1:])))


RAW, UNIT, OFFSET = 1 / 64, 1 / 16, 10


def are_bytes(scale: float, center: float) -> bool | None:
    """Whether the inputs x of a network that first computes scale * (x - center) are pixels of 0 to 255, not 0 to 1.

    They are where the scale is less than `RAW`, or the center more than `OFFSET`; None, not clear, where the scale is
    between `RAW` and `UNIT`.
    """
    if abs(scale) < RAW or abs(center) > OFFSET:
        return True
    return None if abs(scale) < UNIT else False


CANDIDATES = {
    "normalized inputs": Inputs(0.1307, 0.3081),
    "inputs from -1 to 1": Inputs(0.5, 0.5),
    "inputs from 0 to 1": Inputs(),
    "columns for rows": None,
    "inverted pixels": Inputs(1.0, -1.0),
    "pixels from 0 to 255": Inputs(scale=1.0),
}
"""What is tried, the likely ones first; None are transposed images."""


def likely_causes(
    params: model.Params, config: ModelConfig, examples: Examples, inputs: Inputs = Inputs()
) -> list[str]:
    """Why an imported network may have a low accuracy, as lines of text: what was tried, and what else it may be.

    Args:
      params: the parameters, before any inputs are folded into them.
      config: the network.
      examples: labelled images, of which the first 2,000 are classified.
      inputs: those with which the accuracy was low.
    """
    examples = examples[:TRIED_EXAMPLES]
    lines = [f"a low accuracy for a trained classifier. Tried on {len(examples):,} validation images:"]
    highest = 0.0, ""
    for words, tried in CANDIDATES.items():
        images, task, used = examples.images, config.task, inputs if tried is None else tried
        if tried == inputs or (tried is None and (task == "pixels" or images.shape[1] != images.shape[2])):
            continue
        if tried is None:
            images, task = np.swapaxes(images, 1, 2), "rows" if task == "columns" else "columns"
        accuracy = int(_correct(used.fold(params), images, examples.labels, config)) / len(examples)
        options = f"--task {task}" if tried is None or task != ModelConfig.task else ""
        if tried is not None or used != Inputs():
            options += (", " if options and used == Inputs() else " ") + used.options()
        lines.append(f"  {words}: {accuracy:.2%}, with {options.strip()}")
        highest = max(highest, (accuracy, f"most likely {words}: import again, with {options.strip()}"))
    if highest[0] >= LOW_ACCURACY:
        lines.append(highest[1])
    else:
        lines.append(
            "none of these is right. It may be the order of the classes, for tf1 the forget bias of the cells "
            "(--forget-bias 0), the pooling (--pooling), or the activations (--activation, --recurrent-activation, "
            "--dense-activation)"
        )
    return lines


@partial(jax.jit, static_argnames="config")
def _correct(params: model.Params, images: Any, labels: Any, config: ModelConfig) -> jax.Array:
    """The number of correctly classified images."""
    return (model.apply(params, images, config).argmax(axis=-1) == jnp.asarray(labels)).sum()
