"""When the inputs of a forward loop are projected before it, and when by the compiled loop, step by step."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lstm_mnist_jax.rnn.products import project

WEIGHTS_OF_A_SEQUENCE = 1 << 12
"""The compiled kernel projects the inputs if their weights are at most so many for each sequence of the batch.

Each step reads them all: with few sequences this takes longer. In a layer's forward pass, one sequence with 2^13
weights took longer than with a product before the loop, with 2^12 as long; 16 sequences with 2^16 took 0.84 to 0.87 of
the time, with 2^18 0.93 to 0.99, with 2^20 0.97 to 1.13 (28 steps, one Zen 5 core, AVX-512 and AVX2)."""

PROJECTED_BYTES = 64 << 20
"""It also projects the inputs if they would take more memory projected, and no result takes this memory afterwards.

In a layer's forward pass with 2^20 weights, 8,400 steps of one sequence (66 MiB) took 1.26 times as long as with a
product before the loop; 784 steps of 16 and of 64 sequences (98 and 392 MiB) took 0.79 and 0.83 of the time (two Zen 5
cores)."""


def is_projected_before(inputs: Array, kernel: Array, is_kept: bool) -> bool:
    """Whether the compiled loop is given projected inputs, as each step would read too many weights.

    Args:
      inputs: [networks, time, batch, features].
      kernel: [networks, features, gates].
      is_kept: whether a result takes the memory of the projected inputs, which then cost none: the activations, where
        they are wanted for a gradient.
    """
    networks, time, batch, _ = inputs.shape
    _, features, gates = kernel.shape
    if features * gates <= WEIGHTS_OF_A_SEQUENCE * batch:
        return False
    sizes = networks, time, batch, gates, kernel.dtype.itemsize
    # (A symbolic size cannot be compared, and such a program is made for other platforms.)
    return is_kept or (all(isinstance(size, int) for size in sizes) and math.prod(sizes) <= PROJECTED_BYTES)


def with_projected_inputs(arrays: Any, over: Any) -> tuple[Any, ...]:
    """The arguments of a forward loop with projected inputs, and without their weights.

    `over` are the axes of a mesh that divide the features, or None.
    """
    inputs, kernel, *others = arrays
    # (Of the product of one network under a vmap, XLA makes a copy.)
    projected = project(inputs[0], kernel[0])[None] if len(kernel) == 1 else jax.vmap(project)(inputs, kernel)
    return projected if over is None else jax.lax.psum(projected, over), jnp.zeros((0,), kernel.dtype), *others
