"""Finds the library of the C++ loops, or compiles it on the user's machine, once.

Depends on compilers, files and the processor's name; not on what the program computes.

The wheel of a platform has the library, `prebuilt-CONTENT.so` beside this file (scripts/wheel_hook.py makes it).
Elsewhere, and where this one cannot be loaded, it is compiled.

The compiled library is in the user's cache folder, or, where nothing can be written or run from there, in a folder of
this user within the system's folder for temporary files. There are three files, whose names begin with a hash of all
that the library is made from:

- `lstm-NAME-CONTENT.so`: the library. CONTENT is a hash of the file. It is checked before the file is loaded:
  a library that ends too early would end the process (SIGBUS).
- `lstm-NAME.lock`: locked (`flock`) by the process that compiles. The system unlocks it when that process ends.
- `lstm-NAME.failed`: why the compiler failed. For a day, no process tries again.

Whether a process has a library is decided once, at its first use: its results do not change while it runs. Therefore
the first process waits for its compiler, and does not begin with XLA's loops.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib

from lstm_mnist_jax.errors import ConfigError

FOLDER = Path(__file__).parent
"""Of the C++ files, and of a wheel's library."""

INCLUDE = str(jax.ffi.include_dir())

SWITCH = "LSTM_MNIST_JAX_NATIVE"

FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=off", "-fPIC", "-w")
"""Nothing of -ffast-math that would forget NaN or reorder sums; what may be fused, the source says."""

MACHINE_FLAGS = (("-march=native", "-mtune=generic"), ("-mcpu=native", "-mtune=generic"), ("-march=native",), ())
"""For the loops, the first that the compiler takes: some know only one of the first words, by architecture. The
instructions are those of this processor, but scheduled for processors in general, as in the wheels. Such loops took 0.9
to 1.02 of the time of loops tuned for this processor with AVX-512, and 0.95 to 1.02 with AVX2 (GCC 12, Zen 5, least
times)."""

LINK_FLAGS = (("-static-libstdc++", "-static-libgcc"), ())
"""The first that the compiler takes: a C++ library within spares that of the process, which may be older than the
compiler's."""

KEPT_SECONDS = 90 * 24 * 3600.0

TIMEOUT = 480.0
"""Seconds for the compiler. It takes about 6, and 36 with twice as many busy processes as processors."""

LOCK_TIMEOUT = 60.0
"""Seconds to wait for another process that compiles the same library."""

FAILED_SECONDS = 24 * 3600.0
"""For how long a failure is remembered."""

COMPILER_BYTES = 64 << 20
"""Room for the files of a compiler; GCC 12 writes 3 MB."""

QUICK_SECONDS = 2.0
"""A failure that took less is not remembered: to try again costs little."""


class BuildError(Exception):
    """Why there is no library, in one line."""


def library(refused: str = "") -> tuple[ctypes.CDLL, str]:
    """The loaded library and a hash of its file; compiles it where it is not there yet.

    Args:
      refused: why a wheel's library is not to be used.

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
        found = None if refused else _prebuilt()
    except OSError as error:  # for another system or processor, or damaged
        found, refused = None, _one_line(str(error))
    try:
        found = found or _compiled()
    except (BuildError, OSError, ValueError) as error:  # ValueError: $CXX with a quotation that does not end
        reason = str(error) if isinstance(error, BuildError) else _one_line(f"{type(error).__name__}: {error}")
        if not refused:
            raise BuildError(reason) from error
        reason = f"the library of this wheel cannot be used ({refused}), and none can be compiled ({reason})"
        warn(reason)
        raise BuildError(reason) from error
    _test(found[0])
    return found


def _prebuilt() -> tuple[ctypes.CDLL, str] | None:
    """The library of a wheel.

    Raises:
      OSError: it cannot be loaded here.
    """
    paths = sorted(FOLDER.glob("prebuilt-*.so"))
    if len(paths) > 1:  # one is of another version
        raise OSError(f"{FOLDER} has {len(paths)} libraries: remove the folder, and install the package again")
    for path in paths:
        content = _content(path)
        if path.stem != f"prebuilt-{content}":
            raise OSError(f"{path} is damaged: install the package again")
        return _load(path), content
    return None


def _compiled() -> tuple[ctypes.CDLL, str]:
    """The library that is compiled for this machine."""
    compiler = _compiler()
    source = b"\0".join(path.read_bytes() for path in sorted([*FOLDER.glob("*.cc"), *FOLDER.glob("*.h")]))
    versions = jax.__version__, jaxlib.__version__, INCLUDE
    flags = *FLAGS, repr(MACHINE_FLAGS), repr(LINK_FLAGS)
    key = "\n".join([*compiler, *flags, *versions, platform.machine(), _processor()])
    name = hashlib.sha256(source + b"\0" + key.encode()).hexdigest()[:16]
    folders = list(_folders())
    found = _find(folders, name)
    if found is None:
        with _lock(folders, name):
            found = _find(folders, name) or _build(compiler, folders, name)  # another process may have built it
    return found


def _load(path: Path) -> ctypes.CDLL:
    """Raises OSError where it cannot be loaded."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        # Of a file that is there: it is for another kind of processor or another system. Else, a symbol may be missing.
        if any(words in str(error) for words in ("No such file", "ELF", "architecture")):
            raise OSError(f"{error} (is it for {platform.system()} on {platform.machine()}?)") from None
        raise


