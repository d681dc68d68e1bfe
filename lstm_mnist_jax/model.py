"""The classifier: an image as a sequence -> recurrent layers -> pooling over time -> dense layers -> logits.

A Flax module gives the parameters their names and places. `init` and `apply` are pure functions over the nested
dictionary of these parameters.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.nn.initializers import glorot_uniform, normal
from jaxtyping import Array, Float, Integer, Key, Num, PRNGKeyArray

from lstm_mnist_jax.config import ModelConfig
from lstm_mnist_jax.data.tasks import Task
from lstm_mnist_jax.rnn import LSTM, GRUCell, LayerNormLSTMCell, StackedRNN, URLSTMCell, chrono
from lstm_mnist_jax.rnn.recurrence import AnyArray

Params = dict[str, Any]
"""Nested dictionaries of arrays: rnn.layers.N.cell.{dense_i,dense_h}, dense_hidden.N if there are any, and dense."""

Images = Integer[AnyArray, "batch height width *channels"] | Float[AnyArray, "batch height width *channels"]
Logits = Float[Array, "batch classes"]

NUM_CLASSES = 10

CELL_NAMES = {"lstm": "LSTM", "gru": "GRU", "layer_norm_lstm": "LayerNorm-LSTM", "ur_lstm": "UR-LSTM"}


def hard_sigmoid_keras2(x: Array) -> Array:
    """The hard sigmoid of Keras 1 and 2, whose slope is 0.2; that of JAX, PyTorch and Keras 3 is 1/6."""
    return jnp.clip(0.2 * x + 0.5, 0, 1)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": nnx.tanh,
    "sigmoid": nnx.sigmoid,
    "relu": nnx.relu,
    "linear": nnx.identity,
    "hard_sigmoid_keras2": hard_sigmoid_keras2,
    "hard_sigmoid_keras3": nnx.hard_sigmoid,
}
"""The functions of a config's activations."""


def task_of(config: ModelConfig) -> Task:
    """The task of a network: how an image becomes a sequence."""
    return Task(config.task, config.sequence_length, config.permutation_seed)


def precision_of(config: ModelConfig) -> AbstractContextManager[None]:
    """While entered, matrix products that are traced have the precision of the config; so have their gradients.

    Args:
      config: the network. Its precision "default" leaves JAX's own setting as it is.

    Returns:
      A context manager.

    Examples:
      >>> import jax
      >>> from lstm_mnist_jax import model
      >>> from lstm_mnist_jax.config import ModelConfig
      >>> with model.precision_of(ModelConfig(precision="highest")):
      ...     program = jax.make_jaxpr(jax.numpy.matmul)(jax.numpy.ones((2, 3)), jax.numpy.ones((3, 4)))
      >>> "Precision.HIGHEST" in str(program)
      True
    """
    return nullcontext() if config.precision == "default" else jax.default_matmul_precision(config.precision)


