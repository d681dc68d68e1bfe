"""Imported by the server of processes (see programs.py): MNIST is read once, not in each process."""

from lstm_mnist_jax import load

load()
