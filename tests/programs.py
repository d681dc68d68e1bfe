"""Programs in processes of their own, started without importing JAX anew.

To import JAX, Flax and Orbax takes a process seconds. These processes are forked from one server, which has imported
them, read MNIST, fitted the novelty detection of TINY, and has done nothing else: no JAX backend. (That fit multiplies
matrices. NumPy's OpenBLAS ends its threads before a fork, and starts them again when it needs them.) What runs in them
is what `lstm-mnist` runs, with standard streams, signals, exit codes and exit handlers of its own. Where the start of
the interpreter is what a test is about (entry points, what is imported, environment variables that JAX reads on
import), use `subprocess`.
"""

import atexit
import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import jax

PRELOADED = [
    "numpy", "jax", "jax.numpy", "flax.nnx", "optax", "orbax.checkpoint", "tensorboardX", "scipy.special",
    "lstm_mnist_jax", "lstm_mnist_jax.cli.main", "lstm_mnist_jax.inference", "lstm_mnist_jax.sweeps",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg",
    "typeguard", "jaxlib.mlir.dialects.mhlo", "preloaded",
]  # fmt: skip
JAX_OPTIONS: dict[str, Callable[[str], Any]] = {
    "JAX_NUM_CPU_DEVICES": int,
    "JAX_PLATFORMS": str,
    "JAX_COMPILATION_CACHE_DIR": str,
    "JAX_DISABLE_MOST_OPTIMIZATIONS": lambda value: value == "1",
}
"""Environment variables of JAX that may differ from the server's. (JAX reads them when it is imported.)"""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def start_server() -> None:
    """Starts the server, unless it runs."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    # For the server alone: it imports `preloaded`, and compiles without most of XLA's optimizations, as this process.
    with mock.patch.dict(os.environ, PYTHONPATH=path, JAX_DISABLE_MOST_OPTIMIZATIONS="1"):
        forkserver.ensure_running()


class Program:
    """A running program; used like a `subprocess.Popen` with text streams."""

    def __init__(
        self,
        words: Sequence[object] = (),
        *,
        code: str | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | str | None = None,
    ) -> None:
        """Starts `lstm-mnist WORDS`, or with `code` a Python program, with all warnings as errors.

        Args:
          words: the arguments.
          code: the text of a Python program.
          env: all environment variables; None is those of this process.
          cwd: the working directory; None is that of this process.
        """
        reader, out = os.pipe()
        error_reader, err = os.pipe()
        env = dict(os.environ if env is None else env)
        differing = {name for name in env.keys() | os.environ.keys() if env.get(name) != os.environ.get(name)}
        if unsuitable := {name for name in differing if name.startswith(("JAX_", "XLA_"))} - JAX_OPTIONS.keys():
            raise ValueError(f"{unsuitable} take effect on import; start such a program with subprocess.")
        # Compiled as in this process (see conftest.py), also what it starts itself.
        env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(jax.config.values["jax_disable_most_optimizations"]))
        arguments = (list(map(str, words)), code, env, str(cwd or Path.cwd()))
        start_server()
        self._process: BaseProcess = _context.Process(target=_run, args=(arguments, _Streams(out, err)))
        self._process.start()
        os.close(out)
        os.close(err)
        self.stdout = os.fdopen(reader, encoding="utf-8", errors="surrogateescape")
        self.stderr = os.fdopen(error_reader, encoding="utf-8", errors="surrogateescape")

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = 240.0) -> tuple[str, str]:
        """What is left of standard output and error, when the program has ended.

        Raises:
          TimeoutError: it has not ended in time; it is killed.
        """
        found: dict[str, str] = {}

        def read(name: str, stream: Any) -> None:
            found[name] = stream.read()

        threads = [threading.Thread(target=read, args=pair) for pair in (("out", self.stdout), ("err", self.stderr))]
        for thread in threads:
            thread.start()
        self._process.join(timeout)
        timed_out = self._process.exitcode is None
        if timed_out:
            self._process.kill()
            self._process.join()
        for thread in threads:
            thread.join()
        self.stdout.close()
        self.stderr.close()
        if timed_out:
            raise TimeoutError(f"The program did not end within {timeout:g} s.\n{found['out']}\n{found['err']}")
        return found["out"], found["err"]


def run(words: Sequence[object] = (), *, timeout: float = 240.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Starts a program as `Program` does, and waits for its end."""
    program = Program(words, **options)
    output, errors = program.communicate(timeout)
    return subprocess.CompletedProcess(list(words), program.returncode, output, errors)


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class _Streams:
    """File descriptors on their way into the new process."""

    def __init__(self, *descriptors: int) -> None:
        self.descriptors = descriptors

    def __reduce__(self) -> Any:
        return _Received, tuple(map(reduction.DupFd, self.descriptors))


class _Received:
    def __init__(self, *duplicates: Any) -> None:
        self.duplicates = duplicates

    def replace_standard_streams(self) -> None:
        for number, duplicate in enumerate(self.duplicates, start=1):
            descriptor = duplicate.detach()
            os.dup2(descriptor, number)
            os.close(descriptor)


def _run(arguments: tuple[list[str], str | None, dict[str, str], str], streams: _Received) -> None:
    """In the new process."""
    words, code, env, cwd = arguments
    streams.replace_standard_streams()
    _as_a_new_interpreter(env, cwd)
    status: Any = 0
    try:
        if code is None:
            from lstm_mnist_jax.cli.main import main

            sys.argv = ["lstm-mnist", *words]
            main()
        else:
            warnings.simplefilter("error")
            sys.argv = ["-c", *words]
            exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def _as_a_new_interpreter(env: dict[str, str], cwd: str) -> None:
    differing = {name for name in JAX_OPTIONS if env.get(name) != os.environ.get(name)}
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    for name in differing:
        default = -1 if name == "JAX_NUM_CPU_DEVICES" else None
        jax.config.update(name.lower(), JAX_OPTIONS[name](env[name]) if name in env else default)
    encoding = env.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding=encoding)
    error = os.fdopen(2, "wb", closefd=False)
    sys.stderr = io.TextIOWrapper(error, encoding=encoding, errors="backslashreplace", line_buffering=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
