"""TensorFlow's checkpoint files, read and written without TensorFlow."""

from lstm_mnist_jax.interop.tf_checkpoint.bundle import Variable
from lstm_mnist_jax.interop.tf_checkpoint.checkpoint import checked, find_prefix, read_checkpoint, write_checkpoint
from lstm_mnist_jax.interop.tf_checkpoint.graph import read_graph

__all__ = ["Variable", "checked", "find_prefix", "read_checkpoint", "read_graph", "write_checkpoint"]
