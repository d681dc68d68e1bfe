"""Training: one pure state, many compiled steps, a run folder.

`train` is the whole of it; `make_training` gives the parts that run on the devices, for programs of your own.
"""

from lstm_mnist_jax.training.given_weights import GivenWeights, begin_run
from lstm_mnist_jax.training.population import Population, make_population, member_state
from lstm_mnist_jax.training.run import TrainingResult, train
from lstm_mnist_jax.training.step import Training, TrainState, make_training

__all__ = [
    "GivenWeights",
    "Population",
    "TrainState",
    "Training",
    "TrainingResult",
    "begin_run",
    "make_population",
    "make_training",
    "member_state",
    "train",
]
