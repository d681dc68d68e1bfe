"""How long a preset takes from the start of its process to a test accuracy, here and in PyTorch, in turns.

Three starts are timed: this package with the programs that it compiled before, this package in a user's account that
never ran it (which compiles the native kernel too), and the same recipe in PyTorch.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from lstm_mnist_jax.benchmark import machine
from lstm_mnist_jax.benchmark.process import PeerError
from lstm_mnist_jax.config import PRESETS

LINE = re.compile(r"epoch +(\d+)/\d+ .*validation +([\d.]+)% +test +([\d.]+)%")


@dataclass(frozen=True)
class Arguments:
    """Time a preset to its test accuracies, from the start of the process, beside the same recipe in PyTorch."""

    preset: tyro.conf.Positional[str] = "rows-fast"
    """What is trained."""
    accuracies: tuple[float, ...] = (98.0, 99.0)
    """Test accuracies in per cent; the time of each is that of the first epoch's line that shows it."""
    rounds: int = 3
    """How many turns, the first with seed 0, the next with 1. Medians are over them."""
    output: Path = Path("time_to_accuracy.json")
    """The file for all numbers."""


def main() -> None:
    """The program."""
    arguments, console = tyro.cli(Arguments, prog="time_to_accuracy.py"), Console()
    if arguments.preset not in PRESETS:
        sys.exit(f"time_to_accuracy.py: unknown preset {arguments.preset!r}; expected one of {', '.join(PRESETS)}.")
    if arguments.rounds < 1:
        sys.exit(f"time_to_accuracy.py: rounds is {arguments.rounds}, expected 1 or more.")
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        torch_recipe = [sys.executable, "-m", f"{__package__}.peers.torch_recipe"]
        train = [sys.executable, "-m", "lstm_mnist_jax", "train", arguments.preset]
        try:  # what is compiled depends on every option
            _timed([*train, "--run-dir", str(root / "first")], root / "warm")
        except PeerError as error:
            sys.exit(f"time_to_accuracy.py: {arguments.preset} cannot be trained: {error}")
        for turn in range(arguments.rounds):
            options = ["--seed", str(turn), "--run-dir"]
            peers = {
                "here, cache warm": ([*train, *options, str(root / f"warm-{turn}")], root / "warm"),
                "here, cache cold": ([*train, *options, str(root / f"cold-{turn}")], root / f"cache-{turn}"),
                "PyTorch": ([*torch_recipe, arguments.preset, str(turn)], None),
            }
            for name, (command, cache) in peers.items():
                try:
                    epochs = _timed(command, cache)
                except PeerError as error:
                    console.print(f"could not run {name}: {error}", markup=False)
                    continue
                found.setdefault(name, []).append({"seed": turn, "epochs": epochs})
                last = epochs[-1]
                console.print(f"seed {turn}: {name}, {last['seconds']:.1f} s, test {last['test']:.2f} %")
    result = {"machine": machine.describe(), "preset": arguments.preset, "rounds": arguments.rounds, "peers": found}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    console.print(_table(arguments, found))


def _timed(command: list[str], cache: Path | None) -> list[dict[str, float]]:
    """The epochs of a process, each with the seconds from its start."""
    environment = dict(os.environ)
    if cache is not None:
        environment |= {"XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": str(cache / "compiled")}
    began, epochs = time.perf_counter(), []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if match := LINE.match(line):
                seconds = time.perf_counter() - began
                validation, test = map(float, match.groups()[1:])
                epochs.append({"seconds": seconds, "validation": validation, "test": test})
        process.wait()
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if process.returncode or not epochs:
        raise PeerError(said[-1] if said else "it printed no epoch")
    return epochs


def seconds_to(epochs: list[dict[str, float]], accuracy: float) -> float | None:
    """Seconds to the first epoch of that test accuracy; None where there was none."""
    return next((epoch["seconds"] for epoch in epochs if epoch["test"] >= accuracy), None)


def _table(arguments: Arguments, found: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(title=f"{arguments.preset}: seconds from the start of the process, medians of {arguments.rounds}")
    for column in ("", *(f"to {accuracy:g} %" for accuracy in arguments.accuracies), "to the end", "test %"):
        table.add_column(column, justify="right" if column else "left")
    for name, turns in found.items():
        cells = [_median([seconds_to(turn["epochs"], accuracy) for turn in turns]) for accuracy in arguments.accuracies]
        cells.append(_median([turn["epochs"][-1]["seconds"] for turn in turns]))
        cells.append(f"{statistics.mean(turn['epochs'][-1]['test'] for turn in turns):.2f}")
        table.add_row(name, *cells)
    return table


def _median(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "never"
    missing = "" if len(known) == len(values) else f", {len(values) - len(known)} never"
    return f"{statistics.median(known):.1f} [{min(known):.1f}, {max(known):.1f}]{missing}"
