"""Checks and measures this package on the GPU or TPU of this machine: see `--help`.

Each part runs in a process of its own, so that a crash or a full memory ends one part alone. The process that starts
them never starts JAX: a TPU belongs to one process. What a part does is in benchmarks/accelerator.py.
"""

import hashlib
import html
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks import environment
from benchmarks.accelerator import PARTS, Failed, Part, Setting, Unavailable, device

FORMAT = 1
OPTIONS = (
    "JAX_CPU_ENABLE_ASYNC_DISPATCH", "JAX_DEBUG_INFS", "JAX_DEBUG_NANS", "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_DEFAULT_PRNG_IMPL", "JAX_DISABLE_JIT", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_ENABLE_CHECKS",
    "JAX_ENABLE_PGLE", "JAX_ENABLE_X64", "JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "JAX_MEMORY_FITTING_EFFORT",
    "JAX_MEMORY_FITTING_LEVEL", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUM_CPU_DEVICES", "JAX_OPTIMIZATION_LEVEL",
    "JAX_RANDOM_SEED_OFFSET", "JAX_THREEFRY_GPU_KERNEL_LOWERING", "JAX_THREEFRY_PARTITIONABLE", "LIBTPU_INIT_ARGS",
    "LSTM_MNIST_JAX_NATIVE", "NVIDIA_TF32_OVERRIDE", "XLA_CLIENT_MEM_FRACTION", "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_ALLOCATOR", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE",
)  # fmt: skip
"""The environment variables that change what is computed or how fast, beside those that choose the devices. The file,
which is for publishing, has their values; others hold paths and names of hosts."""

PRELOADED = ["flax.nnx", "optax", "orbax.checkpoint", "lstm_mnist_jax.training", "lstm_mnist_jax.inference"]

STYLE = (
    "body{font:15px sans-serif;margin:2em auto;max-width:75em}table{border-collapse:collapse}td,th{padding:.2em .7em"
)
STYLE += ";border-bottom:1px solid #ccc;text-align:right}.failed{color:#b00}"


