"""The process of one peer: reads requests from standard input, a line of JSON each, and answers on standard output.

    python -m lstm_mnist_jax.benchmark.worker PEER

Between two requests it waits for a line and does nothing. Whatever a library prints goes to standard error.
"""

import ctypes
import gc
import importlib
import json
import math
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import psutil

from lstm_mnist_jax.benchmark import peers
from lstm_mnist_jax.benchmark.peers import Job, Unavailable
from lstm_mnist_jax.benchmark.work import Epoch, Work, from_json, kind_of

TRIAL_SECONDS = 0.1
"""How long a setting is tried."""

LONG_SECONDS = 0.5
"""One thread against all: not tried where a call takes longer, except in epochs."""


class Server:
    """What a worker can be asked: each public method is a request, its result the answer."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._job: Job | None = None

    def hello(self) -> dict[str, Any]:
        """Imports the peer."""
        self._module = importlib.import_module(peers.find(self._peer).module)
        return {}

    def platform(self) -> dict[str, Any]:
        """Where JAX computes, and what runs this package's recurrence there."""
        import jax

        from lstm_mnist_jax.rnn import native

        platform = jax.devices()[0].platform
        reason = native.unavailable() if platform == "cpu" else f"it runs on a {platform}"
        return {"platform": platform, "recurrence": f"XLA ({reason})" if reason else "compiled kernel"}

    def prepare(self, work: dict[str, Any], path: str) -> dict[str, Any]:
        """Writes what an epoch starts from."""
        from lstm_mnist_jax.benchmark import prepared

        epoch = from_json(work)
        assert isinstance(epoch, Epoch)
        prepared.write(epoch, path)
        return {}

    def load(self, work: dict[str, Any]) -> dict[str, Any]:
        """Makes a work ready in every setting worth it, checks it, and keeps the quickest."""
        self._job = None
        self._module_function(from_json(work))
        in_epochs = work["kind"] == "epoch"
        tried: dict[str, float | str] = {}
        best: tuple[float, Job, dict[str, Any]] | None = None
        for setting in self._settings(from_json(work)):
            if best is not None and best[0] > LONG_SECONDS and not in_epochs:
                break
            try:
                began = time.perf_counter()
                job = self._build(from_json(work), setting)
                check = list(job.check())
                ready_seconds = time.perf_counter() - began
                first = _timed(job.run, 1)
                seconds = min(_timed(job.run, _repeats(first[0]), TRIAL_SECONDS))
            except Exception as error:
                tried[setting] = _in_words(error)
                if best is None and setting == self._settings(from_json(work))[-1]:
                    raise
                continue
            tried[setting] = seconds
            if best is None or seconds < best[0]:
                facts = {"check": check, "ready_seconds": ready_seconds, "compile_seconds": job.compile_seconds}
                best = seconds, job, facts | {"setting": job.setting}
        assert best is not None
        seconds, self._job, facts = best
        self._job.activate()
        return facts | {"call_seconds": seconds, "tried": tried}

    def compile(self, work: dict[str, Any]) -> dict[str, Any]:
        """Compiles a work in its first setting, once, and runs nothing."""
        job = self._build(from_json(work), self._settings(from_json(work))[0])
        if job.compile_seconds is None:
            raise Unavailable("it has no compilation ahead of time that could be timed")
        return {"compile_seconds": job.compile_seconds}

    def round(self, repeats: int, most_seconds: float) -> dict[str, Any]:
        """Times the loaded work, call by call; fewer calls than asked for where they take too long."""
        if self._job is None:
            raise Unavailable("its process ended between two rounds, and the new one has nothing loaded")
        return {"seconds": _timed(self._job.run, repeats, most_seconds)}

    def memory(self, work: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
        """How far the process grows at the highest while it does a work once, beyond what it holds beforehand.

        Beforehand are: the libraries, warm after the same work at a small size; the compiled program; the weights
        and inputs. Memory that is free but not yet given back is given back first, so that it counts when it is
        used again.
        """
        setting = self._settings(from_json(work))[0]
        self._build(from_json(small), setting).run()
        job = self._build(from_json(work), setting)
        _give_back()
        resettable = _reset_peak()
        before = psutil.Process().memory_info().rss
        seconds = _timed(job.run, 1)
        peak = _peak()
        seconds += _timed(job.run, 2)
        return {
            "bytes": max(0, peak - before),
            "seconds": min(seconds),
            "setting": job.setting,
            "note": "" if resettable else "the peak since the process began: the system cannot reset it",
        }

    def _build(self, work: Work, setting: str) -> Job:
        job: Job = self._module_function(work)(work, setting)
        return job

    def _module_function(self, work: Work) -> Callable[[Work, str], Job]:
        function: Callable[[Work, str], Job] | None = getattr(self._module, kind_of(work), None)
        if function is None:
            raise Unavailable(f"it does no work of the kind {kind_of(work)!r}")
        return function

    def _settings(self, work: Work) -> list[str]:
        settings: list[str] = getattr(self._module, "settings", lambda work: [""])(work)
        return settings


def _timed(run: Callable[[], Any], repeats: int, most_seconds: float = math.inf) -> list[float]:
    """Seconds of each call; the last is the one that ends after `most_seconds`."""
    seconds: list[float] = []
    end = time.perf_counter() + most_seconds
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
        if began + seconds[-1] > end:
            break
    return seconds


def _repeats(seconds: float) -> int:
    return max(1, min(1000, math.ceil(TRIAL_SECONDS / max(seconds, 1e-6))))


def _in_words(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _give_back() -> None:
    """Gives free memory back to the system, where the C library can."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _reset_peak() -> bool:
    """Has Linux start the peak of this process anew; whether it could."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    """The peak of this process's resident memory, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def serve(peer: str, requests: TextIO, answers: TextIO) -> None:
    """Answers requests until there are no more."""
    server = Server(peer)
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(server, request.pop("call"))(**request)
        except (Unavailable, ImportError) as error:
            answer = {"error": str(error)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": _in_words(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.argv[1], sys.stdin, answers)


if __name__ == "__main__":
    main()
