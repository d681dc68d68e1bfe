"""What a run is, and how it is executed: frozen dataclasses, and the named presets, which are values of them."""

from lstm_mnist_jax.config.augmentation import AugmentationConfig
from lstm_mnist_jax.config.checked import Checked
from lstm_mnist_jax.config.execution import Execution, Processes
from lstm_mnist_jax.config.network import ModelConfig
from lstm_mnist_jax.config.optimization import OptimizerConfig
from lstm_mnist_jax.config.presets import PRESETS
from lstm_mnist_jax.config.training import SWEEPABLE, CheckpointConfig, Config, DataConfig

__all__ = [
    "PRESETS",
    "SWEEPABLE",
    "AugmentationConfig",
    "Checked",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "Execution",
    "ModelConfig",
    "OptimizerConfig",
    "Processes",
]
