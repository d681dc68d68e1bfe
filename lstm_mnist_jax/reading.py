"""What a network thinks while it reads: its logits after each step, its states, and the pixels that decide.

Pure functions of parameters and images, as `model.apply`; knows the model, no run and no file.
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


class LayerStates(NamedTuple):
    """The states of a recurrent layer after each step.

    Attributes:
      hidden: [batch, time, features], what the layer puts out; in both directions, forwards beside backwards.
      cell: the LSTM's memory c, of the same shape; None for cells that have no memory but their output (GRU).
    """

    hidden: Float[Array, "batch time features"]
    cell: Float[Array, "batch time features"] | None


@partial(jax.jit, static_argnames="config")
def logits_along(params: model.Params, images: model.Images, config: ModelConfig) -> Float[Array, "batch time classes"]:
    """The logits after each step: what the network would say if the image ended there.

    In one direction that is the dense layer on every step's hidden state, or on what is pooled of those so far. A
    network of both directions reads each beginning of the sequence anew, backwards too, so it takes time squared.

    Args:
      params, images, config: as for `model.apply`.
    """
    network = model.bind(params, config, images.shape[1:])
    sequences = network.sequences(images)
    if not config.bidirectional:
        outputs, _ = network.rnn(sequences)
        return jnp.moveaxis(network.dense(network.pool_along(outputs)), 0, 1)
    lengths = jnp.arange(1, len(sequences) + 1)
    return jnp.moveaxis(jax.lax.map(partial(network.logits_until, sequences), lengths), 0, 1)


@partial(jax.jit, static_argnames="config")
def states(params: model.Params, images: model.Images, config: ModelConfig) -> list[LayerStates]:
    """Hidden and cell states of every layer, the lowest first, after each step.

    Backward states stand at the step that they were computed of, so they have seen what comes after it.

    Args:
      params, images, config: as for `model.apply`.
    """
    network = model.bind(params, config, images.shape[1:])
    inputs, found = network.sequences(images), []
    for layer in network.rnn.layers:
        rnns = [layer.forward_rnn, layer.backward_rnn] if config.bidirectional else [layer]
        carries = [_carries(rnn.cell, inputs, rnn.reverse) for rnn in rnns]
        hidden, *memories = (jnp.concatenate(parts, axis=-1) for parts in zip(*carries, strict=True))
        in_time = [jnp.moveaxis(part, 0, 1) for part in (hidden, *memories)]
        found.append(LayerStates(in_time[0], in_time[1] if memories else None))
        inputs = hidden
    return found


def _carries(cell: Any, inputs: Array, reverse: bool) -> list[Array]:
    """The output and then the memory, if there is one, after each step, [time, batch, features] each."""
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
    """How much each pixel speaks for a class: the gradient of the class's log probability (Simonyan et al. 2014).

    Args:
      params, config: as for `model.apply`.
      images: floats from 0 to 1.
      labels: the class of each image that is asked about.

    Returns:
      Of the images' shape: positive where a brighter pixel would make the class more probable.
    """

    def log_probability(images: Array) -> Array:
        return -model.softmax_cross_entropy(model.apply(params, images, config), labels).sum()

    return jax.grad(log_probability)(jnp.asarray(images))
