"""The time from the start of a preset's process to a test accuracy, here and in PyTorch, in turns.

Three starts are timed: this package with the programs that it compiled before, this package in a user's account that
never ran it (which compiles the native kernel too), and the same recipe in PyTorch (torch_recipe.py).
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

from benchmarks import environment
from lstm_mnist_jax import PRESETS

LINE = re.compile(r"epoch +(\d+)/\d+ .*validation +([\d.]+)% +test +([\d.]+)%")


class ProgramError(Exception):
    """A program failed or printed no epoch; the message has the reason."""


@dataclass(frozen=True)
class Arguments:
    """Time a preset to its test accuracies, from the start of the process, beside the same recipe in PyTorch."""

    preset: tyro.conf.Positional[str] = "rows-fast"
    """The preset to train."""
    accuracies: tuple[float, ...] = (98.0, 99.0)
    """Test accuracies in per cent; the time of each is that of the first epoch's line that shows it."""
    rounds: int = 3
    """Turns, the first with seed 0, the next with 1. Medians are over them."""
    output: Path = Path("time_to_accuracy.json")
    """The file for all numbers."""


def main() -> None:
    """Times the programs, and prints and writes the results."""
    arguments, console = tyro.cli(Arguments, prog="time_to_accuracy.py"), Console()
    if arguments.preset not in PRESETS:
        sys.exit(f"time_to_accuracy.py: unknown preset {arguments.preset!r}; expected one of {', '.join(PRESETS)}.")
    if arguments.rounds < 1:
        sys.exit(f"time_to_accuracy.py: rounds is {arguments.rounds}, expected 1 or more.")
    found: dict[str, list[dict[str, Any]]] = {}
    train = [sys.executable, "-m", "lstm_mnist_jax", "train", arguments.preset]
    in_torch = [sys.executable, str(Path(__file__).with_name("torch_recipe.py")), arguments.preset]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        try:  # a program is compiled again where any option differs, so all but the seed and the folder are the same
            timed([*train, "--run-dir", str(root / "first")], root / "warm")
        except ProgramError as error:
            sys.exit(f"time_to_accuracy.py: {arguments.preset} cannot be trained: {error}")
        for seed in range(arguments.rounds):
            options = ["--seed", str(seed), "--run-dir"]
            programs = {
                "here, cache warm": ([*train, *options, str(root / f"warm-{seed}")], root / "warm"),
                "here, cache cold": ([*train, *options, str(root / f"cold-{seed}")], root / f"cache-{seed}"),
                "PyTorch": ([*in_torch, str(seed)], None),
            }
            for name, (command, cache) in programs.items():
                try:
                    epochs = timed(command, cache)
                except ProgramError as error:
                    console.print(f"could not run {name}: {error}", markup=False)
                    continue
                found.setdefault(name, []).append({"seed": seed, "epochs": epochs})
                last = epochs[-1]
                console.print(f"seed {seed}: {name}, {last['seconds']:.1f} s, test {last['test']:.2f} %")
    result = {"machine": environment.describe(), "preset": arguments.preset, "programs": found}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    console.print(_table(arguments, found))


def timed(command: list[str], cache: Path | None) -> list[dict[str, float]]:
    """The epochs of a process, each with the seconds from its start.

    Args:
      command: the program and its arguments.
      cache: the folder for what this package compiles; None for other programs.

    Raises:
      ProgramError: the program fails, or prints no epoch.
    """
    variables = dict(os.environ)
    if cache is not None:
        variables |= {"XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": str(cache / "compiled")}
    began, epochs = time.perf_counter(), []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if match := LINE.match(line):
                validation, test = map(float, match.groups()[1:])
                epochs.append({"seconds": time.perf_counter() - began, "validation": validation, "test": test})
        process.wait()
        errors.seek(0)
        messages = errors.read().strip().splitlines()
    if process.returncode or not epochs:
        raise ProgramError(messages[-1] if messages else "it printed no epoch")
    return epochs


def seconds_to(epochs: list[dict[str, float]], accuracy: float) -> float | None:
    """Seconds to the first epoch of that test accuracy; None where there was none."""
    return next((epoch["seconds"] for epoch in epochs if epoch["test"] >= accuracy), None)


def median_and_spread(values: list[float | None]) -> str:
    """For a table: "2.0 [1.0, 3.0]"."""
    known = [value for value in values if value is not None]
    if not known:
        return "never"
    missing = "" if len(known) == len(values) else f", {len(values) - len(known)} never"
    return f"{statistics.median(known):.1f} [{min(known):.1f}, {max(known):.1f}]{missing}"


def _table(arguments: Arguments, found: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(title=f"{arguments.preset}: seconds from the start of the process, medians of {arguments.rounds}")
    for column in ("", *(f"to {accuracy:g} %" for accuracy in arguments.accuracies), "to the end", "test %"):
        table.add_column(column, justify="right" if column else "left")
    for name, turns in found.items():
        times = [[seconds_to(turn["epochs"], accuracy) for turn in turns] for accuracy in arguments.accuracies]
        times.append([turn["epochs"][-1]["seconds"] for turn in turns])
        test = statistics.fmean(turn["epochs"][-1]["test"] for turn in turns)
        table.add_row(name, *map(median_and_spread, times), f"{test:.2f}")
    return table


if __name__ == "__main__":
    main()
