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

MIN_EXAMPLES_PER_CORE = 8
"""Below so many examples a CPU core spends more time on handing over gradients than it saves."""

CACHE_BYTES = 1 << 30


def prepare(execution: Execution, batch_size: int) -> None:
    """Tells JAX how many CPU devices to show and where to cache compiled programs.

    The user's own JAX settings (`JAX_NUM_CPU_DEVICES`, `JAX_COMPILATION_CACHE_DIR`) win. Where JAX is already in
    use, it keeps the devices that it has.
    """
    if execution.compilation_cache:
        if jax.config.values["jax_compilation_cache_dir"] is None:
            folder = Path(platformdirs.user_cache_dir("lstm_mnist_jax", appauthor=False)) / "compiled"
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        # Where JAX already shows its devices, it refuses; make_mesh says so if they are too few.
        with contextlib.suppress(RuntimeError):
            count = execution.devices or _default_count(_cores(), batch_size)
            jax.config.update("jax_num_cpu_devices", count)


def make_mesh(execution: Execution, batch_size: int) -> Mesh:
    """The mesh of a run: all devices that `execution` asks for, or as many as serve a batch well.

    Raises:
      ConfigError: there are not so many devices, or they cannot share a batch evenly.
    """
    devices = jax.devices()
    count = execution.devices or _default_count(len(devices), batch_size)
    if count > len(devices):
        raise ConfigError(
            f"devices is {count}, but JAX shows {len(devices)} {devices[0].platform} device(s). "
            f"Ask for at most {len(devices)}."
        )
    if batch_size % count:
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


def _default_count(available: int, batch_size: int) -> int:
    """The most devices that share a batch evenly and have enough to do."""
    most = min(available, max(1, batch_size // MIN_EXAMPLES_PER_CORE))
    return max(n for n in range(1, most + 1) if batch_size % n == 0)


def _cores() -> int:
    """Physical cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)
