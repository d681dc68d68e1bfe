"""The recurrent engine, usable on its own: quick recurrences under Flax's own cells.

Knows arrays and Flax; knows no MNIST, no config and no training.
"""

from lstm_mnist_jax.rnn.layers import LSTM, RNN
from lstm_mnist_jax.rnn.recurrence import LSTMCarry, LSTMStates, lstm

__all__ = ["LSTM", "RNN", "LSTMCarry", "LSTMStates", "lstm"]
