"""How many runs at once fit into the devices' memory."""

import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import psutil
from rich.console import Console

from lstm_mnist_jax.config import Execution
from lstm_mnist_jax.data import Dataset
from lstm_mnist_jax.errors import ConfigError
from lstm_mnist_jax.progress import say
from lstm_mnist_jax.training import processes
from lstm_mnist_jax.training.feed import GIB
from lstm_mnist_jax.training.mesh import MEMBER_AXIS, make_mesh
from lstm_mnist_jax.training.program import TrainingProgram, make_program
from lstm_mnist_jax.training.run_folder import RunFolder

SPARE = 0.8
"""The share of free memory that a program may take: peaks up to a sixth above the estimate were measured."""


def fit(
    folder: RunFolder,
    group: int,
    dataset: Dataset,
    execution: Execution,
    console: Console,
    may_split: bool = True,
) -> tuple[RunFolder, TrainingProgram]:
    """A group's compiled program, for as many of its members as fit into memory; the others follow as further groups.

    Raises:
      ConfigError: not even one member for each device does.
    """
    members, free = folder.groups[group], _free_bytes(execution)
    size = len(members)
    while True:
        configs = [folder.member_config(member) for member in members[:size]]
        mesh = make_mesh(execution, configs[0].batch_size, len(configs))
        program = make_program(configs, dataset, mesh, execution.device_data_limit).compile()
        needed, axis = program.device_bytes(), mesh.shape[MEMBER_AXIS]
        if needed <= free:
            break
        if size <= axis or not may_split:
            raise ConfigError(
                f"{runs(size)} at once would take {size_of(needed)} of each device's memory, but only "
                f"{size_of(free)} may be used. Use --memory-limit if more is free than was found, or "
                + ("a smaller --batch-size or narrower layers." if may_split else "devices with more.")
            )
        # As many for each device as fit, if all that is needed grows with them.
        size = max(axis, min(size - 1, int(size * free / needed)) // axis * axis)
        del program
    parts = tuple(members[start : start + size] for start in range(0, len(members), size))
    if len(parts) > 1:
        say(console, f"{len(members)} runs do not fit into memory at once: they are trained in {len(parts)} parts")
    return replace(folder, groups=(*folder.groups[:group], *parts, *folder.groups[group + 1 :])), program


def runs(count: int) -> str:
    """So many runs, for people."""
    return "1 run" if count == 1 else f"{count} runs"


def _free_bytes(execution: Execution) -> float:
    """How much of each device's memory may be used, the least of all processes."""
    if execution.memory_limit is not None:
        return execution.memory_limit * GIB
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        free = min(psutil.virtual_memory().available, _free_in_container()) / len(devices)
    else:
        stats = [device.memory_stats() or {} for device in devices]
        free = min(s["bytes_limit"] - s["bytes_in_use"] if "bytes_limit" in s else float("inf") for s in stats)
    return float(processes.gather(np.array(SPARE * free)).min())


def _free_in_container() -> float:
    """What Linux's control group leaves to its processes: a container, a job of SLURM."""
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # none, "max", or another system
        return math.inf


def size_of(count: int | float) -> str:
    """A number of bytes for people."""
    return f"{count / GIB:.3g} GiB" if count >= GIB else f"{count / 2**20:.3g} MiB"
