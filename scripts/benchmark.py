"""Speed and memory of this package's LSTM and of other libraries on this machine: see `--help`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from benchmarks import environment, report
from benchmarks.libraries import MODULES
from benchmarks.parts import PARTS, SIZES, Run, peak
from benchmarks.worker import LibraryError, Worker
from lstm_mnist_jax.errors import UserError

FORMAT = 2


@dataclass(frozen=True)
class Arguments:
    """Time this package's LSTM and other libraries on this machine: the same work, in alternating rounds.

    Every library runs in its own process. One that is not installed, crashes, or computes something else is reported
    with the reason. Prints tables, and writes all numbers as JSON. Ctrl-C writes the results so far. For numbers to
    quote, run nothing else meanwhile.
    """

    parts: tyro.conf.Positional[tuple[Literal["epoch", "layers", "inference", "memory", "compile", "start"], ...]] = ()
    """What to measure; all parts by default. They come before the options."""
    full: bool = False
    """The full grid of layers: about 40 minutes instead of a few on two cores."""
    tiny: bool = False
    """Very small sizes, to test the program: the timings mean nothing."""
    rounds: int = 5
    """Rounds; medians are over them."""
    libraries: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--peers"])] = ()
    """Only these: ours, flax, torch, torch-compile, keras-jax, keras-torch, keras-tensorflow, tf1, cudnn, or the
    dotted name of a module of yours (see scripts/benchmarks/libraries/__init__.py)."""
    output: Path = Path("benchmark.json")
    """The file for all numbers."""


def main() -> None:
    """Exits with 0, with 2 after an error of the user, with 130 after Ctrl-C."""
    arguments = tyro.cli(Arguments, prog="benchmark.py")
    try:
        interrupted = benchmark(arguments, Console())
    except UserError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(130 if interrupted else 0)


def benchmark(arguments: Arguments, console: Console) -> bool:
    """Measures, prints and writes; returns whether Ctrl-C ended it.

    Raises:
      UserError: an argument makes no sense, or the output cannot be written.
    """
    _check(arguments)
    result: dict[str, Any] = {
        "format": FORMAT,
        "machine": environment.describe(),
        "rounds": arguments.rounds,
        "size": "full" if arguments.full else "tiny" if arguments.tiny else "quick",
        "platform": "",
        "recurrence": "",
        "peak": {},
        "parts": {},
        "could_not_run": [],
        "interrupted": False,
    }
    if (busy := result["machine"]["busy"]) > environment.MAX_BUSY:
        console.print(f"{busy:.0%} of the cores are in use by other programs: the timings will be too long.")
    try:
        _measure(arguments, result, console)
    except KeyboardInterrupt:
        result["interrupted"] = True
    finally:
        if result["peak"]:  # else nothing was measured, and the file is kept
            arguments.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
            console.print(f"written: {arguments.output}", markup=False, highlight=False, soft_wrap=True)
    report.show(result, console)
    return bool(result["interrupted"])


def _measure(arguments: Arguments, result: dict[str, Any], console: Console) -> None:
    size = SIZES[result["size"]]
    try:
        with Worker("ours") as worker:
            result |= worker.call("platform")
            start = worker.call("start_of", size.epoch)
    except LibraryError as error:
        raise UserError(f"This package itself does not run here: {error}") from error

    def show(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True, style="dim")

    wanted = tuple(dict.fromkeys(arguments.libraries)) or None
    run = Run(size, arguments.rounds, wanted, result["platform"], start, show, result["could_not_run"])
    if run.platform == "cpu":
        run.reporter("cuDNN")("cudnn", "JAX has no GPU here")
    peak(run, result["peak"])
    result["peak"]["epoch_floor_seconds"] = size.epoch.flops / result["peak"]["flops_per_second"]
    for name in dict.fromkeys(arguments.parts or PARTS):
        PARTS[name](run, result["parts"].setdefault(name, {}))


def _check(arguments: Arguments) -> None:
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}, expected 1 or more; 5 or more for numbers to quote.")
    if arguments.full and arguments.tiny:
        raise UserError("--full and --tiny exclude each other.")
    if unknown := [name for name in arguments.libraries if name not in MODULES and "." not in name]:
        raise UserError(
            f"Unknown library {unknown[0]!r}; expected {', '.join(MODULES)}, or the dotted name of your own module."
        )
    try:  # now, not after half an hour
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with arguments.output.open("a"):
            pass
    except OSError as error:
        raise UserError(f"--output {arguments.output} cannot be written: {error.strerror}.") from error


if __name__ == "__main__":
    main()
