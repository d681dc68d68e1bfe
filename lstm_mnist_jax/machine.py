"""The machine. Imports neither JAX nor NumPy, for programs that must not."""

import platform
import re
from contextlib import suppress
from pathlib import Path


def processor() -> str:
    """The processor's name."""
    with suppress(OSError):  # another system than Linux
        if found := re.search(r"^model name\s*: *(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine()
