"""Starts several processes of one run on this machine, as a cluster does on many machines.

    python scripts/launch_local.py 2 train smoke --run-dir runs/two

They run on the CPU, each with its share of the cores, unless JAX_PLATFORMS and --devices are given. When one fails, the
others end within a minute, or are killed after it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

import psutil

USAGE = "usage: python scripts/launch_local.py PROCESSES train|sweep [OPTIONS]"

PATIENCE_SECONDS = 60.0
"""The time for the others to end after one has failed."""


def main(arguments: list[str]) -> int:
    if not arguments or not arguments[0].isdecimal() or int(arguments[0]) < 1 or len(arguments) < 2:
        print(USAGE, file=sys.stderr)
        return 2
    count, words = int(arguments[0]), arguments[1:]
    if words[0] not in ("train", "sweep"):
        print(f"{words[0]} runs in one process; expected train or sweep.\n{USAGE}", file=sys.stderr)
        return 2
    words = _with_devices(words, count)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = [*words, "--coordinator", f"127.0.0.1:{port}", "--num-processes", str(count)]
    started: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for process in started:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    for number in range(count):
        command = [sys.executable, "-m", "lstm_mnist_jax", *common, "--process-id", str(number)]
        started.append(subprocess.Popen(command, env={"JAX_PLATFORMS": "cpu", **os.environ}))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all of them by itself
    return _wait(started)


def _with_devices(words: list[str], count: int) -> list[str]:
    """The words, with an equal share of the cores for each process where they do not name the number of devices."""
    if any(word.split("=")[0] == "--devices" for word in words):
        return words
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(usable, psutil.cpu_count(logical=False) or usable)
    return [*words, "--devices", str(max(1, cores // count))]


def _wait(started: list[subprocess.Popen[bytes]]) -> int:
    """Waits for all, and kills those that still run some time after a failure. The first exit code that is not 0."""
    failed_at, code = None, 0
    while any(process.poll() is None for process in started):
        codes = [process.returncode for process in started if process.returncode]
        if codes and failed_at is None:
            failed_at, code = time.monotonic(), codes[0]
        if failed_at is not None and time.monotonic() - failed_at > PATIENCE_SECONDS:
            for process in started:
                process.kill()
        time.sleep(0.1)
    code = code or next((process.returncode for process in started if process.returncode), 0)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
