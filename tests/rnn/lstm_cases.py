"""Arguments of `lstm`, and what NumPy makes of them in float64, for the tests of several files."""

import math

import jax
import numpy as np
import numpy_lstm

from lstm_mnist_jax.rnn import LSTMCarry, LSTMStates


def arguments(rng, time, batch, features, hidden, networks=()):
    shapes = [(time, batch, features), (features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)]
    shapes += [(batch, hidden)] * 2
    scales = [1, 0.5, 1 / math.sqrt(hidden), 1, 1, 1]
    arrays = [
        np.float32(scale * rng.normal(size=(*networks, *shape))) for shape, scale in zip(shapes, scales, strict=True)
    ]
    return *arrays[:4], (arrays[4], arrays[5])


def assert_close(got, wanted, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        scale = max(1.0, float(np.max(np.abs(b), initial=0)))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


def assert_equal(got, wanted):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def numpy_states(args, reverse=False):
    """`lstm` in NumPy, in float64."""
    *weights, (c, h) = args
    hs, cs = numpy_lstm.lstm(*weights, c, h, reverse=reverse)
    return LSTMStates(hs, cs, LSTMCarry(*numpy_lstm.last(hs, cs, c, h, reverse=reverse)))


def numpy_gradients(args, reverse=False, **cotangents):
    """The gradients of the arguments of `lstm` in NumPy, from those of its results."""
    *weights, (c, h) = args
    *gradients, d_c, d_h = numpy_lstm.gradients(*weights, c, h, **cotangents, reverse=reverse)
    return *gradients, (d_c, d_h)
