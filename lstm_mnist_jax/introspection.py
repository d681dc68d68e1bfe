"""What a network computes besides its logits, as pure functions like `model.apply`: logits after each time step, the
states of its layers, saliency.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Integer

from lstm_mnist_jax import model
from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.rnn.recurrence import AnyArray
from lstm_mnist_jax.training.mesh import ONE_BY_ONE

ALONG_BATCH = 4096
"""The most prefixes of sequences that an accelerator reads at once, for a bidirectional network's logits along time."""


class LayerStates(NamedTuple):
    """The states of a recurrent layer after each step.

    Attributes:
      hidden: [batch, time, features], the outputs; of both directions, forward and backward concatenated.
      cell: the cell states of an LSTM, of the same shape; None for cells without (GRU).
    """

    hidden: Float[AnyArray, "batch time features"]
    cell: Float[AnyArray, "batch time features"] | None


@partial(jax.jit, static_argnames="config")
def logits_along(params: model.Params, images: model.Images, config: ModelConfig) -> Float[Array, "batch time classes"]:
    """The logits after each step, as if the image ended there.

    With one direction, the dense layers are applied to the pooled hidden states up to each step. A bidirectional
    network reads each prefix of the sequence anew, so the cost is quadratic in the number of steps. With the pooling
    "all", the outputs of the steps that are not read are zero.

    Args:
      params, images, config: as for `model.apply`.
    """
    network = model.bind(params, config, images.shape[1:])
    sequences = network.sequences(images)
    with model.precision_of(config):
        if not config.bidirectional:
            outputs, _ = network.rnn(sequences)
            return jnp.moveaxis(network.logits_along(outputs), 0, 1)
        lengths = jnp.arange(1, len(sequences) + 1)
        # An accelerator would idle with one length; with all at once, long sequences would not fit into its memory.
        at_once = 0 if jax.default_backend() in ONE_BY_ONE else max(1, ALONG_BATCH // max(1, sequences.shape[1]))
        along = jax.lax.map(partial(network.logits_until, sequences), lengths, batch_size=at_once or None)
        return jnp.moveaxis(along, 0, 1)


@partial(jax.jit, static_argnames="config")
def probabilities_along(params: model.Params, images: jax.Array, config: ModelConfig) -> jax.Array:
    return jax.nn.softmax(logits_along(params, images, config))


@partial(jax.jit, static_argnames="config")
def layer_states(params: model.Params, images: model.Images, config: ModelConfig) -> list[LayerStates]:
    """Hidden and cell states of every layer, the lowest first, after each step.

    Backward states are placed at the step whose input they have read last; they have read all later steps too.

    Args:
      params, images, config: as for `model.apply`.
    """
    network = model.bind(params, config, images.shape[1:])
    inputs, found = network.sequences(images), []
    for layer in network.rnn.layers:
        rnns = [layer.forward_rnn, layer.backward_rnn] if config.bidirectional else [layer]
        with model.precision_of(config):
            carries = [_carries(rnn.cell, inputs, rnn.reverse) for rnn in rnns]
        inputs, *cells = (jnp.concatenate(parts, axis=-1) for parts in zip(*carries, strict=True))
        found.append(LayerStates(jnp.moveaxis(inputs, 0, 1), jnp.moveaxis(cells[0], 0, 1) if cells else None))
    return found


def _carries(cell: Any, inputs: Array, reverse: bool) -> list[Array]:
    """The output and, if there is one, the cell state after each step, [time, batch, features] each."""
    graph, state = nnx.split(cell)

    def step(carry: Any, row: Array) -> tuple[Any, list[Array]]:
        carry, output = nnx.merge(graph, state, copy=True)(carry, row)
        return carry, [output, *(carry[:1] if isinstance(carry, tuple) else ())]

    return jax.lax.scan(step, cell.initialize_carry(inputs.shape[1:], nnx.Rngs(0)), inputs, reverse=reverse)[1]


@partial(jax.jit, static_argnames="config")
def saliency(
    params: model.Params,
    images: Float[AnyArray, "batch height width *channels"],
    labels: Integer[AnyArray, " batch"],
    config: ModelConfig,
) -> Float[Array, "batch height width *channels"]:
    """The gradient of a class's log probability with respect to each pixel (Simonyan et al. 2014).

    Args:
      params: as for `model.apply`.
      config: as for `model.apply`.
      images: floats from 0 to 1.
      labels: the class for each image.

    Returns:
      Of the images' shape: positive where a brighter pixel would make the class more probable.
    """

    def log_probability(images: Array) -> Array:
        return -model.softmax_cross_entropy(model.apply(params, images, config), labels).sum()

    return jax.grad(log_probability)(jnp.asarray(images))
