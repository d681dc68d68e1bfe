"""`python scripts/benchmark.py`: parses, runs the parts, prints and writes what they found."""

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from lstm_mnist_jax.benchmark import machine, report
from lstm_mnist_jax.benchmark.parts import PARTS, SIZES, Run, peak
from lstm_mnist_jax.benchmark.peers import PEERS
from lstm_mnist_jax.benchmark.process import PeerError, Worker
from lstm_mnist_jax.benchmark.work import to_json
from lstm_mnist_jax.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class Arguments:
    """Time this package's LSTM beside others', on this machine: the same work, the same numbers, alternating rounds.

    Every peer runs in a process of its own. A peer that is not installed, crashes, or computes something else is
    named with the reason. Results: tables here, all numbers as JSON, and a picture beside it. Ctrl-C writes what
    there is. For numbers worth quoting, leave the machine alone meanwhile.
    """

    parts: tyro.conf.Positional[tuple[Literal["epoch", "layers", "inference", "memory", "compile", "loop"], ...]] = ()
    """What to measure; none is all of them. They stand before the options."""
    full: bool = False
    """The full grid of layers and of memory: about 40 minutes instead of a few on two cores."""
    tiny: bool = False
    """Sizes so small that the timings mean nothing: to see whether everything runs."""
    rounds: int = 5
    """How many turns each peer has; medians are over them."""
    peers: tuple[str, ...] = ()
    """Only these: ours, flax, torch, torch-compile, keras-jax, keras-torch, keras-tensorflow, tf1, cudnn, or the
    dotted name of a module of your own (lstm_mnist_jax/benchmark/peers says what it must have)."""
    output: Path = Path("benchmark.json")
    """The file for all numbers; the picture stands beside it as .png."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The program: exits with 0, with 2 after a mistake of the user's, with 130 after Ctrl-C."""
    parsed = tyro.cli(Arguments, prog="benchmark.py", args=arguments)
    try:
        interrupted = benchmark(parsed, Console())
    except UserError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(130 if interrupted else 0)


def benchmark(arguments: Arguments, console: Console) -> bool:
    """Measures, prints and writes; whether Ctrl-C ended it.

    Raises:
      UserError: an argument makes no sense, or the output cannot be written.
    """
    _check(arguments)

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True, style="dim")

    result: dict[str, Any] = {
        "format": FORMAT,
        "machine": machine.describe(),
        "rounds": arguments.rounds,
        "size": "full" if arguments.full else "tiny" if arguments.tiny else "quick",
        "platform": "",
        "recurrence": "",
        "peak": {},
        "parts": {},
        "could_not_run": [],
        "interrupted": False,
    }
    if result["machine"]["busy_share"] > machine.BUSY_SHARE:
        tell(
            f"The machine is busy: {result['machine']['busy_share']:.0%} of its cores are in use. Timings will suffer."
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            _measure(arguments, result, f"{folder}/prepared.npz", tell)
    except KeyboardInterrupt:
        result["interrupted"] = True
    finally:
        if result["peak"]:  # else nothing was measured: what stands in the file may be worth more
            _write(arguments.output, result, console)
    report.show(result, console)
    return bool(result["interrupted"])


def _measure(arguments: Arguments, result: dict[str, Any], prepared: str, tell: Any) -> None:
    size = SIZES[result["size"]]
    try:
        with Worker("ours") as worker:
            worker.call("hello")
            result |= worker.call("platform")
            worker.call("prepare", work=to_json(size.epoch), path=prepared)
    except PeerError as error:
        raise UserError(f"This package itself does not run here: {error}") from error
    wanted = tuple(dict.fromkeys(arguments.peers)) or None
    run = Run(size, arguments.rounds, wanted, result["platform"], prepared, tell, result["could_not_run"])
    if run.platform == "cpu":
        run.report("cuDNN")("cudnn", "JAX has no GPU here")
    peak(run, result["peak"])
    if rate := result["peak"]["flops_per_second"]:
        result["peak"]["epoch_floor_seconds"] = size.epoch.flops / rate
    for name in dict.fromkeys(arguments.parts or PARTS):
        PARTS[name](run, result["parts"].setdefault(name, {}))


def _check(arguments: Arguments) -> None:
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}, expected 1 or more; 5 or more for numbers to quote.")
    if arguments.full and arguments.tiny:
        raise UserError("--full and --tiny exclude each other.")
    if unknown := [name for name in arguments.peers if name not in PEERS and "." not in name]:
        raise UserError(
            f"Unknown peer {unknown[0]!r}; expected {', '.join(PEERS)}, or the dotted name of a module of your own."
        )
    if arguments.output.suffix == ".png":
        raise UserError(f"--output is {arguments.output}, but .png is the picture beside it. Name a .json file.")
    try:  # now, not after half an hour
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with arguments.output.open("a"):
            pass
    except OSError as error:
        raise UserError(f"--output {arguments.output} cannot be written: {error.strerror}.") from error


def _write(path: Path, result: dict[str, Any], console: Console) -> None:
    from lstm_mnist_jax.benchmark.plot import plot

    path.write_text(json.dumps(_finite(result), indent=1) + "\n", "utf-8")
    written, picture = [str(path)], path.with_suffix(".png")
    try:
        if plot(result, picture):
            written.append(str(picture))
    except ImportError as error:
        console.print(f"no picture: {error}", markup=False)
    console.print(f"written: {', '.join(written)}", markup=False, highlight=False, soft_wrap=True)


def _finite(value: Any) -> Any:
    """JSON has no NaN: None instead."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
