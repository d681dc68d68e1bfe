"""How a training went: an array of each measure, a value an epoch."""

import dataclasses
import typing
from pathlib import Path

import numpy as np

from lstm_mnist_jax.reporting.metrics import EpochMetrics, read_metrics
from lstm_mnist_jax.training.run_folder import read_run_folder


def history(run_dir: Path | str) -> dict[str, np.ndarray]:
    """The metrics of a run as columns: `pandas.DataFrame(history(run_dir))` is a table with a row an epoch.

    Args:
      run_dir: the run's folder. It may be one that is being trained.

    Returns:
      An array [epochs] for each field of `lstm_mnist_jax.reporting.metrics.EpochMetrics`, by its name: int64 or
      float64. They are empty where no epoch was finished.

    Raises:
      RunError: the folder is not a run's.
    """
    folder = read_run_folder(Path(run_dir).expanduser())
    epochs = read_metrics(folder.metrics)
    hints = typing.get_type_hints(EpochMetrics)
    return {
        field.name: np.array([getattr(metrics, field.name) for metrics in epochs], hints[field.name])
        for field in dataclasses.fields(EpochMetrics)
    }
