"""An image as a sequence. Functions of arrays, traceable by JAX."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_mnist_jax.errors import ConfigError


class Task(NamedTuple):
    """How an image becomes a sequence.

    Attributes:
      name: rows (from the top), columns (from the left), pixels (row by row), or permuted (pixels in a random order,
        the same for all images).
      sequence_length: the number of time steps, of equally many pixels; None is one a row, a column or a pixel.
      permutation_seed: of the order of permuted pixels.
    """

    name: str = "rows"
    sequence_length: int | None = None
    permutation_seed: int = 0

    def shape(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """(time steps, features) of the sequences of images [height, width] or [height, width, channels].

        Raises:
          ConfigError: the number of pixels is not a multiple of the number of steps.
        """
        height, width, *channels = image_shape
        pixels = height * width
        steps = self.sequence_length or {"rows": height, "columns": width}.get(self.name, pixels)
        if pixels % steps:
            divisors = [n for n in range(1, pixels + 1) if pixels % n == 0]
            near = sorted(sorted(divisors, key=lambda n: abs(n - steps))[:6])
            raise ConfigError(
                f"sequence_length is {steps}, but an image of {height} x {width} has {pixels} pixels, not a "
                f"multiple of it. Use one of {', '.join(map(str, near))}, or another divisor of {pixels}."
            )
        return steps, pixels // steps * math.prod(channels)

    def permutation(self, image_shape: tuple[int, ...]) -> np.ndarray | None:
        """int [height * width], the order of the pixels, numbered row by row; None where they are not permuted.

        It is `numpy.random.RandomState(seed).permutation`, whose results NumPy promises never to change (NEP 19).
        """
        if self.name != "permuted":
            return None
        return np.random.RandomState(self.permutation_seed).permutation(math.prod(image_shape[:2]))

    def read(self, images: jax.Array | np.ndarray) -> jax.Array:
        """The sequences of images.

        Args:
          images: [batch, height, width] or [batch, height, width, channels], any dtype.

        Returns:
          Time-major sequences [time, batch, features], of the same dtype.
        """
        batch, *image_shape = images.shape
        steps, features = self.shape(tuple(image_shape))
        sequences = jnp.asarray(images)
        if self.name == "columns":
            sequences = jnp.swapaxes(sequences, 1, 2)
        order = self.permutation(tuple(image_shape))
        if order is not None:
            sequences = sequences.reshape(batch, len(order), *image_shape[2:])[:, order]
        return jnp.moveaxis(sequences.reshape(batch, steps, features), 1, 0)

    def step_name(self, image_shape: tuple[int, ...]) -> str:
        """What a time step reads: row, column or pixel; step where it reads more or less than one."""
        natural = self._replace(sequence_length=None).shape(image_shape)[0]
        name = {"permuted": "pixel"}.get(self.name, self.name.removesuffix("s"))
        return name if self.sequence_length in (None, natural) else "step"

    def describe(self, image_shape: tuple[int, ...]) -> str:
        """As text: "28 rows of 28"."""
        steps, features = self.shape(image_shape)
        natural = self._replace(sequence_length=None).shape(image_shape)[0]
        what = {"permuted": "permuted pixels"}.get(self.name, self.name)
        return f"{steps} {what} of {features}" if steps == natural else f"{what} in {steps} steps of {features}"
