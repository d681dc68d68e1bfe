"""The last that the server of processes imports (see programs.py), and what it computes once for all of them.

A run on TINY's data in such a process takes the fit of its novelty.npz from here. A run on other data fits its own, as
users' do: `test_the_classic_script_is_the_same_program_and_uses_all_cores_with_enough_examples` shows it.
"""

import gc

from runs import TINY

from lstm_mnist_jax import load
from lstm_mnist_jax.data import novelty

load()
tiny = load(**vars(TINY.data))
novelty.fit(tiny.train, tiny.validation)
gc.freeze()  # the collector of a forked process looks at its own objects alone, and copies no page of the server's
