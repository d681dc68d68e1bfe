"""An estimate of the time of an epoch on more cores than this machine has.

Measures a training step of a preset on one and on two devices, for several batch sizes, and fits

    seconds = overhead + work * (batch / devices) + meeting * f(devices),    f(1) = 0, f(2) = 1

where the meeting is the all-reduce of the gradients. How it grows is not known from two devices: the table gives the
range from f(n) = log2(n), where devices add up in a tree, to f(n) = n - 1, where one adds up what all have.
"""

import json
import math
import os
import tempfile
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # before JAX is imported

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import environment
from lstm_mnist_jax import PRESETS, Execution, train
from lstm_mnist_jax.training.metrics import read_metrics


@dataclass(frozen=True)
class Arguments:
    """Estimate the time of an epoch on more cores than this machine has."""

    preset: tyro.conf.Positional[str] = "tutorial"
    """The preset to train."""
    examples: int = 12_800
    """Training examples of a measured epoch."""
    rounds: int = 5
    """Rounds; medians are over them."""
    output: Path = Path("scaling.json")
    """The file for all numbers."""


BATCHES = (8, 16, 32, 64, 128, 256)
"""Examples of a step on each device."""

DEVICES = (1, 2, 4, 8, 16, 64)
TOTAL_BATCHES = (64, 256, 1024)
TRAINING_SET = 55_000


@dataclass(frozen=True)
class Step:
    """The model of a step, in seconds.

    Attributes:
      overhead: of a step without examples.
      work: of an example.
      meeting: of the all-reduce of two devices.
    """

    overhead: float
    work: float
    meeting: float

    def seconds(self, devices: int, batch: int, growth: float) -> float:
        """Of a step of `batch` examples, where the all-reduce takes `growth` times that of two devices."""
        return self.overhead + self.work * batch / devices + self.meeting * growth


def main() -> None:
    """Measures, and prints and writes the results."""
    arguments, console = tyro.cli(Arguments, prog="scaling.py"), Console()
    machine, measured = environment.describe(), dict[tuple[int, int], list[float]]()
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for batch in BATCHES:
                for devices in (1, 2):
                    run_dir = Path(folder) / f"{turn}-{batch}-{devices}"
                    measured.setdefault((devices, batch), []).append(step_seconds(arguments, devices, batch, run_dir))
            console.print(f"round {turn + 1} of {arguments.rounds}", style="dim")
    medians = {key: float(np.median(values)) for key, values in measured.items()}
    step = fitted(medians)
    rows = [[epoch(step, devices, batch) for devices in DEVICES] for batch in TOTAL_BATCHES]
    console.print(
        f"{machine['processor']}, vectors of {machine['vector_bits']} bits, {machine['busy']:.0%} of the cores in use "
        f"by other programs at the start; medians of {arguments.rounds} rounds"
    )
    console.print(table_of_steps(measured))
    console.print(
        f"a step: {1e3 * step.overhead:.2f} ms, {1e6 * step.work:.1f} µs an example, {1e3 * step.meeting:.2f} ms for "
        "the all-reduce of two devices"
    )
    console.print(table_of_epochs(rows))
    found = {
        "machine": machine,
        "steps": [{"devices": key[0], "batch": key[1], "seconds": values} for key, values in measured.items()],
        "model": vars(step),
        "epochs": [{"batch": batch, "seconds": row} for batch, row in zip(TOTAL_BATCHES, rows, strict=True)],
    }
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    console.print(f"written: {arguments.output}")


def step_seconds(arguments: Arguments, devices: int, batch: int, run_dir: Path) -> float:
    """Of a step with `batch` examples on each device: in the quickest epoch after the first, which compiles."""
    config = PRESETS[arguments.preset]
    data = replace(config.data, train_examples=arguments.examples)
    config = replace(config, epochs=3, batch_size=batch * devices, data=data)
    train(config, run_dir, execution=Execution(devices=devices))
    found = read_metrics(run_dir / "metrics.jsonl")
    return min(after.seconds / (after.step - before.step) for before, after in pairwise(found))


def fitted(medians: dict[tuple[int, int], float]) -> Step:
    """The line through the steps of one device with the least squares of relative errors, and how much two differ."""
    batches = np.array(BATCHES, float)
    one, two = (np.array([medians[devices, batch] for batch in BATCHES]) for devices in (1, 2))
    lines = np.stack([np.ones_like(batches), batches], axis=1) / one[:, None]
    (overhead, work), *_ = np.linalg.lstsq(lines, np.ones_like(one), rcond=None)
    return Step(float(overhead), float(work), max(0.0, float(np.median(two - one))))


def epoch(step: Step, devices: int, batch: int) -> tuple[float, float]:
    """Seconds of an epoch of MNIST, at least and at most."""
    steps = TRAINING_SET / batch
    least, most = math.log2(devices), devices - 1
    return steps * step.seconds(devices, batch, least), steps * step.seconds(devices, batch, most)


def table_of_steps(measured: dict[tuple[int, int], list[float]]) -> Table:
    """What was measured."""
    table = Table("examples a device", *(f"{devices} device{'s' * (devices > 1)}, ms" for devices in (1, 2)))
    for batch in BATCHES:
        cells = []
        for devices in (1, 2):
            values = [1e3 * value for value in measured[devices, batch]]
            cells.append(f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        table.add_row(str(batch), *cells)
    return table


def table_of_epochs(rows: list[list[tuple[float, float]]]) -> Table:
    """The estimates."""
    table = Table("batch", *(f"{devices} cores, s" for devices in DEVICES), title="an epoch of MNIST, estimated")
    for batch, row in zip(TOTAL_BATCHES, rows, strict=True):
        cells: list[Any] = [f"{a:.2f}" if f"{a:.2f}" == f"{b:.2f}" else f"{a:.2f} to {b:.2f}" for a, b in row]
        table.add_row(str(batch), *cells)
    return table


if __name__ == "__main__":
    main()
