"""The LSTM recurrence as a compiled CPU kernel: the same numbers as the loops of XLA, to rounding, and quicker.

The kernel is one file of C++ (`lstm.cc`). The first use compiles it for the machine at hand with the compiler
that is found there, and keeps the result in the user's cache folder. Wherever that fails, `lstm` runs as XLA
loops, as it does on every other platform, and `unavailable` returns the reason. A compiler that fails after more than
two seconds is warned of, and not tried again for a day. Where there is no compiler, nothing is printed. The environment
variable LSTM_MNIST_JAX_NATIVE=0 turns the kernel off.

`build.py` makes the library; `kernel.py` binds it to JAX and knows which sizes it serves.
"""

from lstm_mnist_jax.rnn.native.kernel import backward, forward, supports, unavailable

__all__ = ["backward", "forward", "supports", "unavailable"]
