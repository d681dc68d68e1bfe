"""Several runs at once, over seeds, hyperparameters and networks: `sweep` is the whole of it."""

from lstm_mnist_jax.config.space import SWEEPABLE, Space, describe, space_of
from lstm_mnist_jax.sweeps.results import MemberResult, SettingResult
from lstm_mnist_jax.sweeps.run import SweepResult, sweep

__all__ = ["SWEEPABLE", "MemberResult", "SettingResult", "Space", "SweepResult", "describe", "space_of", "sweep"]
