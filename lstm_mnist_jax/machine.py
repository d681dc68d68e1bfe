"""A description of the machine."""

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def devices() -> str:
    """JAX's devices: the accelerators, or the processor and the number of its cores in use."""
    import jax

    shown = jax.devices()
    if shown[0].platform != "cpu":
        return f"{len(shown)} x {shown[0].device_kind}"
    return f"{len(shown)} core{'s' * (len(shown) > 1)} of {processor()}"
