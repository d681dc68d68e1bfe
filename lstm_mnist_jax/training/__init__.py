"""Training: one pure state, many compiled steps, a run folder.

`train` is the whole of it; `make_program` gives the parts that run on the devices, for programs of your own.
"""

from lstm_mnist_jax.training.metrics import EpochMetrics, OnEpoch
from lstm_mnist_jax.training.new_run import begin_run
from lstm_mnist_jax.training.program import TrainingProgram, make_program, member_state
from lstm_mnist_jax.training.run import TrainingResult, train
from lstm_mnist_jax.training.step import TrainState

__all__ = [
    "EpochMetrics",
    "OnEpoch",
    "TrainState",
    "TrainingProgram",
    "TrainingResult",
    "begin_run",
    "make_program",
    "member_state",
    "train",
]
