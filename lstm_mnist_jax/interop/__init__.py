"""Weights and graphs of other programs, in and out.

    from lstm_mnist_jax.interop import export, flax, keras, tf1, torch

Each module turns this package's parameters into what its library has, and back, as plain arrays, for which that
library is not needed. `formats` knows the files that hold such arrays.
"""