class Classifier(nnx.Module):
    """The network as a Flax module.

    Its initial weights are the tutorial's by default: LSTM kernels Glorot-uniform over the whole [in + hidden,
    4 hidden], the forget gates' bias 1, the output layer's weights and biases from a standard normal distribution.
    Hidden dense layers have Flax's own initial weights: LeCun-normal kernels, and biases of zero.
    """

    def __init__(self, config: ModelConfig, image_shape: tuple[int, ...], num_classes: int, *, rngs: nnx.Rngs) -> None:
        self.config, self.task = config, task_of(config)
        steps, features = self.task.shape(image_shape)
        self.rnn = _stack(config)(features, config.hidden_features, rngs=rngs)
        for layer in self.rnn.layers:
            for rnn in [layer.forward_rnn, layer.backward_rnn] if config.bidirectional else [layer]:
                if config.cell == "lstm":
                    rnn.cell.activation_fn = ACTIVATIONS[config.activation]
                    rnn.cell.gate_fn = ACTIVATIONS[config.recurrent_activation]
        features = self.rnn.out_features
        if config.pooling == "attention":
            self.attention = nnx.Linear(features, 1, use_bias=False, rngs=rngs)
        features *= steps if config.pooling == "all" else 1
        hidden = []
        for width in config.dense_features:
            hidden.append(nnx.Linear(features, width, rngs=rngs))
            features = width
        if hidden:  # as a parameter tree without them has no such name
            self.dense_hidden = nnx.List(hidden)
        init = normal(config.dense_stddev)
        self.dense = nnx.Linear(features, num_classes, kernel_init=init, bias_init=init, rngs=rngs)

    def __call__(self, images: Images, dropout_keys: Key[Array, " batch"] | None = None) -> Logits:
        """Classifies images: see `apply`."""
        masks, between = self._masks(dropout_keys), len(self.config.hidden_features) - 1
        with precision_of(self.config):
            outputs, carries = self.rnn(self.sequences(images), masks=masks and masks[:between])
            return self._dense_layers(self._pool(outputs, carries), masks and masks[between:])

    def _dense_layers(self, features: Array, masks: list[Array] | None = None) -> Float[Array, "*batch classes"]:
        """The logits of pooled features; the masks are those of the inputs of each dense layer."""
        layers = self._dense()
        for number, layer in enumerate(layers):
            if masks is not None:
                features *= jnp.tile(masks[number], features.shape[-1] // masks[number].shape[-1])
            features = layer(features)
            if number + 1 < len(layers):
                features = ACTIVATIONS[self.config.dense_activation](features)
        return features

    def _dense(self) -> list[nnx.Linear]:
        """All dense layers, the output layer last."""
        return [*(self.dense_hidden if self.config.dense_features else []), self.dense]

    def sequences(self, images: Images) -> Float[Array, "time batch features"]:
        """The input sequences of the recurrent layers."""
        sequences = self.task.read(images)
        if jnp.issubdtype(sequences.dtype, jnp.integer):
            sequences = sequences.astype(jnp.float32) * (1 / 255)
        return sequences

    def _masks(self, keys: Array | None) -> list[Array] | None:
        """The dropout mask of each layer's outputs, [batch, features]: 0 or 1 / (1 - rate), from each image's key."""
        if keys is None:
            return None
        widths = [width * (2 if self.config.bidirectional else 1) for width in self.config.hidden_features]
        widths += self.config.dense_features
        keep = 1 - self.config.dropout_rate

        def draw(key: Array) -> list[Array]:
            keys = jax.random.split(key, len(widths))
            return [jax.random.bernoulli(key, keep, (width,)) / keep for key, width in zip(keys, widths, strict=True)]

        return jax.vmap(draw)(keys)

    def logits_until(self, sequences: Float[Array, "time batch features"], length: Integer[Array, ""]) -> Logits:
        """The logits of the sequences cut after `length` steps, 1 or more; `length` may be traced.

        With the pooling "all", the outputs of the later steps are zero.
        """
        outputs, carries = self.rnn(sequences, seq_lengths=jnp.broadcast_to(length, sequences.shape[1:2]))
        counts = (jnp.arange(len(outputs)) < length)[:, None, None]
        return self._dense_layers(self._pool(outputs, carries, counts))

    def _pool(self, outputs: Array, carries: list[Any], counts: Array | None = None) -> Array:
        """The pooled features for the dense layer, [batch, features].

        Args:
          outputs: of the last layer, [time, batch, features].
          carries: the final carries of every layer.
          counts: [time, 1, 1], which steps are pooled; None is all.
        """
        match self.config.pooling:
            case "mean":
                return outputs.mean(axis=0, where=counts)
            case "max":
                return outputs.max(axis=0, where=counts, initial=-jnp.inf)
            case "attention":
                weights = jax.nn.softmax(self.attention(outputs), axis=0, where=counts)
                return jnp.sum(outputs * weights, axis=0)
            case "last_step":
                return outputs[-1 if counts is None else counts.sum() - 1]
            case "all":
                steps, batch, features = outputs.shape
                return jnp.moveaxis(outputs, 0, 1).reshape(batch, steps * features)
        directions = carries[-1] if self.config.bidirectional else [carries[-1]]
        return jnp.concatenate([c[-1] if isinstance(c, tuple) else c for c in directions], axis=-1)

    def logits_along(self, outputs: Float[Array, "time batch features"]) -> Float[Array, "time batch classes"]:
        """The logits of the sequence cut after each step; for layers in one direction. See `logits_until`."""
        if self.config.pooling != "all":
            return self._dense_layers(self._pool_along(outputs))
        first, *rest = self._dense()
        kernel = first.kernel[...].reshape(len(outputs), outputs.shape[-1], -1)
        features = jnp.cumsum(jnp.einsum("tbf,tfo->tbo", outputs, kernel), axis=0)
        features += 0 if first.bias is None else first.bias[...]
        for layer in rest:
            features = layer(ACTIVATIONS[self.config.dense_activation](features))
        return features

    def _pool_along(self, outputs: Array) -> Array:
        """The pooled features of the sequence cut after each step, [time, batch, features]."""
        match self.config.pooling:
            case "mean":
                return jnp.cumsum(outputs, axis=0) / jnp.arange(1, len(outputs) + 1)[:, None, None]
            case "max":
                return jax.lax.cummax(outputs, axis=0)
            case "attention":
                scores = self.attention(outputs)
                totals = jax.lax.cumlogsumexp(scores, axis=0)  # weights are relative to it, so that none overflows
                kept = jnp.exp(jnp.concatenate([jnp.full_like(totals[:1], -jnp.inf), totals[:-1]]) - totals)

                def add(mean: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array]:
                    kept, share, output = step
                    mean = kept * mean + share * output
                    return mean, mean

                return jax.lax.scan(add, jnp.zeros_like(outputs[0]), (kept, jnp.exp(scores - totals), outputs))[1]
        return outputs


def _stack(config: ModelConfig) -> Callable[..., StackedRNN]:
    """The constructor of the recurrent layers: (in_features, hidden_features, rngs=...)."""
    options: dict[str, Any] = {"time_major": True, "bidirectional": config.bidirectional}
    steps = config.chrono_steps
    match config.cell:
        case "gru":
            if steps is not None:
                options["bias_init"] = chrono(steps, "rfn")  # of its gates r, z, n the second is the forget gate
            return partial(StackedRNN, GRUCell if config.recurrent_bias else nnx.GRUCell, **options)
        case "ur_lstm":
            return partial(StackedRNN, URLSTMCell, **options)
        case "layer_norm_lstm":
            cell: Callable[..., StackedRNN] = partial(StackedRNN, LayerNormLSTMCell)
        case _:
            cell = partial(LSTM, fused_kernel_init=glorot_uniform())
    options |= {"forget_bias": config.forget_bias} if steps is None else {"bias_init": chrono(steps)}
    return partial(cell, **options)


def describe_layers(config: ModelConfig) -> str:
    """The layers in words: "LSTM 32 -> LSTM 64 -> max over time -> dense 32 (relu)"."""
    name = ("bidirectional " if config.bidirectional else "") + CELL_NAMES[config.cell]
    own = f" ({config.activation}, {config.recurrent_activation})" if runs_through_flax(config) else ""
    own += " (recurrent bias)" * config.recurrent_bias
    layers = [f"{name} {features}{own}" for features in config.hidden_features]
    if config.pooling != "last":
        words = {"all": "all steps", "last_step": "last step"}
        layers.append(words.get(config.pooling, f"{config.pooling} over time"))
    layers += [f"dense {features} ({config.dense_activation})" for features in config.dense_features]
    return " -> ".join(layers)


SLOWER = "these activations run through Flax's own scan, which is slower than the layers with tanh and sigmoid"


def runs_through_flax(config: ModelConfig) -> bool:
    """Whether the recurrent layers have activations that only Flax's own scan computes."""
    return (config.activation, config.recurrent_activation) != ("tanh", "sigmoid")


def init(
    config: ModelConfig, key: PRNGKeyArray, image_shape: tuple[int, ...] = (28, 28), num_classes: int = NUM_CLASSES
) -> Params:
    """Draws the parameters.

    Args:
      config: the network.
      key: a key of JAX; it decides every parameter.
      image_shape: (height, width) or (height, width, channels) of one image.
      num_classes: the number of classes.

    Returns:
      A nested dictionary of float32 arrays: `rnn.layers.N.cell.dense_i` and `.dense_h`, `dense_hidden.N` of hidden
      dense layers, and `dense`, each with `kernel` [in, out] and, where it has one, `bias` [out].

    Raises:
      ConfigError: images of this shape cannot be read as the config says.

    Examples:
      >>> import jax
      >>> from lstm_mnist_jax import model
      >>> from lstm_mnist_jax.config import ModelConfig
      >>> params = model.init(ModelConfig(hidden_features=(32, 64)), jax.random.key(0))
      >>> params["rnn"]["layers"][1]["cell"]["dense_h"]["kernel"].shape, params["dense"]["bias"].shape
      ((64, 256), (10,))
    """
    model = Classifier(config, image_shape, num_classes, rngs=nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def apply(
    params: Params,
    images: Images,
    config: ModelConfig,
    *,
    dropout_keys: Key[Array, " batch"] | None = None,
) -> Logits:
    """Computes the class logits of images.

    Args:
      params: the parameters, as `init` returns them.
      images: [batch, height, width] or [batch, height, width, channels]; integers 0 to 255 (uint8), which are
        multiplied by 1/255, or floats, which are used as they are.
      config: the network that the parameters belong to: the config that `init` was called with; of a run
        `load_run(...).folder.config.model`; of a file of weights `formats.read(...).config`.
      dropout_keys: one key per image, for dropout as in training; None is no dropout.

    Returns:
      The logits, float32 [batch, classes].

    Raises:
      TypeError: `config` is not a `ModelConfig`.
      ValueError: the parameters are not those of `config`, or the images have another size.
      ConfigError: the images cannot be read as the config says.

    Examples:
      >>> import jax
      >>> import numpy as np
      >>> from lstm_mnist_jax import model
      >>> from lstm_mnist_jax.config import ModelConfig
      >>> config = ModelConfig(hidden_features=(32, 64))
      >>> params = model.init(config, jax.random.key(0))
      >>> model.apply(params, np.zeros((5, 28, 28), np.uint8), config).shape
      (5, 10)
    """
    classifier = bind(params, config, images.shape[1:])
    return classifier(images, dropout_keys if config.dropout_rate else None)


def bind(params: Params, config: ModelConfig, image_shape: tuple[int, ...]) -> Classifier:
    """The network as a module that holds these parameters, for its states and other methods.

    Called, it computes in the precision of the config; its other methods and layers within `precision_of(config)`.

    Args:
      params: the parameters, as `init` returns them.
      config: the network that they belong to.
      image_shape: (height, width) or (height, width, channels) of one image.

    Raises:
      TypeError: `config` is not a `ModelConfig`.
      ValueError: the parameters are not those of `config` for images of this shape.
      ConfigError: such images cannot be read as the config says.
    """
    if not isinstance(config, ModelConfig):
        raise TypeError(
            f"Expected the ModelConfig that made the parameters, got {type(config).__name__}. It is the model of a "
            "Config, load_run(...).folder.config.model of a run, and formats.read(...).config of a file of weights."
        )
    graph, expected = _skeleton(config, image_shape, params["dense"]["bias"].shape[0])
    found = jax.tree.map(jnp.shape, params)
    if found != expected:
        raise ValueError(_mismatch(config, image_shape, found, expected))
    return nnx.merge(graph, params, copy=True)


def param_shapes(config: ModelConfig, image_shape: tuple[int, ...], num_classes: int) -> Params:
    """What `init` returns, with a `jax.ShapeDtypeStruct` for each array. A network is traced once in a process.

    Args:
      config, image_shape, num_classes: as for `init`.

    Raises:
      ConfigError: images of this shape cannot be read as the config says.

    Examples:
      >>> from lstm_mnist_jax import model
      >>> from lstm_mnist_jax.config import ModelConfig
      >>> model.param_shapes(ModelConfig(hidden_features=(4,)), (28, 28), 10)["dense"]["kernel"].shape
      (4, 10)
    """
    _, shapes = _skeleton(config, image_shape, num_classes)
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=lambda node: isinstance(node, tuple)
    )


@cache
def _skeleton(config: ModelConfig, image_shape: tuple[int, ...], num_classes: int) -> tuple[Any, Any]:
    """The static part of the module, without its parameters; and their shapes."""
    model = nnx.eval_shape(lambda: Classifier(config, image_shape, num_classes, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model, nnx.Param)
    return graph, jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(params))


def _mismatch(config: ModelConfig, image_shape: tuple[int, ...], found: Any, expected: Any) -> str:
    """The error message for parameters with unexpected shapes."""

    def by_name(shapes: Any) -> dict[str, Any]:
        leaves = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=lambda node: isinstance(node, tuple))
        return {jax.tree_util.keystr(path, simple=True, separator="."): shape for path, shape in leaves}

    here, wanted = by_name(found), by_name(expected)
    name = next(name for name in [*wanted, *here] if here.get(name) != wanted.get(name))
    images = " x ".join(map(str, image_shape))
    return (
        f"The parameters do not fit images of {images} and the config's {config.cell} layers {config.hidden_features}: "
        f"{name} is {here.get(name, 'missing')}, expected {wanted.get(name, 'none')}."
    )


