"""The LSTM reference for JAX: a stacked Flax LSTM that reads MNIST row by row.

    from lstm_mnist_jax import PRESETS, load_run, train
    from lstm_mnist_jax.rnn import LSTM, RNN        # the recurrent layers, which need no other part of the package

The names below are imported when they are first used: the import of `lstm_mnist_jax.rnn` and `--help` stay fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.5.0"

if TYPE_CHECKING:
    from lstm_mnist_jax.config import PRESETS, Config, Execution
    from lstm_mnist_jax.data import load
    from lstm_mnist_jax.errors import UserError
    from lstm_mnist_jax.inference import load_run
    from lstm_mnist_jax.sweeps import space_of, sweep
    from lstm_mnist_jax.training import train

_HOMES = {
    "PRESETS": "config",
    "Config": "config",
    "Execution": "config",
    "UserError": "errors",
    "load": "data",
    "load_run": "inference",
    "space_of": "sweeps",
    "sweep": "sweeps",
    "train": "training",
}

__all__ = [
    "PRESETS",
    "Config",
    "Execution",
    "UserError",
    "__version__",
    "load",
    "load_run",
    "space_of",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "extract":
        # An AttributeError would lose the message in `from lstm_mnist_jax import extract`.
        raise ImportError(
            "extract is gone since 0.5.0: load_run(SWEEP / 'best') and train(..., resume=True) take the path of a run "
            "of a sweep."
        )
    if name[0].isupper() and name in import_module(f"{__name__}.rnn").__all__:
        raise ImportError(f"{name} is a recurrent layer: from lstm_mnist_jax.rnn import {name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
