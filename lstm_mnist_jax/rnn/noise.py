"""Noise that regularises a recurrence: dropout of the hidden state, and zoneout.

Knows shapes and keys; knows no cells and no loops.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


class RecurrentNoise(nnx.Module):
    """What a layer's recurrence is disturbed with while it trains.

    - Recurrent dropout: the hidden state enters the recurrent product with some features at zero and the others
      scaled up, the same ones at every step of a sequence (Gal and Ghahramani 2016, "variational" dropout).
    - Zoneout: each feature of the carry keeps its value of the step before with some probability, anew at every step
      (Krueger et al. 2017). Without noise, the expectation is computed.

    Switched like `nnx.Dropout`, by `model.train()` and `model.eval()` or the attribute `deterministic`.
    """

    def __init__(
        self,
        *,
        dropout_rate: float = 0.0,
        zoneout_rates: float | tuple[float, ...] = 0.0,
        deterministic: bool = False,
        rngs: nnx.Rngs | nnx.RngStream,
    ) -> None:
        """Args:
          dropout_rate: probability that a feature of the hidden state does not recur in a sequence.
          zoneout_rates: probability that a feature keeps its value; one for all, or one for each part of the carry,
            for an LSTM (c, h).
          deterministic: whether to compute without noise.
          rngs: gives the key stream `dropout`.

        Raises:
          ValueError: a rate outside [0, 1).
        """
        if isinstance(zoneout_rates, list):
            zoneout_rates = tuple(zoneout_rates)
        rates = zoneout_rates if isinstance(zoneout_rates, tuple) else (zoneout_rates,)
        if not all(0 <= rate < 1 for rate in (dropout_rate, *rates)):
            raise ValueError(
                f"RecurrentNoise needs rates from 0 to below 1; got dropout_rate={dropout_rate}, "
                f"zoneout_rates={zoneout_rates}."
            )
        self.dropout_rate, self.zoneout_rates, self.deterministic = dropout_rate, zoneout_rates, deterministic
        self.rngs = rngs.dropout.fork() if isinstance(rngs, nnx.Rngs) else rngs

    def __call__(self, time: int, batch: int, widths: tuple[int, ...]) -> tuple[Array | None, Any]:
        """Draws the noise for one call.

        Args:
          time, batch: steps and sequences.
          widths: features of each part of the carry, the hidden state last.

        Returns:
          The mask [batch, hidden] of recurrent dropout, or None; and for zoneout None, or for each part of the carry
          booleans [time, batch, features] or, without noise, the rate.

        Raises:
          ValueError: there are other numbers of zoneout rates and of parts of the carry.
        """
        rates = self.zoneout_rates if isinstance(self.zoneout_rates, tuple) else (self.zoneout_rates,) * len(widths)
        if len(rates) != len(widths):
            raise ValueError(f"zoneout_rates has {len(rates)} values, but the cell's carry has {len(widths)} parts.")
        mask, zoneout = None, None
        if self.dropout_rate and not self.deterministic:
            kept = jax.random.bernoulli(self.rngs(), 1 - self.dropout_rate, (batch, widths[-1]))
            mask = kept / (1 - self.dropout_rate)
        if any(rates):
            zoneout = tuple(jnp.float32(rate) for rate in rates)
            if not self.deterministic:
                zoneout = tuple(
                    jax.random.bernoulli(self.rngs(), rate, (time, batch, width))
                    for rate, width in zip(rates, widths, strict=True)
                )
        return mask, zoneout
