"""Layers with drawn weights of the shapes that PyTorch and Keras have, for the tests of several files."""

import jax
import numpy as np
from flax import nnx
from parameters import drawn_module

from lstm_mnist_jax.rnn import GRU, LSTM

IN, TIME, BATCH = 3, 4, 2


def layer_of(kind, widths=(5,), **options):
    return drawn_module(lambda: {"LSTM": LSTM, "GRU": GRU}[kind](IN, widths, rngs=nnx.Rngs(0), **options))


def torch_shapes(kind, widths=(5,), *, projection=None, bidirectional=False, bias=True, in_features=IN):
    """Names and shapes of the parameters, in the order of torch.nn.LSTM and torch.nn.GRU."""
    gates, shapes, features = {"LSTM": 4, "GRU": 3}[kind], {}, in_features
    for number, width in enumerate(widths):
        output = projection or width
        for suffix in ("", "_reverse")[: 1 + bidirectional]:
            end = f"l{number}{suffix}"
            shapes |= {f"weight_ih_{end}": (gates * width, features), f"weight_hh_{end}": (gates * width, output)}
            if bias:
                shapes |= {f"bias_ih_{end}": (gates * width,), f"bias_hh_{end}": (gates * width,)}
            if projection:
                shapes[f"weight_hr_{end}"] = (projection, width)
        features = output * (1 + bidirectional)
    return shapes


def drawn(shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {name: (0.5 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def torch_state(kind, widths=(5,), **options):
    return drawn(torch_shapes(kind, widths, **options))


def keras_shapes(kind, widths=(5,), *, bidirectional=False, bias=True, reset_after=True):
    """For each layer, the shapes of its get_weights()."""
    gates, features, layers = {"LSTM": 4, "GRU": 3}[kind], IN, []
    for width in widths:
        bias_shape = (2, gates * width) if kind == "GRU" and reset_after else (gates * width,)
        one = [(features, gates * width), (width, gates * width), *[bias_shape] * bias]
        layers.append(one * (1 + bidirectional))
        features = width * (1 + bidirectional)
    return layers


def keras_weights(kind, widths=(5,), **options):
    """For each layer, its get_weights(), drawn."""
    layers = keras_shapes(kind, widths, **options)
    return [list(drawn(dict(enumerate(shapes)), seed=number).values()) for number, shapes in enumerate(layers)]


def params_of(layer):
    return jax.tree.leaves(nnx.state(layer, nnx.Param))


def assert_same(one, other):
    one, other = (dict(enumerate(part)) if isinstance(part, list) else part for part in (one, other))
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=str(name))
