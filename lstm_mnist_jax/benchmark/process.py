"""The parent's side of a worker: starts it, asks, and tells in words when it cannot."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from types import TracebackType
from typing import Any

import psutil

from lstm_mnist_jax.benchmark import peers

TIMEOUT = 1800.0
"""Seconds after which a peer that does not answer is given up."""


class PeerError(Exception):
    """A peer could not do what it was asked; the message says why."""


class Worker:
    """A peer's process. A context manager: the process ends with it."""

    def __init__(self, peer: str, platform: str = "cpu") -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        environment = os.environ | peers.find(peer).environment
        # No cache of compiled programs: what compiles is to be seen. The parent's folder is where a peer of your
        # own is found.
        environment |= {"JAX_ENABLE_COMPILATION_CACHE": "0", "LSTM_BENCHMARK_PLATFORM": platform}
        if platform != "cpu":  # JAX's products are in TF32 otherwise, as are PyTorch's
            environment["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lstm_mnist_jax.benchmark.worker", peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def call(self, call: str, **arguments: Any) -> dict[str, Any]:
        """Asks, and waits for the answer.

        Raises:
          PeerError: the peer cannot, or its process has ended or does not answer.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerError(self._end()) from None
        try:
            line = self._answers.get(timeout=TIMEOUT)
        except queue.Empty:
            self.close()
            raise PeerError(f"it did not answer within {TIMEOUT:.0f} s") from None
        if line is None:
            raise PeerError(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def cpu_seconds(self) -> float:
        """CPU time that the process has used so far; 0 where it has ended."""
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return times.user + times.system

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._log):
            if stream is not None:
                with contextlib.suppress(OSError):  # a request that nobody will read
                    stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put(None)

    def _end(self) -> str:
        """How the process ended."""
        code = self._process.wait()
        self._log.seek(0)
        last = [line.strip() for line in self._log.read().splitlines() if line.strip()][-1:]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return ": ".join([f"its process {how}", *last])
