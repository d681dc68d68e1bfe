"""The devices of a run, or of several: a mesh with an axis of runs, and one of data parallelism.

CPU cores count as devices. Their number is fixed once JAX has started, so call `use_cpu_devices` at the start of a
program.
"""

import contextlib
import os
from collections.abc import Sequence

import jax
import numpy as np
import psutil
from jax.sharding import Mesh

from lstm_mnist_jax.config import Execution
from lstm_mnist_jax.errors import ConfigError

DATA_AXIS = "data"
"""The axis over which the examples of a batch are split."""

MEMBER_AXIS = "member"
"""The axis over which the runs of a group are split."""

ONE_BY_ONE = ("cpu",)
"""Platforms whose devices do one thing at a time: a core is busy with it, and its cache full. Others would idle."""

MIN_EXAMPLES = {"cpu": 8}
OTHER_MIN_EXAMPLES = 64
"""The fewest examples of a batch for which a device is used by default: with fewer, exchanging gradients (on CPUs) or
launching kernels (on accelerators) takes longer than is saved."""

UNSET = -1
"""JAX's own default for the number of CPU devices."""


def use_cpu_devices(execution: Execution, batch_size: int | None) -> None:
    """Makes the CPU cores of a run JAX's devices (JAX's default is one), unless JAX has already started.

    No other option of JAX is changed. A number set by JAX_NUM_CPU_DEVICES or jax.config stays.

    Args:
      execution: the number of devices.
      batch_size: examples that the devices share; None for a whole batch each.
    """
    if jax.config.values["jax_num_cpu_devices"] == UNSET:
        # JAX refuses once it has started; make_mesh reports it if the devices are too few.
        with contextlib.suppress(RuntimeError):
            count = execution.devices or (
                usable_cores() if batch_size is None else _default_count(usable_cores(), batch_size)
            )
            jax.config.update("jax_num_cpu_devices", count)


