"""Training: one pure state, many compiled steps, a run folder.

`train` is the whole of it; `make_training` gives the parts that run on the devices, for programs of your own.
"""

from lstm_mnist_jax.training.loop import TrainingResult, train
from lstm_mnist_jax.training.step import Training, TrainState, make_training

__all__ = ["TrainState", "Training", "TrainingResult", "make_training", "train"]
