"""The loops of the LSTM and the GRU as a compiled CPU kernel: the same numbers as in JAX to float32 rounding, faster.

The kernel is one library of C++: the loops for a kind of processor (`loops.cc` with `lstm.h`, `gru.h` and
`weight_gradient.h`), and what calls them from XLA (`ffi.cc`). The wheels for Linux have it, with loops for several
kinds of processors (`choice.h`). Elsewhere the first use compiles it for the machine at hand with the compiler that is
found there, and keeps the result in the user's cache folder. The library is tested when it is loaded. Wherever that
fails, XLA runs the recurrences, as it does on every other platform, and `unavailable` returns the reason. A compiler
that fails after more than two seconds is warned of, and not tried again for a day. Where there is no compiler, nothing
is printed. The environment variable LSTM_MNIST_JAX_NATIVE=0 turns the kernel off.

`build.py` finds or makes the library; `kernel.py` binds it to JAX and knows which sizes it serves.
"""

from lstm_mnist_jax.rnn.native.kernel import (
    INTERPRETED,
    gru_backward,
    gru_forward,
    lstm_backward,
    lstm_forward,
    supports,
    unavailable,
    version,
    weight_gradient,
)

__all__ = [
    "INTERPRETED", "gru_backward", "gru_forward", "lstm_backward", "lstm_forward", "supports", "unavailable", "version",
    "weight_gradient",
]  # fmt: skip
