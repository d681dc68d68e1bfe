"""Weights and models of other libraries, imported and exported.

    from lstm_mnist_jax.interop import export, flax, huggingface, keras, onnx, tf1, torch

Each module converts this package's parameters to the arrays of its library, and back, without the library. `formats`
reads and writes the files.
"""
