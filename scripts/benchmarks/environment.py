"""The machine and the installed versions, as JSON."""

import datetime
import os
import platform
import re
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil

from lstm_mnist_jax.machine import processor

PACKAGES = ("lstm-mnist-jax", "jax", "jaxlib", "flax", "numpy", "torch", "keras", "tensorflow", "tensorflow-cpu",
            "tf-keras")  # fmt: skip

MAX_BUSY = 0.1
"""The fraction of the cores that may be in use before anything is measured."""


def describe() -> dict[str, Any]:
    """Processor, width of its vectors, cores, memory (bytes), versions, date, and the fraction of the cores in use.

    Takes a second.
    """
    installed = {distribution.name: distribution.version for distribution in distributions()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "vector_bits": _vector_bits(),
        "physical_cores": psutil.cpu_count(logical=False),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
        "busy": psutil.cpu_percent(interval=1.0) / 100,
    }


def _vector_bits() -> int | None:
    """The width of the processor's vectors of float32, as Linux lists them; None where it is not known."""
    with suppress(OSError):
        words = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
        for word, bits in (("avx512f", 512), ("avx", 256), ("sse2", 128), ("asimd", 128)):
            if word in words:
                return bits
    return None