def make_mesh(
    execution: Execution,
    batch_size: int | None,
    members: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """The mesh of a run or of several: [members, devices of each], of every process.

    Args:
      execution: the number of devices; None is all that the batch is large enough for.
      batch_size: examples that the devices must share evenly; None where they need not.
      members: the number of runs of a sweep that are trained at once; None is a single run. Where there are more
        devices than members, several share the batches of each.
      devices: the devices to choose from, such as those of a topology that is only compiled for; None is all that JAX
        shows.

    Raises:
      ConfigError: there are not so many devices, or they cannot share a batch evenly.
    """
    if not isinstance(execution, Execution):
        raise ConfigError(f"execution is {execution!r}, expected an Execution, such as Execution(devices=1).")
    by_process = _by_process(devices)
    processes, own, platform = len(by_process), len(by_process[0]), by_process[0][0].platform
    if execution.devices is not None:
        count = execution.devices
    else:
        shared = batch_size if members is None else None
        count = own if shared is None else _default_count(own, shared, platform, processes)
    if count > own:
        raise ConfigError(
            f"devices is {count}, but JAX shows {own} {platform} device(s){_each(processes)}. Ask for at most {own}"
            + (", or set JAX_NUM_CPU_DEVICES before JAX starts." if platform == "cpu" else ".")
        )
    if members is not None and batch_size is not None:
        rows = min(count * processes, -(-members // processes) * processes)  # some for each process
        shares = _default_count(count * processes // rows, batch_size, platform)
        chosen = [device for shown in by_process for device in shown[: rows * shares // processes]]
        return Mesh(np.array(chosen).reshape(rows, shares), (MEMBER_AXIS, DATA_AXIS))
    if batch_size is not None and batch_size % (total := count * processes):
        most = min(count, usable_cores()) if platform == "cpu" else count  # JAX shows as many CPU devices as asked for
        fewer = [n for n in range(1, most + 1) if batch_size % (n * processes) == 0]
        # Sizes of a batch are proposed for the devices that were asked for, unless the machine has not so many.
        shared = most * processes
        below, above = batch_size // shared * shared, -(-batch_size // shared) * shared
        sizes = f"{below} or {above}" if below else f"{above}"
        ways = [f"--devices {fewer[-1]}"] if fewer else []
        if most == count:
            ways.append(f"--batch-size {sizes}")
        elif not fewer:
            ways.append(f"--devices {most} --batch-size {sizes}")
        raise ConfigError(
            f"A batch of {batch_size} cannot be shared evenly by {total} devices"
            f"{f', {count}' + _each(processes) if processes > 1 else ''}"
            f"{f'; this machine has {most} CPU core(s)' if most < count else ''}. Use {', or '.join(ways)}."
        )
    return Mesh(np.array([shown[:count] for shown in by_process]).reshape(1, -1), (MEMBER_AXIS, DATA_AXIS))


def runs_one_by_one(mesh: Mesh) -> bool:
    """Whether a device of the mesh does one thing after another, rather than a batch of them at once."""
    return mesh.devices.flat[0].platform in ONE_BY_ONE


def describe(mesh: Mesh) -> str:
    """The devices of a mesh in words: "2 x cpu"."""
    device = mesh.devices.flat[0]
    name = f"{mesh.size} x {device.device_kind if device.platform != 'cpu' else 'cpu'}"
    return name + (f" in {jax.process_count()} processes" if jax.process_count() > 1 else "")


def hint(mesh: Mesh, execution: Execution, batch_size: int) -> str | None:
    """A line for a run whose devices are too many or too few for this machine; None where they are not."""
    count, device = mesh.size // jax.process_count(), mesh.devices.flat[0]
    if line := too_many(mesh):
        return line
    if execution.devices is not None or jax.process_count() > 1:
        return None
    available = len(jax.local_devices())
    if device.platform == "cpu" and "JAX_NUM_CPU_DEVICES" not in os.environ:
        available = usable_cores()
    most = min(available, batch_size // MIN_EXAMPLES.get(device.platform, OTHER_MIN_EXAMPLES))
    if 2 * count > most:
        return None
    below, above = batch_size // most * most, -(-batch_size // most) * most
    return (
        f"{count} of {most} devices is used: a batch of {batch_size} cannot be shared evenly. More are used with "
        f"--batch-size {below} or {above}"
    )


def too_many(mesh: Mesh) -> str | None:
    """A warning where a process has more CPU devices than cores; None where it has not."""
    count, cores = mesh.size // jax.process_count(), usable_cores()
    if mesh.devices.flat[0].platform != "cpu" or count <= cores:
        return None
    return f"{count} devices share {cores} CPU core(s), which is slower than --devices {cores}"


TF32 = "TF32 (as far as the GPU has it)"
ROUNDED = {"gpu": {"default": TF32, "high": TF32}, "tpu": {"default": "bfloat16", "high": "sums of two bfloat16"}}
"""What the operands of float32 matrix products are rounded to, by platform and precision."""

ALIASES = {"bfloat16": "default", "tensorfloat32": "high"}
"""Other names of JAX for a precision."""


def rounding(platform: str, precision: str) -> str | None:
    """A line for a run whose products are not float32; None where they are.

    Args:
      platform: of the devices: cpu, gpu or tpu.
      precision: of the network.
    """
    if precision == "default":
        precision = jax.config.values["jax_default_matmul_precision"] or "default"
    kind = ROUNDED.get(platform, {}).get(ALIASES.get(precision, precision))
    return kind and f"matrix products round float32 to {kind}; not with --precision highest"


def _by_process(given: Sequence[jax.Device] | None) -> list[list[jax.Device]]:
    """The devices of each process: those given, or all that JAX shows."""
    try:
        devices = jax.devices() if given is None else given
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        hint = f"JAX_PLATFORMS is {platforms!r}; is that what this machine has?" if platforms else "See JAX's guide."
        raise ConfigError(f"JAX finds no device: {error or 'no platform starts'}. {hint}") from error
    numbers = range(jax.process_count()) if given is None else sorted({device.process_index for device in devices})
    shown = [[device for device in devices if device.process_index == number] for number in numbers]
    if len(set(map(len, shown))) > 1:
        counts = ", ".join(f"process {number} has {len(own)}" for number, own in enumerate(shown))
        raise ConfigError(
            f"The processes have different numbers of devices: {counts}. Give each as many: on CPUs with --devices, "
            "the same for all, and without JAX_NUM_CPU_DEVICES."
        )
    return shown


def _each(processes: int) -> str:
    return " in each process" if processes > 1 else ""


def _default_count(available: int, batch_size: int, platform: str = "cpu", processes: int = 1) -> int:
    """The largest number of devices of each process that share a batch evenly, with enough examples for each."""
    share = max(1, batch_size // processes)
    most = min(available, max(1, share // MIN_EXAMPLES.get(platform, OTHER_MIN_EXAMPLES)))
    return max(n for n in range(1, most + 1) if n == 1 or batch_size % (n * processes) == 0)


def usable_cores() -> int:
    """The number of physical cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)
