"""Recurrent layers for Flax: fast recurrences for Flax's own cells, and cells that Flax does not have.

Depends on JAX, Flax and NumPy; not on the rest of this package.
"""

from lstm_mnist_jax.rnn.cells import (
    CoupledLSTMCell,
    GatedCell,
    GRUCell,
    LayerNormLSTMCell,
    PeepholeLSTMCell,
    ProjectedLSTMCell,
    URLSTMCell,
)
from lstm_mnist_jax.rnn.gated import gated
from lstm_mnist_jax.rnn.initializers import chrono, uniform_gates
from lstm_mnist_jax.rnn.layers import RNN
from lstm_mnist_jax.rnn.noise import RecurrentNoise
from lstm_mnist_jax.rnn.recurrence import LSTMCarry, LSTMStates, lstm
from lstm_mnist_jax.rnn.stack import GRU, LSTM, StackedRNN
from lstm_mnist_jax.rnn.weights import load_keras, load_torch, to_keras, to_torch

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "CoupledLSTMCell",
    "GRUCell",
    "GatedCell",
    "LSTMCarry",
    "LSTMStates",
    "LayerNormLSTMCell",
    "PeepholeLSTMCell",
    "ProjectedLSTMCell",
    "RecurrentNoise",
    "StackedRNN",
    "URLSTMCell",
    "chrono",
    "gated",
    "load_keras",
    "load_torch",
    "lstm",
    "to_keras",
    "to_torch",
    "uniform_gates",
]
