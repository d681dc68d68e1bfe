"""cuDNN's LSTM as JAX has it: `jax.experimental.rnn`. It needs an NVIDIA GPU."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.libraries import Job, Unavailable
from benchmarks.libraries.in_jax import layer_job
from benchmarks.work import Layer


def layer(work: Layer, setting: str) -> Job:
    if jax.devices()[0].platform != "gpu":
        raise Unavailable(f"cuDNN needs an NVIDIA GPU; JAX has {jax.devices()[0].platform}.")
    if work.cell != "lstm":
        raise Unavailable("jax.experimental.rnn has no GRU.")
    from jax.experimental import rnn

    inputs, kernel, recurrent_kernel, bias = work.arrays()
    pieces = (kernel.T, recurrent_kernel.T, bias, np.zeros_like(bias))  # as PyTorch keeps them, in one vector
    weights = jnp.concatenate([jnp.asarray(piece).reshape(-1) for piece in pieces])
    lengths = jnp.full(work.batch, work.time, jnp.int32) if work.lengths() is None else jnp.asarray(work.lengths())

    def forward(weights: Any, inputs: jax.Array) -> Any:
        zeros = jnp.zeros((1, work.batch, work.hidden), jnp.float32)
        outputs, h, c = rnn.lstm(
            inputs, zeros, zeros, weights, lengths, work.hidden, work.hidden, 1, 0.0, False, jax.lax.Precision.HIGHEST
        )
        return outputs, (c, h)

    job = layer_job(work, forward, weights, np.ascontiguousarray(inputs.swapaxes(0, 1)))  # cuDNN's is batch-major
    # All weights are one vector to cuDNN: of the gradients' norms, only the inputs' can be compared.
    return replace(job, check=lambda: job.check()[:1])
