"""TensorFlow's checkpoint files, read and written with NumPy alone. Knows names and arrays; knows no network."""

from lstm_mnist_jax.interop.tf_checkpoint.checkpoint import find_prefix, read_checkpoint, write_checkpoint
from lstm_mnist_jax.interop.tf_checkpoint.variable import Variable

__all__ = ["Variable", "find_prefix", "read_checkpoint", "write_checkpoint"]
