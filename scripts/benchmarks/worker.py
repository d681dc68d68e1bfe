"""A library in its own process: `Worker` is the parent's side, `Server` the process's.

Between two requests the process waits. Output of a library goes to a log, whose last line is in the error when the
process ends unexpectedly.
"""

import ctypes
import gc
import importlib
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.libraries import ENVIRONMENT, MODULES, Job, Unavailable
from benchmarks.work import Epoch, Start, Work

TIMEOUT = 1800.0
"""Seconds to wait for the answer of a library."""

TRIAL_SECONDS = 0.1
"""How long a work is tried, to know how many calls a round takes."""


class LibraryError(Exception):
    """A library failed; the message has the reason."""


class Worker:
    """A library's process. A context manager: the process ends with it."""

    def __init__(self, library: str, platform: str = "cpu") -> None:
        # No cache of compiled programs: compilation is measured.
        environment = {"JAX_ENABLE_COMPILATION_CACHE": "0", "LSTM_BENCHMARK_PLATFORM": platform}
        if platform != "cpu":  # JAX's products are in TF32 otherwise, as are PyTorch's
            environment["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        self._log = tempfile.NamedTemporaryFile(mode="r", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._connection, theirs = multiprocessing.Pipe()
        arguments = library, environment | ENVIRONMENT.get(library, {}), theirs, self._log.name
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def call(self, request: str, *arguments: Any) -> Any:
        """Sends a request, the name of a method of `Server`, and waits for the answer.

        Raises:
          LibraryError: the library cannot, or its process has ended or does not answer.
        """
        try:
            self._connection.send((request, arguments))
            if not self._connection.poll(TIMEOUT):
                self.close()
                raise LibraryError(f"it did not answer within {TIMEOUT:.0f} s")
            answer = self._connection.recv()
        except (OSError, EOFError):
            raise LibraryError(self._end()) from None
        if isinstance(answer, LibraryError):
            raise answer
        return answer

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def close(self) -> None:
        self._connection.close()
        self._process.join(1.0)  # it ends by itself, unless it is busy
        self._process.kill()
        self._process.join()
        self._log.close()

    def _end(self) -> str:
        """How the process ended."""
        self._process.join()
        code = self._process.exitcode or 0
        last = [line.strip() for line in self._log.read().splitlines() if line.strip()][-1:]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return ": ".join([f"its process {how}", *last])


def serve(library: str, environment: dict[str, str], connection: Connection, log: str) -> None:
    """The process of a library: answers requests until there are no more."""
    os.setsid()  # Ctrl-C is the parent's
    os.environ |= environment
    sys.path.append(str(Path.cwd()))  # for modules of the user
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    server = None
    while True:
        try:
            request, arguments = connection.recv()
        except EOFError:
            return
        try:
            server = server or Server(library)
            answer = getattr(server, request)(*arguments)
        except (Unavailable, ImportError) as error:
            answer = LibraryError(_with_install_hint(error))
        except Exception as error:
            traceback.print_exc()
            answer = LibraryError(_describe(error))
        connection.send(answer)


def _with_install_hint(error: Exception) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return f"{error}: pip install -e '.[bench]' installs it" if missing in ("keras", "torch") else str(error)


class Server:
    """What a library can be asked: each public method is a request, its result the answer."""

    def __init__(self, library: str) -> None:
        self._module = importlib.import_module(MODULES.get(library, library))
        self._job: Job | None = None

    def platform(self) -> dict[str, str]:
        """Where JAX computes, and what runs this package's recurrence there."""
        import jax

        from lstm_mnist_jax.rnn import native

        platform = jax.devices()[0].platform
        reason = native.unavailable() if platform == "cpu" else f"it runs on a {platform}"
        return {"platform": platform, "recurrence": f"XLA ({reason})" if reason else "compiled kernel"}

    def start_of(self, work: Epoch) -> Start:
        """What all libraries start an epoch from: this package's initial weights and batches."""
        start: Start = self._module.start(work)
        return start

    def settings(self, work: Work) -> list[str]:
        """The settings of the library for a work, the likeliest to be the fastest first."""
        settings: list[str] = self._module.settings(work) if hasattr(self._module, "settings") else [""]
        return settings

    def load(self, work: Work, setting: str) -> dict[str, Any]:
        """Prepares a work in a setting, and checks it."""
        self._job, began = None, time.perf_counter()
        job = self._build(work, setting)
        facts = {"check": list(job.check()), "ready_seconds": time.perf_counter() - began}
        first = _timed(job.run, 1)[0]
        repeats = max(1, min(1000, math.ceil(TRIAL_SECONDS / max(first, 1e-6))))
        facts |= {"call_seconds": min(_timed(job.run, repeats, TRIAL_SECONDS))}
        self._job = job
        return facts | {"compile_seconds": job.compile_seconds, "setting": job.setting}

    def compile(self, work: Work) -> float:
        """The seconds that compiling a work in its first setting takes; runs nothing."""
        job = self._build(work, self.settings(work)[0])
        if job.compile_seconds is None:
            raise Unavailable("it has no compilation ahead of time that could be timed")
        return job.compile_seconds

    def round(self, repeats: int, max_seconds: float) -> list[float]:
        """Seconds of each call of the loaded work; fewer calls than asked for where they take too long."""
        if self._job is None:
            raise Unavailable("nothing is loaded: its process ended between two rounds")
        return _timed(self._job.run, repeats, max_seconds)

    def memory(self, work: Work, small: Work) -> int:
        """The bytes by which the process grows at its peak while it does a work once.

        Not counted: the libraries, warm after the same work at a small size; the compiled program; the weights and
        inputs. Free memory is given back to the system before, so that it counts when it is used again.
        """
        setting = self.settings(work)[0]
        self._build(small, setting).run()
        job = self._build(work, setting)
        gc.collect()
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        except (OSError, AttributeError):
            raise Unavailable("the peak of a process's memory can be measured on Linux with glibc alone") from None
        before = _status("VmRSS")
        job.run()
        return max(0, _status("VmHWM") - before)

    def _build(self, work: Work, setting: str) -> Job:
        kind = type(work).__name__.lower()
        function: Callable[[Work, str], Job] | None = getattr(self._module, kind, None)
        if function is None:
            raise Unavailable(f"it does no work of the kind {kind!r}")
        return function(work, setting)


def _timed(run: Callable[[], Any], repeats: int, max_seconds: float = math.inf) -> list[float]:
    """Seconds of each call; the last is the one that ends after `max_seconds`."""
    seconds: list[float] = []
    end = time.perf_counter() + max_seconds
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
        if began + seconds[-1] > end:
            break
    return seconds


def _describe(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _status(name: str) -> int:
    """A value of this process's status in Linux, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