@dataclass(frozen=True)
class Arguments:
    """Check and measure this package on this machine's GPU or TPU: training, resuming, layers, sweeps, tests.

    What was measured with the same version, device, sizes and environment variables of JAX and XLA is kept: after an
    interruption, the same command goes on.
    Writes all figures to a JSON file, and tables to an HTML page beside it. Exit code 1 where a part failed.
    """

    parts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The parts to run; all by default. The answer to a wrong name lists them."""
    again: tuple[str, ...] = ()
    """Parts to run again, although their figures are there."""
    minutes: float = 8.0
    """No part goes on after so long; the same command then goes on with the rest."""
    tiny: bool = False
    """Very small sizes, to test the program: the timings mean nothing."""
    output: Path = Path("accelerator_check.json")
    """The file for all figures; the page has its name with the ending .html."""


def main() -> None:
    """Exits with 0, 1 where a part failed, 2 after an error of the user, 130 after Ctrl-C, or 143 after SIGTERM."""
    arguments = tyro.cli(Arguments, prog="accelerator_check.py")
    try:
        sys.exit(check(arguments))
    except KeyboardInterrupt:
        print("accelerator_check.py: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)


def check(arguments: Arguments) -> int:
    """Runs the parts that are not done yet, and writes after each. Returns the exit code."""
    end = time.monotonic() + 60 * arguments.minutes
    if unknown := [name for name in (*arguments.parts, *arguments.again) if name not in PARTS]:
        return _refuse(f"unknown part {unknown[0]!r}; expected some of {', '.join(PARTS)}.")
    if not arguments.minutes > 0:
        return _refuse(f"--minutes is {arguments.minutes:g}, expected more than 0.")
    if not arguments.output.name or (arguments.output.exists() and not arguments.output.is_file()):
        return _refuse(
            f"--output {arguments.output} is no file. Give the name of one, or of one that is not there yet."
        )
    if (page_file := arguments.output.with_suffix(".html")) == arguments.output:
        return _refuse(f"--output {arguments.output} would be the page, too. Give it another ending, such as .json.")
    try:  # now, not after some minutes
        before = arguments.output.read_text("utf-8") if arguments.output.exists() else f'{{"format": {FORMAT}}}'
        found: dict[str, Any] = json.loads(before)
        if found["format"] != FORMAT or (len(found) > 1 and not _is_whole(found)):
            raise ValueError("it is of another program")
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=arguments.output.parent):
            pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return _refuse(f"--output {arguments.output} cannot be used: {error}. Give another name.")
    options = {name: _without_paths(os.environ[name]) for name in OPTIONS if name in os.environ}
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
    if not arguments.tiny:  # else compilation is measured
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else the part at hand would go on
    multiprocessing.set_forkserver_preload(PRELOADED)  # to import JAX and Flax takes each process seconds
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(arguments.tiny, "", Path(folder), 120.0, {})
        facts = run(Part("device", setting.seconds, (device,)), setting)
        if facts["reason"]:
            return _refuse(f"JAX does not start here: {facts['reason']}.")
        key = {**facts["rows"][0], "commit": _commit(), "tiny": arguments.tiny, "options": options}
        if found.get("key", key) != key:
            differ = ", ".join(name for name in key if found["key"].get(name) != key[name])
            differ = differ.replace("options", "environment variables")
            olds = (arguments.output.with_name(f"{arguments.output.name}.old{n}") for n in itertools.count(1))
            old = next(path for path in olds if not path.exists())
            print(f"{arguments.output} was measured with different {differ}: all parts run again. It is kept as {old}.")
            arguments.output.replace(old)
        parts: dict[str, Any] = found["parts"] if found.get("key") == key else {}
        found = {"format": FORMAT, "key": key, "machine": environment.describe(), "parts": parts}
        print(f"{_device(key)}\n{_warning(key)}".rstrip(), flush=True)
        for name in dict.fromkeys((*arguments.parts, *arguments.again) if arguments.parts else PARTS):
            if name in parts and name not in arguments.again and not parts[name]["reason"].startswith("failed"):
                print(f"{name}: done before")
                continue
            if (seconds := min(PARTS[name].seconds, end - time.monotonic())) < 1:
                print(f"{name}: not run, {arguments.minutes:g} minutes are over; the same command goes on")
                parts.setdefault(
                    name, {"rows": [], "seconds": 0.0, "peak_bytes": None, "reason": "failed: not run yet"}
                )
                continue
            done = {other: part["rows"] for other, part in parts.items()}
            setting = Setting(arguments.tiny, key["platform"], Path(folder), seconds, done)
            parts[name] = run(PARTS[name], setting)
            print(f"{name}: {parts[name]['reason'] or 'done'}, {parts[name]['seconds']:.1f} s", flush=True)
            _write(arguments.output, json.dumps(found, indent=1) + "\n")
            _write(page_file, page(found))
        _write(arguments.output, json.dumps(found, indent=1) + "\n")  # with the parts that did not run
        _write(page_file, page(found))
    print(f"written: {arguments.output}, {page_file}")
    return int(any(part["reason"].startswith("failed") for part in parts.values()))


def run(part: Part, setting: Setting) -> dict[str, Any]:
    """Runs a part. Its result: rows, seconds, the memory at its peak in bytes or None, and "" or why it ended early."""
    context, began = multiprocessing.get_context("forkserver"), time.monotonic()
    rows, peak, reason = list[dict[str, Any]](), None, ""
    for step in range(len(part.steps)):
        if reason:
            break
        log = setting.folder / f"log-{step}"
        log.write_text("")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(part, step, setting, str(log), sender))
        process.start()
        sender.close()
        try:
            while True:
                if not receiver.poll(max(0.0, began + setting.seconds - time.monotonic())):
                    reason = f"failed: stopped after {setting.seconds:.0f} s"
                    break
                row, last = receiver.recv()
                if last is not None:
                    peak, reason = last
                    break
                rows.append(row)
        except (EOFError, OSError):  # OSError: within a row
            process.join()
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            reason = ": ".join([f"failed: its process ended with exit code {process.exitcode}", *lines[-1:]])
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join()
    return {"rows": rows, "seconds": time.monotonic() - began, "peak_bytes": peak, "reason": reason}


def _serve(part: Part, step: int, setting: Setting, log: str, connection: Any) -> None:
    """The process of a step: sends (row, None) for each row, then (None, (memory at its peak, why it ended early))."""
    os.setsid()  # Ctrl-C is the parent's, which ends the whole group
    file, peak, reason = os.open(log, os.O_WRONLY | os.O_APPEND), None, ""
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {part.flags}".strip()
    try:
        for row in part.steps[step](setting):
            connection.send((row, None))
        if part.uses_jax:
            import jax

            peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    except Unavailable as error:
        reason = f"unavailable: {error}"
    except Exception as error:
        kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
        reason = f"failed: {kind}{next(iter(str(error).splitlines()), '')}"
    connection.send((None, (peak, reason)))


def _without_paths(options: str) -> str:
    """The value of an environment variable, such as XLA_FLAGS, without the files that options name."""
    return re.sub(r"=\S*/\S*", "=PATH", options)


def _is_whole(found: dict[str, Any]) -> bool:
    """Whether a file has all that `check` writes."""
    has_all = all(isinstance(found.get(name), dict) for name in ("key", "machine", "parts"))
    return has_all and all({"rows", "seconds", "peak_bytes", "reason"} == {*part} for part in found["parts"].values())


def _commit() -> str:
    """The commit of this checkout, with a hash of what has changed since; "" where there is none."""
    with suppress(OSError, subprocess.SubprocessError):
        described, changes = (
            subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, check=True).stdout
            for words in (["describe", "--always", "--abbrev=12"], ["diff", "HEAD"])
        )
        changed = f"-changed-{hashlib.sha256(changes).hexdigest()[:8]}" if changes else ""
        return described.decode().strip() + changed
    return ""


def _device(key: dict[str, Any]) -> str:
    return f"{key['devices']} x {key['device']}"


def _warning(key: dict[str, Any]) -> str:
    cpu = "JAX has no accelerator here: these are a CPU's figures. " if key["platform"] == "cpu" else ""
    return cpu + "Sizes for a test of the program: the timings mean nothing." * key["tiny"]


def _refuse(message: str) -> int:
    print(f"accelerator_check.py: {message}", file=sys.stderr)
    return 2


def _write(file: Path, text: str) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(file)


def page(found: dict[str, Any]) -> str:
    """The results as one HTML page."""
    key, machine = found["key"], found["machine"]
    title = _device(key)
    head = f"lstm-mnist-jax {key['version']} {key['commit']}, jax {key['jax']}, jaxlib {key['jaxlib']}, "
    head += f"Python {machine['python']}, {machine['processor']}, {machine['date'][:10]}"
    body = [f"<h1>{html.escape(title)}</h1><p>{html.escape(head)}</p><p class=failed>{_warning(key)}</p>"]
    for name, part in found["parts"].items():
        peak = (
            "" if part["peak_bytes"] is None else f", {part['peak_bytes'] / 2**20:,.0f} MiB of the device at the peak"
        )
        body.append(f"<h2>{html.escape(PARTS[name].title)}</h2><p>{name}: {part['seconds']:.1f} s{peak}</p>")
        if part["reason"]:
            body.append(f"<p class=failed>{html.escape(part['reason'])}</p>")
        columns = dict.fromkeys(column for row in part["rows"] for column in row if column != "check")
        rows = ["".join(f"<td>{_cell(row.get(column))}</td>" for column in columns) for row in part["rows"]]
        heads = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        body.append(f"<table><tr>{heads}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>")
    start = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f"{start}<style>{STYLE}</style><body>{''.join(body)}</body></html>\n"


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bool | str):
        return "" if value is None else html.escape(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


if __name__ == "__main__":
    main()
