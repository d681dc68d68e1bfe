"""Noise that regularizes a recurrence: dropout of the hidden state, and zoneout.

Depends on shapes, keys and the check of options; not on cells or loops.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from lstm_mnist_jax.rnn.recurrence import require_options


def is_rate(value: Any) -> bool:
    """Whether it is a number from 0 to below 1."""
    try:
        return np.ndim(value) == 0 and bool(0 <= value < 1)
    except (TypeError, ValueError):
        return False


class RecurrentNoise(nnx.Module):
    """Recurrent dropout and zoneout, for `RNN(cell, noise=...)`.

    - Recurrent dropout: in the recurrent product, some features of the hidden state are zero and the others are
      divided by 1 - rate; the same features at every step of a sequence (Gal and Ghahramani 2016, "variational"
      dropout).
    - Zoneout: each feature of the carry keeps its value of the step before with some probability, drawn anew at every
      step (Krueger et al. 2017). In evaluation, the expectation is computed.

    `model.train()`, `model.eval()` and the attribute `deterministic` switch it, as they switch `nnx.Dropout`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from lstm_mnist_jax.rnn import RNN, RecurrentNoise
      >>> noise = RecurrentNoise(dropout_rate=0.2, zoneout_rates=(0.5, 0.05), rngs=nnx.Rngs(0))
      >>> rnn = RNN(nnx.OptimizedLSTMCell(28, 32, rngs=nnx.Rngs(0)), noise=noise)
      >>> inputs = jnp.ones((5, 10, 28))
      >>> bool((rnn(inputs) == rnn(inputs)).all())
      False
      >>> rnn.eval()
      >>> bool((rnn(inputs) == rnn(inputs)).all())
      True
    """

    def __init__(
        self,
        *,
        dropout_rate: float = 0.0,
        zoneout_rates: float | tuple[float, ...] = 0.0,
        deterministic: bool = False,
        rngs: nnx.Rngs | nnx.RngStream,
    ) -> None:
        """Makes the noise of one layer.

        Args:
          dropout_rate: probability that a feature of the hidden state is dropped from the recurrent product.
          zoneout_rates: probability that a feature keeps its value; one for all parts of the carry, or one for each,
            which for an LSTM are (c, h).
          deterministic: compute without noise, as in evaluation.
          rngs: gives the key stream `dropout`.

        Raises:
          ValueError: a rate is outside [0, 1), `deterministic` is no bool, or `rngs` are none.
        """
        if isinstance(zoneout_rates, list | np.ndarray):
            zoneout_rates = tuple(zoneout_rates)
        rates = zoneout_rates if isinstance(zoneout_rates, tuple) else (zoneout_rates,)
        if not all(map(is_rate, (dropout_rate, *rates))):
            raise ValueError(
                f"RecurrentNoise needs rates from 0 to below 1; got dropout_rate={dropout_rate!r}, "
                f"zoneout_rates={zoneout_rates!r}."
            )
        require_options("RecurrentNoise", deterministic=deterministic)
        if not isinstance(rngs, nnx.Rngs | nnx.RngStream):
            raise ValueError(f"RecurrentNoise expected rngs to be an nnx.Rngs or a stream of one; got {rngs!r}.")
        self.dropout_rate, self.zoneout_rates, self.deterministic = dropout_rate, zoneout_rates, deterministic
        self.rngs = rngs.dropout.fork() if isinstance(rngs, nnx.Rngs) else rngs

    def __call__(self, time: int, batch: int, widths: tuple[int, ...]) -> tuple[Array | None, Any]:
        """Draws the noise for one call.

        Args:
          time: number of time steps.
          batch: number of sequences.
          widths: features of each part of the carry, the hidden state last.

        Returns:
          The mask of recurrent dropout, floats [batch, hidden], or None; and for zoneout None, or for each part of the
          carry booleans [time, batch, features], or in evaluation the rate.

        Raises:
          ValueError: the number of zoneout rates is not the number of parts of the carry.
        """
        rates = self.zoneout_rates if isinstance(self.zoneout_rates, tuple) else (self.zoneout_rates,) * len(widths)
        if len(rates) != len(widths):
            raise ValueError(f"zoneout_rates has {len(rates)} values, but the cell's carry has {len(widths)} parts.")
        mask, zoneout = None, None
        if self.dropout_rate and not self.deterministic:
            kept = jax.random.bernoulli(self.rngs(), 1 - self.dropout_rate, (batch, widths[-1]))
            mask = kept.astype(jnp.float32) / (1 - self.dropout_rate)
        if any(rates):
            zoneout = tuple(jnp.float32(rate) for rate in rates)
            if not self.deterministic:
                zoneout = tuple(
                    jax.random.bernoulli(self.rngs(), rate, (time, batch, width))
                    for rate, width in zip(rates, widths, strict=True)
                )
        return mask, zoneout
