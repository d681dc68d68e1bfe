"""Images in, arrays out. Knows no model and no training."""

from lstm_mnist_jax.data.dataset import Dataset, Examples
from lstm_mnist_jax.data.sources import load

__all__ = ["Dataset", "Examples", "load"]