def _test(library: ctypes.CDLL) -> None:
    """Raises BuildError, and warns, where the library does not compute rightly on this processor."""
    try:
        test = library.LstmMnistJaxSelfTest
        test.restype = ctypes.c_char_p
        if (reason := test()) is None:
            return
        message = f"{library._name} is not for this processor: {reason.decode()}"
    except AttributeError as error:
        message = f"it is another library: {error}"
    warn(message)
    raise BuildError(message)


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


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _folders() -> Iterator[Path]:
    """The folders for the library, the best first."""
    cache = user_cache_folder()
    if cache.is_absolute():  # it is not where this user has no home
        yield cache / "native"
    if hasattr(os, "getuid"):
        with contextlib.suppress(OSError):  # there may be no folder for temporary files
            folder = Path(tempfile.gettempdir()) / f"lstm_mnist_jax-{os.getuid()}"
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()  # everyone can write there: what another user has made is not loaded
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
                yield folder


def _find(folders: list[Path], name: str) -> tuple[ctypes.CDLL, str] | None:
    """The compiled library, if it is there, whole, and can be loaded.

    Raises:
      BuildError: there is none, and the compiler has failed within the last day.
    """
    for folder in folders:
        paths: list[Path] = []
        with contextlib.suppress(OSError):
            paths = sorted(folder.glob(f"lstm-{name}-*.so"))
        for path in paths:
            with contextlib.suppress(OSError):  # also where the folder's file system runs no programs
                content = _content(path)
                if path.stem.rpartition("-")[2] == content:
                    return _load(path), content
                path.unlink()
    for folder in folders:
        note = folder / f"lstm-{name}.failed"
        with contextlib.suppress(OSError):
            if abs(time.time() - note.stat().st_mtime) < FAILED_SECONDS:
                reason = _one_line(note.read_text(errors="replace"))
                raise BuildError(f"{reason} (remembered for a day; to try again, remove {note})")
    return None


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextlib.contextmanager
def _lock(folders: list[Path], name: str) -> Iterator[None]:
    """One process at a time compiles; where no file can be locked, as many as like.

    Raises:
      BuildError: another process holds the lock for too long.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            with contextlib.suppress(OSError, ImportError):
                import fcntl

                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((folder / f"lstm-{name}.lock").open("w"))
                _acquire(fcntl, file)
                break
        yield


def _acquire(fcntl: Any, file: Any) -> None:
    end = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                message = f"another process has been compiling it for {LOCK_TIMEOUT:g} seconds; the next can use it"
                warn(message)
                raise BuildError(message) from None
            time.sleep(0.1)


def _build(compiler: list[str], folders: list[Path], name: str) -> tuple[ctypes.CDLL, str]:
    """Compiles the library, puts it into the first folder from which it can be loaded, and loads it."""
    began = time.monotonic()
    base = _roomy(folders)
    with tempfile.TemporaryDirectory(prefix="lstm_mnist_jax-", dir=base, ignore_cleanup_errors=True) as temporary:
        try:
            path = Path(temporary) / "lstm.so"
            _compile(compiler, path)
            content = _content(path)
            for folder in folders:
                with contextlib.suppress(OSError):
                    folder.mkdir(parents=True, exist_ok=True)
                    published = folder / f"lstm-{name}-{content}.so"
                    _write(published, path.read_bytes())
                    found = _load(published)
                    _remove_old(folder)
                    return found, content
            return _load(path), content  # which stays loaded when the file is gone
        except (BuildError, OSError) as error:
            if time.monotonic() - began > QUICK_SECONDS:
                _remember(folders, name, _one_line(str(error)))
            raise


def _roomy(folders: list[Path]) -> Path:
    """The first folder with room for a compiler's temporary files: the system's for such files, or one of `folders`."""
    tried = []
    with contextlib.suppress(OSError):
        tried.append(Path(tempfile.gettempdir()))
    for folder in [*tried, *folders]:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free >= COMPILER_BYTES:
                return folder
    raise BuildError(f"no room for a compiler's files in {', '.join(map(str, [*tried, *folders]))}")


def _write(path: Path, content: bytes) -> None:
    """Writes a file beside `path` and renames it: `path` is never half of it."""
    handle, temporary = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=".tmp", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o755)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _remember(folders: list[Path], name: str, reason: str) -> None:
    """Notes a failure, so that no other process waits for the same, and warns of it, this once."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / f"lstm-{name}.failed", reason.encode())
            break
    warn(reason)


