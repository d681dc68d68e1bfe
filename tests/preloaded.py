"""The last that the server of processes imports (see programs.py), and what it computes once for all of them."""

import gc

from runs import TINY

from lstm_mnist_jax import load
from lstm_mnist_jax.data import novelty

load()
tiny = load(**vars(TINY.data))
novelty.fit(tiny.train, tiny.validation)
gc.freeze()  # the collector of a forked process looks at its own objects alone, and copies no page of the server's
