"""NumPy: no LSTM, but a fast matrix product."""

from benchmarks.libraries import Job
from benchmarks.work import Product


def product(work: Product, setting: str) -> Job:
    left, right = work.arrays()
    return Job(run=lambda: left @ right, check=lambda: [float((left @ right)[0, 0])])
