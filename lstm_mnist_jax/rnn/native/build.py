"""Compiles `lstm.cc` on the user's machine, once, and finds the result again.

Knows compilers, files and the processor's name; knows nothing of what the program computes.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from lstm_mnist_jax.errors import ConfigError

SOURCE = Path(__file__).with_name("lstm.cc")

SWITCH = "LSTM_MNIST_JAX_NATIVE"

FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=off", "-fPIC", "-shared", "-w")
"""Nothing of -ffast-math that would forget NaN or reorder sums; what may be fused, the source says."""

MACHINE_FLAGS = (
    ("-march=native", "-static-libstdc++", "-static-libgcc"),
    ("-march=native",),
    ("-mcpu=native", "-static-libstdc++", "-static-libgcc"),
    ("-mcpu=native",),
    (),
)
"""The first that the compiler takes: some know only one of the first two words, by architecture, and a C++ library
within spares that of the process, which may be older than the compiler's."""

LIBRARY_BEGINS = (b"\x7fELF", b"\xcf\xfa\xed\xfe")
"""The first bytes of a library on Linux and on macOS."""

KEPT_SECONDS = 90 * 24 * 3600.0

TIMEOUT = 120
"""Seconds for the compiler; it takes about 5."""


class BuildError(Exception):
    """Why there is no library, in one line."""


def library() -> tuple[ctypes.CDLL, str]:
    """The loaded library and a name that no other version of it has; compiles it where it is not there yet.

    Raises:
      BuildError: there is no library to be had.
      ConfigError: the environment variable that turns it off holds neither 0 nor 1.
    """
    wanted = os.environ.get(SWITCH, "1")
    if wanted == "0":
        raise BuildError(f"{SWITCH}=0 turns it off")
    if wanted != "1":
        raise ConfigError(f"The environment variable {SWITCH} is {wanted!r}, expected 0 or 1.")
    try:
        compiler = _compiler()
        source = SOURCE.read_bytes()
        key = "\n".join(
            [*compiler, *FLAGS, repr(MACHINE_FLAGS), jax.__version__, _include(), platform.machine(), _processor()]
        )
        name = hashlib.sha256(source + b"\0" + key.encode()).hexdigest()[:16]
        folder = user_cache_folder() / "native"
        path = folder / f"lstm-{name}.so"
        if path.exists() and path.read_bytes()[:4] in LIBRARY_BEGINS:  # what is none is made anew
            return ctypes.CDLL(str(path)), name
        with _writable(folder) as folder:
            path = folder / path.name
            _compile(compiler, path)
            _remove_old(folder)
            return ctypes.CDLL(str(path)), name
    except (OSError, ValueError) as error:  # ValueError: $CXX with a quotation that does not end
        raise BuildError(f"{type(error).__name__}: {error}".replace("\n", " ")) from error


def user_cache_folder() -> Path:
    """Where the system keeps this user's caches: $XDG_CACHE_HOME or ~/.cache; on macOS ~/Library/Caches."""
    default = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser(default)) / "lstm_mnist_jax"


def _compiler() -> list[str]:
    """The command of a C++ compiler: $CXX, or one of the usual names."""
    named = shlex.split(os.environ.get("CXX", ""))
    if named:
        if shutil.which(named[0]) is None:
            raise BuildError(f"CXX is {' '.join(named)!r}, which is no program that can be run")
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name) is not None:
            return [name]
    raise BuildError("no C++ compiler is found (c++, g++, clang++; the environment variable CXX names another)")


def _include() -> str:
    return str(jax.ffi.include_dir())


def _processor() -> str:
    """What tells this processor's instructions from another's: a cache folder may be shared between machines."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
        wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "features", "cpu implementer", "cpu part")
        return "\n".join(line for line in lines if line.split(":")[0].strip().lower() in wanted)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return f"{platform.processor()} {platform.node()}"


@contextlib.contextmanager
def _writable(folder: Path):  # type: ignore[no-untyped-def]
    """The folder, or, where nothing can be written there, one that lives until the library is loaded."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
    else:
        yield folder


def _remove_old(folder: Path) -> None:
    """Removes libraries that nobody has loaded for long: each release of JAX or of this package leaves one."""
    for path in folder.glob("lstm-*.so"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            if time.time() - max(stat.st_atime, stat.st_mtime) > KEPT_SECONDS:
                path.unlink()


def _compile(compiler: list[str], path: Path) -> None:
    """Compiles beside `path`, then renames: whoever else does the same at the same time finds a whole file."""
    handle, temporary = tempfile.mkstemp(suffix=".so", prefix=path.stem, dir=path.parent)
    os.close(handle)
    try:
        errors = []
        for machine_flags in MACHINE_FLAGS:
            command = [*compiler, *FLAGS, *machine_flags, "-isystem", _include(), str(SOURCE), "-o", temporary]
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
                )
            except subprocess.TimeoutExpired:
                raise BuildError(f"{compiler[0]} did not finish within {TIMEOUT} seconds") from None
            if done.returncode == 0:
                os.chmod(temporary, 0o755)
                os.replace(temporary, path)
                return
            errors.append(done.stderr.strip() or f"exit code {done.returncode}")
        lines = errors[-1].splitlines()
        first = next((line for line in lines if "error" in line.lower()), lines[0])
        raise BuildError(f"{' '.join(compiler)} failed: {first.strip()[:300]}")
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
