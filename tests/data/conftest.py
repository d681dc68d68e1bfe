import pytest

from lstm_mnist_jax import load


@pytest.fixture(scope="session")
def digits():
    return load().test.images[:200]