def softmax_cross_entropy(
    logits: Float[AnyArray, "batch classes"],
    labels: Integer[AnyArray, " batch"] | Num[AnyArray, "batch classes"],
) -> Float[Array, " batch"]:
    """Softmax cross-entropy of each example, in nats.

    Args:
      logits: floats [batch, classes].
      labels: the classes as integers [batch], or distributions over the classes [batch, classes], such as one-hot
        vectors. Both forms give the same number.

    Returns:
      The loss of each example, [batch], in the dtype of the logits; NaN for an integer outside 0 to classes - 1.

    Examples:
      >>> import numpy as np
      >>> from lstm_mnist_jax import model
      >>> logits = np.array([[2, 0, 0], [2, 0, 0], [2, 0, 0]], np.float32)
      >>> [f"{loss:.3f}" for loss in model.softmax_cross_entropy(logits, np.array([0, 2, 3]))]
      ['0.240', '2.240', 'nan']
    """
    if labels.ndim == logits.ndim:
        return optax.softmax_cross_entropy(logits, labels)
    classes = logits.shape[-1]
    # Not optax's function for integer labels, which is less exact for large logits.
    losses = optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, classes, dtype=logits.dtype))
    return jnp.where((labels >= 0) & (labels < classes), losses, jnp.nan)