def warn(reason: str) -> None:
    """Warns that there is no kernel."""
    # Where warnings are errors, this one is still none: everything runs, with XLA's loops.
    with contextlib.suppress(RuntimeWarning):
        message = f"LSTMs and GRUs run on slower loops, without the compiled kernel: {reason}. {SWITCH}=0 turns it off."
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def _remove_old(folder: Path) -> None:
    """Removes files that nobody has used for long: each release of JAX or of this package leaves some."""
    for path in folder.glob("lstm-*"):
        with contextlib.suppress(OSError):
            found = path.stat()
            if time.time() - max(found.st_atime, found.st_mtime) > KEPT_SECONDS:
                path.unlink()


def _compile(compiler: list[str], path: Path) -> None:
    """Compiles the loops for this machine, and the rest for any: the test of the loops runs before they are trusted."""
    end = time.monotonic() + TIMEOUT
    loops, ffi = path.with_name("loops.o"), path.with_name("ffi.o")
    with _started(compiler, ["-isystem", INCLUDE, "-c", str(FOLDER / "ffi.cc")], ffi, end) as other:  # at the same time
        _compile_first(compiler, MACHINE_FLAGS, ["-c", str(FOLDER / "loops.cc")], loops, end)
        _require_none(compiler, other())
    _compile_first(compiler, LINK_FLAGS, ["-shared", str(ffi), str(loops)], path, end)
    path.chmod(0o755)


def _compile_first(
    compiler: list[str], flags: tuple[tuple[str, ...], ...], words: list[str], path: Path, end: float
) -> None:
    """Writes a file with the first flags that the compiler takes."""
    error = ""
    for some in flags:
        with _started(compiler, [*some, *words], path, end) as errors:
            if not (error := errors()):
                break
    _require_none(compiler, error)


def _require_none(compiler: list[str], error: str) -> None:
    """Raises BuildError for the errors of a compiler."""
    if lines := error.splitlines():
        first = next((line for line in lines if "error" in line.lower()), lines[0])
        raise BuildError(f"{' '.join(compiler)} failed: {_one_line(first)[:300]}")


@contextlib.contextmanager
def _started(compiler: list[str], words: list[str], path: Path, end: float) -> Iterator[Callable[[], str]]:
    """Starts a compiler that writes a file. All that it starts ends with it, also where this process is interrupted.

    Yields:
      A function that waits for it, and returns its errors, or "" where it has written the file.
    """

    def errors() -> str:
        try:
            code = process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            raise BuildError(f"{compiler[0]} did not finish within {TIMEOUT:g} seconds") from None
        file.seek(0)
        if code:
            return file.read().decode(errors="replace").strip() or f"exit code {code}"
        if not path.exists():
            raise BuildError(f"{' '.join(compiler)} wrote no file")
        return ""

    # Errors go to a file: a pipe is open until the last process that inherits it ends, a compiler server as well.
    with tempfile.TemporaryFile(dir=path.parent) as file:
        process = subprocess.Popen(
            [*compiler, *FLAGS, *words, "-o", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, "TMPDIR": str(path.parent)},  # where it leaves no files when it is killed
            start_new_session=True,
        )
        try:
            yield errors
        finally:
            if process.returncode is None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
