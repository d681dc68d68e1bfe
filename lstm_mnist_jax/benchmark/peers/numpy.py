"""NumPy: no LSTM, but a good matrix product."""

from lstm_mnist_jax.benchmark.peers import Job
from lstm_mnist_jax.benchmark.work import Product


def product(work: Product, setting: str) -> Job:
    left, right = work.arrays()
    return Job(run=lambda: left @ right, check=lambda: [float((left @ right)[0, 0])])
