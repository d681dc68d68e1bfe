"""The machine at hand: what it is, what is installed, and whether it is busy."""

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from lstm_mnist_jax.machine import processor
from lstm_mnist_jax.version import __version__

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "torch",
    "keras",
    "tensorflow",
    "tensorflow-cpu",
    "tf-keras",
)

BUSY_SHARE = 0.1
"""The share of the cores that may be in use before anything is measured."""


def describe() -> dict[str, Any]:
    """The machine as JSON: processor, cores, memory (bytes), versions, date, and how busy it is."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = psutil.cpu_percent(interval=1.0) / 100
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "physical_cores": psutil.cpu_count(logical=False),
        "usable_cores": usable,
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"lstm-mnist-jax": __version__} | {name: found for name in PACKAGES if (found := _version(name))},
        "busy_share": share,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
