"""Puts the compiled loops into a wheel, which then needs no compiler: a build hook of hatchling.

    python -m build --wheel                                               # the pure wheel: compiles on first use
    LSTM_MNIST_JAX_WHEEL=manylinux_2_28_x86_64 python -m build --wheel    # with the loops, for a key of `PLATFORMS`

Zig, a package of PyPI, links for every platform on any machine, and for Linux against an old C library. For Linux, GCC
compiles the loops, as it does on first use: on Debian and Ubuntu for x86-64, `apt install g++ g++-aarch64-linux-gnu`
brings both compilers. (Clang keeps some sums of the GRU in memory where there are 16 registers: a forward loop takes
twice the time.)
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("lstm_mnist_jax/rnn/native")

FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=off", "-fPIC", "-w")
"""Those of native/build.py."""

X86_64 = {"loops": (), "loops_avx2": ("-mavx2", "-mfma"), "loops_avx512": ("-mavx512f", "-mavx2", "-mfma")}
AARCH64: dict[str, tuple[str, ...]] = {"loops": ()}
"""The loops in a library, of which native/choice.h takes one, and the flags of the processors that they are for."""


class Platform(NamedTuple):
    """How the library of a platform is compiled.

    Attributes:
      target: Zig's name of the platform.
      loops: the loops in it.
      gcc: what compiles the loops; None is Zig.
    """

    target: str
    loops: dict[str, tuple[str, ...]]
    gcc: str | None = None


PLATFORMS = {
    "manylinux_2_28_x86_64": Platform("x86_64-linux-gnu.2.28", X86_64, "x86_64-linux-gnu-g++"),
    "manylinux_2_28_aarch64": Platform("aarch64-linux-gnu.2.28", AARCH64, "aarch64-linux-gnu-g++"),
    # These two compile. They have never been run, except by the self-test of a release.
    "macosx_11_0_arm64": Platform("aarch64-macos.11.0", AARCH64),
    "win_amd64": Platform("x86_64-windows-gnu", X86_64),
}
"""By the platform in a wheel's name."""


class WheelHook(BuildHookInterface):
    """Compiles the library and adds it to the wheel, whose name then has the platform."""

    def dependencies(self) -> list[str]:
        """The compiler, and the oldest jaxlib that the package takes: each takes libraries with older headers."""
        return [] if _wanted() is None else ["ziglang>=0.15", f"jaxlib=={self._oldest_jaxlib()}"]

    def _oldest_jaxlib(self) -> str:
        (jax,) = (line for line in self.metadata.core.dependencies if line.startswith("jax>="))
        return jax.removeprefix("jax>=")

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Changes what is built where a platform is asked for."""
        wanted = _wanted()
        if wanted is None or version != "standard":  # an editable installation compiles on first use
            return
        if (found := importlib.metadata.version("jaxlib")) != (oldest := self._oldest_jaxlib()):  # without isolation
            self.app.display_warning(
                f"The library is compiled with the headers of jaxlib {found}: an older one, from {oldest} on, may "
                "refuse it, and compiles on first use. Build with isolation for a wheel that others use."
            )
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self._folder.name) / "library.so"
        compile_library(Path(self.root) / NATIVE, PLATFORMS[wanted], library)
        content = hashlib.sha256(library.read_bytes()).hexdigest()[:16]
        build_data["force_include"][str(library)] = str(NATIVE / f"prebuilt-{content}.so")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{wanted}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes the compiler's files."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def _wanted() -> str | None:
    """The platform that is asked for."""
    wanted = os.environ.get("LSTM_MNIST_JAX_WHEEL")
    if wanted and wanted not in PLATFORMS:
        raise ValueError(f"LSTM_MNIST_JAX_WHEEL is {wanted!r}, expected one of {', '.join(PLATFORMS)}, or nothing.")
    return wanted or None


def compile_library(sources: Path, platform: Platform, library: Path) -> None:
    """Compiles the library of a platform.

    Args:
      sources: the folder with the C++ files.
      platform: for what.
      library: the file to write. The compiler's other files come beside it.

    Raises:
      FileNotFoundError: GCC is not there.
      subprocess.CalledProcessError: a compiler failed; it has printed why.
    """
    if platform.gcc is not None and shutil.which(platform.gcc) is None:
        raise FileNotFoundError(f"{platform.gcc} is not found: install GCC for this kind of processor.")
    zig = (sys.executable, "-m", "ziglang", "c++", "-target", platform.target)
    compiler = zig if platform.gcc is None else (platform.gcc,)
    objects = []
    for name, flags in platform.loops.items():
        objects.append(library.with_name(f"{name}.o"))
        _run(*compiler, *FLAGS, *flags, f"-DLOOPS={name}", "-c", sources / "loops.cc", "-o", objects[-1])
    headers = ("-isystem", _jaxlib_include())
    ffi = sources / "ffi.cc"
    _run(*zig, *FLAGS, "-DLSTM_MNIST_JAX_WHEEL", *headers, "-shared", "-s", ffi, *objects, "-o", library)


def _jaxlib_include() -> Path:
    """XLA's headers, as jaxlib brings them."""
    found = importlib.util.find_spec("jaxlib")
    assert found is not None, "jaxlib is a dependency of this hook"
    assert found.origin is not None
    return Path(found.origin).with_name("include")


def _run(*command: Any) -> None:
    subprocess.run([str(word) for word in command], check=True)
