"""Many trainings at once: over seeds, and over the numbers and widths of a config.

`sweep` is the whole of it; `extract` makes a run folder of one of its members.
"""

from lstm_mnist_jax.sweeps.extraction import extract
from lstm_mnist_jax.sweeps.folder import is_population, read_population_folder
from lstm_mnist_jax.sweeps.results import MemberResult, SettingResult
from lstm_mnist_jax.sweeps.run import SweepResult, sweep
from lstm_mnist_jax.sweeps.space import SWEEPABLE, Space, describe, space_of

__all__ = [
    "SWEEPABLE",
    "MemberResult",
    "SettingResult",
    "Space",
    "SweepResult",
    "describe",
    "extract",
    "is_population",
    "read_population_folder",
    "space_of",
    "sweep",
]
