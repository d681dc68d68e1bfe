"""The last that the server of processes imports (see programs.py): reads MNIST once for all of them."""

import gc

from lstm_mnist_jax import load

load()
gc.freeze()  # the collector of a forked process looks at its own objects alone, and copies no page of the server's
