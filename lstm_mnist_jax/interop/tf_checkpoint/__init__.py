"""TensorFlow's checkpoint files, read and written without TensorFlow."""

from lstm_mnist_jax.interop.tf_checkpoint.checkpoint import find_prefix, read_checkpoint, write_checkpoint
from lstm_mnist_jax.interop.tf_checkpoint.protobuf import Variable

__all__ = ["Variable", "find_prefix", "read_checkpoint", "write_checkpoint"]
