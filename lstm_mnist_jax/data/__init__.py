"""Data sets as arrays, their order in training, and data augmentation. Does not depend on the model."""

from lstm_mnist_jax.data.dataset import Dataset, Examples
from lstm_mnist_jax.data.sources import load

__all__ = ["Dataset", "Examples", "load"]
