"""The devices of a run: one mesh with a `data` axis, over which each batch is split.

CPU cores count as devices. How many of them JAX shows is decided before JAX first touches a device, so
`prepare` belongs at the start of a program.
"""

import contextlib
import os
from pathlib import Path

import jax
import numpy as np
import platformdirs
import psutil
from jax.sharding import Mesh

from lstm_mnist_jax.config import Execution
from lstm_mnist_jax.errors import ConfigError

DATA_AXIS = "data"

MIN_EXAMPLES = {"cpu": 8}
OTHER_MIN_EXAMPLES = 64
"""Examples of a batch without which a device is not used by default: with fewer, a core spends more time on handing
over gradients than it saves, and an accelerator's time goes into starting kernels."""

CACHE_BYTES = 1 << 30

UNSET = -1
"""JAX's own default for the number of CPU devices."""


def prepare(execution: Execution, batch_size: int) -> None:
    """Tells JAX how many CPU devices to show and where to cache compiled programs.

    A number of CPU devices or a cache folder that JAX was already told, by its environment variables or its config,
    stays. Where JAX is already in use, it keeps the devices that it has.
    """
    if execution.compilation_cache:
        if jax.config.values["jax_compilation_cache_dir"] is None:
            folder = Path(platformdirs.user_cache_dir("lstm_mnist_jax", appauthor=False)) / "compiled"
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    else:
        jax.config.update("jax_enable_compilation_cache", False)
    if jax.config.values["jax_num_cpu_devices"] == UNSET:
        # Where JAX already shows its devices, it refuses; make_mesh says so if they are too few.
        with contextlib.suppress(RuntimeError):
            count = execution.devices or _default_count(_cores(), batch_size)
            jax.config.update("jax_num_cpu_devices", count)


def make_mesh(execution: Execution, batch_size: int | None) -> Mesh:
    """The mesh of a run: all devices that `execution` asks for, or as many as serve a batch well.

    Args:
      execution: how many devices are wanted.
      batch_size: examples that the devices must share evenly; None where they need not.

    Raises:
      ConfigError: there are not so many devices, or they cannot share a batch evenly.
    """
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        hint = f"JAX_PLATFORMS is {platforms!r}; is that what this machine has?" if platforms else "See JAX's guide."
        raise ConfigError(f"JAX finds no device: {error or 'no platform starts'}. {hint}") from error
    if batch_size is None:
        count = execution.devices or len(devices)
    else:
        count = execution.devices or _default_count(len(devices), batch_size, devices[0].platform)
    if count > len(devices):
        raise ConfigError(
            f"devices is {count}, but JAX shows {len(devices)} {devices[0].platform} device(s). "
            f"Ask for at most {len(devices)}."
        )
    if batch_size is not None and batch_size % count:
        fewer = max(n for n in range(1, count) if batch_size % n == 0)
        below, above = batch_size // count * count, -(-batch_size // count) * count
        sizes = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"A batch of {batch_size} cannot be shared evenly by {count} devices. "
            f"Use --devices {fewer}, or --batch-size {sizes}."
        )
    return Mesh(np.array(devices[:count]), (DATA_AXIS,))


def describe(mesh: Mesh) -> str:
    """The devices of a mesh, for people: "2 x cpu"."""
    device = mesh.devices.flat[0]
    return f"{mesh.size} x {device.device_kind if device.platform != 'cpu' else 'cpu'}"


def _default_count(available: int, batch_size: int, platform: str = "cpu") -> int:
    """The most devices that share a batch evenly and have enough to do."""
    most = min(available, max(1, batch_size // MIN_EXAMPLES.get(platform, OTHER_MIN_EXAMPLES)))
    return max(n for n in range(1, most + 1) if batch_size % n == 0)


def _cores() -> int:
    """Physical cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)
