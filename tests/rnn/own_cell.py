"""A cell of a user's own, for the tests of several files."""

import jax.numpy as jnp
from flax import nnx

from lstm_mnist_jax.rnn import GatedCell


class RotatedCell(GatedCell):
    """A cell of a user's own: no memory, two gates, a parameter that is no matrix."""

    num_gates = 2
    num_cell_states = 0

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.angle = nnx.Param(jnp.full(self.hidden_features, 0.3))

    def update(self, carry, projected, recurrent):
        (h,) = carry
        z, n = (x + jnp.cos(self.angle[...]) * y for x, y in zip(projected, recurrent, strict=True))
        z = nnx.sigmoid(z)
        return (z * h + (1 - z) * jnp.tanh(n),)
