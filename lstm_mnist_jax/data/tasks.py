"""An image as a sequence. Functions of arrays, traceable by JAX."""

import jax
import jax.numpy as jnp
import numpy as np


def rows(images: jax.Array | np.ndarray) -> jax.Array:
    """Reads images row by row, from the top: one time step a row.

    Args:
      images: [batch, height, width] or [batch, height, width, channels], any dtype.

    Returns:
      Time-major sequences [height, batch, width * channels], of the same dtype.
    """
    batch, height = images.shape[:2]
    return jnp.moveaxis(images.reshape(batch, height, -1), 1, 0)
