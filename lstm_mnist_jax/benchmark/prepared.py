"""What every peer starts an epoch from: this package's initial weights, and the order in which it sees the examples."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from lstm_mnist_jax.benchmark.work import Epoch
from lstm_mnist_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from lstm_mnist_jax.interop.weights import Layer, Weights, from_params, to_params
from lstm_mnist_jax.model import Params


class Prepared(NamedTuple):
    """Attributes:
    weights: the initial weights.
    order: int [steps, batch], the examples that each step sees.
    """

    weights: Weights
    order: np.ndarray

    @property
    def params(self) -> Params:
        return to_params(self.weights)


def config_of(work: Epoch) -> Config:
    """The config with which this package does the same work: as many examples as the steps need."""
    whole = work.steps == Epoch().steps
    return Config(
        seed=work.seed,
        epochs=1000,  # so many may be asked for, round after round
        batch_size=work.batch_size,
        data=DataConfig(train_examples=None if whole else work.steps * work.batch_size),
        model=ModelConfig(hidden_features=work.hidden_features),
        optimizer=OptimizerConfig(learning_rate=work.learning_rate),
    )


def write(work: Epoch, path: str) -> None:
    """Writes the file that `read` reads; runs JAX."""
    import jax.numpy as jnp

    from lstm_mnist_jax.data import load
    from lstm_mnist_jax.data.shuffle import permutation
    from lstm_mnist_jax.training.step import init_state

    config = config_of(work)
    dataset = load(**vars(config.data))
    state = init_state(config, dataset.image_shape, len(dataset.class_names), work.seed)
    examples, needed = len(dataset.train), work.steps * work.batch_size
    passes = [permutation(state.key, number, examples) for number in range(-(-needed // examples))]
    order = jnp.concatenate(passes)[:needed].reshape(work.steps, work.batch_size)
    weights = from_params(state.params)
    layers = {f"layer{number}_{name}": array for number, layer in enumerate(weights.layers)
              for name, array in layer._asdict().items()}  # fmt: skip
    np.savez(path, order=order, dense_kernel=weights.dense_kernel, dense_bias=weights.dense_bias, **layers)


def read(path: str) -> Prepared:
    """Reads what `write` wrote."""
    with np.load(Path(path)) as file:
        count = sum(name.endswith("recurrent_kernel") for name in file)
        layers = tuple(Layer(*(file[f"layer{n}_{name}"] for name in Layer._fields)) for n in range(count))
        return Prepared(Weights(layers, file["dense_kernel"], file["dense_bias"]), file["order"])
