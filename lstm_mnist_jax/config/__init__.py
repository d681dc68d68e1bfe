"""What a run is, and how it is executed: frozen dataclasses, and the named presets, which are values of them."""

from lstm_mnist_jax.config.options import (
    SWEEPABLE,
    AugmentationConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    Execution,
    ModelConfig,
    OptimizerConfig,
    Processes,
)
from lstm_mnist_jax.config.presets import PRESETS

__all__ = [
    "PRESETS",
    "SWEEPABLE",
    "AugmentationConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "Execution",
    "ModelConfig",
    "OptimizerConfig",
    "Processes",
]
