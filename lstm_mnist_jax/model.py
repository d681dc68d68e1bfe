"""The classifier: rows of an image -> LSTM layers -> last hidden state -> dense layer -> logits.

A Flax module gives the parameters their names and places; `init` and `apply` are pure functions over the nested
dictionary of those parameters, and all else in the program uses only these two.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import glorot_uniform, normal
from jaxtyping import Array, Float, Integer, Num, PRNGKeyArray

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.data.tasks import rows
from lstm_mnist_jax.rnn import LSTM
from lstm_mnist_jax.rnn.recurrence import AnyArray

Params = dict[str, Any]
"""Nested dictionaries of arrays: lstm.layers.N.cell.{dense_i,dense_h}, and dense."""

Images = Integer[AnyArray, "batch height width *channels"] | Float[AnyArray, "batch height width *channels"]
Logits = Float[Array, "batch classes"]


class Classifier(nnx.Module):
    """The network as a Flax module.

    Its initial weights are the tutorial's: LSTM kernels Glorot-uniform over the whole [in + hidden, 4 hidden],
    the forget gates' bias 1, the output layer's weights and biases from a standard normal distribution.
    """

    def __init__(self, config: ModelConfig, in_features: int, num_classes: int, *, rngs: nnx.Rngs) -> None:
        self.lstm = LSTM(
            in_features,
            config.hidden_features,
            time_major=True,
            fused_kernel_init=glorot_uniform(),
            forget_bias=config.forget_bias,
            rngs=rngs,
        )
        self.dense = nnx.Linear(
            config.hidden_features[-1], num_classes, kernel_init=normal(1.0), bias_init=normal(1.0), rngs=rngs
        )

    def __call__(self, images: Images) -> Logits:
        """Classifies images: see `apply`."""
        sequences = rows(images)
        if jnp.issubdtype(sequences.dtype, jnp.integer):
            sequences = sequences.astype(jnp.float32) * (1 / 255)
        _, carries = self.lstm(sequences)
        return self.dense(carries[-1].h)


def init(
    config: ModelConfig, key: PRNGKeyArray, image_shape: tuple[int, ...] = (28, 28), num_classes: int = 10
) -> Params:
    """Draws the parameters.

    Args:
      config: the widths of the layers and the forget gates' initial bias.
      key: decides every parameter.
      image_shape: (height, width) or (height, width, channels) of one image.
      num_classes: how many classes there are.
    """
    in_features = image_shape[1] * (image_shape[2] if len(image_shape) > 2 else 1)
    model = Classifier(config, in_features, num_classes, rngs=nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def apply(params: Params, images: Images, config: ModelConfig | None = None) -> Logits:
    """The class logits of images.

    Args:
      params: as `init` gives them.
      images: integers 0 to 255 (uint8), which are multiplied by 1/255, or floats, which are taken as they are.
      config: the config with which `params` were made; None takes it from their shapes.

    Raises:
      ValueError: the parameters are not those of `config`, or the images are of another width.
    """
    widths = tuple(layer["cell"]["dense_h"]["kernel"].shape[0] for layer in params["lstm"]["layers"].values())
    config = config or ModelConfig(hidden_features=widths)
    if widths != config.hidden_features:
        raise ValueError(f"The parameters are those of LSTM layers {widths}, the config says {config.hidden_features}.")
    in_features = params["lstm"]["layers"][0]["cell"]["dense_i"]["kernel"].shape[0]
    num_classes = params["dense"]["bias"].shape[0]
    return nnx.merge(_graph(config, in_features, num_classes), params)(images)


@cache
def _graph(config: ModelConfig, in_features: int, num_classes: int) -> Any:
    """The static part of the module: everything but its parameters."""
    model = nnx.eval_shape(lambda: Classifier(config, in_features, num_classes, rngs=nnx.Rngs(0)))
    return nnx.split(model, nnx.Param)[0]


def softmax_cross_entropy(
    logits: Float[AnyArray, "batch classes"],
    labels: Integer[AnyArray, " batch"] | Num[AnyArray, "batch classes"],
) -> Float[Array, " batch"]:
    """Softmax cross-entropy of each example, in nats.

    Args:
      logits: [batch, classes].
      labels: classes as integers [batch], or distributions over the classes [batch, classes], such as one-hot
        vectors. Both forms give the same number.
    """
    log_probabilities = jax.nn.log_softmax(logits)
    if labels.ndim < logits.ndim:
        return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    return -jnp.sum(labels * log_probabilities, axis=-1)
