"""An estimate of the time of an epoch on more cores than this machine has.

Times a training step of a preset on two cores, in processes that are bound to them, for several batch sizes:

- alone: one device on one core, while the other core is idle;
- beside another: the same, while the same program runs on the other core (no step waits for another process);
- shared: two devices, one on each core, which share a batch of twice the size.

From *alone* to *beside another*, a step gets longer because cores share memory, cache and clock ("sharing"). From
*beside another* to *shared*, it gets longer because the devices wait for the slower one ("waiting", a part of the
step), and because of the all-reduce of the gradients. With n cores and a batch of B examples, the model of a step is

    seconds = (overhead + work * B / n) * (1 + sharing * s(n)) * (1 + waiting * w(n)) + all-reduce * r(n)

where s, w and r are 0 for one core and 1 for two. Two cores do not show how they grow with n. The table gives the range
between two assumptions:

- at least: more cores share no more, and wait no longer, than two do, s(n) = w(n) = 1; and gradients are added up in a
  tree, r(n) = log2(n);
- at most: all cores share one memory, s(n) = n - 1; the slowest of many is waited for longer, w(n) = log2(n); and one
  device adds up what all others have, r(n) = n - 1.
"""

import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from scipy.optimize import nnls

from benchmarks import environment


@dataclass(frozen=True)
class Arguments:
    """Estimate the time of an epoch on more cores than this machine has, from steps on one and two cores. For Linux.

    For numbers to quote, run nothing else meanwhile.
    """

    preset: tyro.conf.Positional[str] = "tutorial"
    """The preset to train."""
    batches: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    """Examples of a step on each device."""
    rounds: int = 9
    """Rounds; medians are over them."""
    seconds: float = 0.5
    """How long a step is repeated in each round."""
    output: Path = Path("scaling.json")
    """The file for all numbers."""


CORES = (1, 2, 4, 8, 16, 32, 64)
TOTAL_BATCHES = (64, 256, 1024, 4096)
TRAINING_SET = 55_000

KINDS = ("alone", "beside another", "shared")

SETTLE_SECONDS = 0.1
"""A pause before each turn, in which the threads of the other processes fall asleep."""

TIMEOUT = 600.0
"""Seconds to wait for a process, which compiles first."""


class Growth(NamedTuple):
    """Sharing, waiting and the all-reduce, as multiples of those of two cores: s(n), w(n) and r(n)."""

    sharing: float
    waiting: float
    all_reduce: float

    @staticmethod
    def least(cores: int) -> "Growth":
        return Growth(min(cores - 1, 1), min(cores - 1, 1), math.log2(cores))

    @staticmethod
    def most(cores: int) -> "Growth":
        return Growth(cores - 1, math.log2(cores), cores - 1)


@dataclass(frozen=True)
class Step:
    """The model of a step.

    Attributes:
      overhead: seconds of a step without examples.
      work: seconds of an example.
      sharing: by what fraction a step is longer while another core is busy.
      waiting: by what fraction a step of two devices is longer, because they wait for each other.
      all_reduce: seconds in which two devices add up gradients.
    """

    overhead: float
    work: float
    sharing: float
    waiting: float
    all_reduce: float

    def seconds(self, cores: int, batch: float, growth: Growth) -> float:
        """Of a step of `batch` examples."""
        alone = self.overhead + self.work * batch / cores
        return alone * self._slowdown(growth) + self.all_reduce * growth.all_reduce

    def _slowdown(self, growth: Growth) -> float:
        return (1 + self.sharing * growth.sharing) * (1 + self.waiting * growth.waiting)

    def least_batch(self, cores: int, growth: Growth) -> int | None:
        """The smallest batch of which a step takes at most 2/cores of its time on one core; None if there is none."""
        slowdown = self._slowdown(growth)
        if slowdown >= 2:
            return None
        empty = self.overhead * slowdown + self.all_reduce * growth.all_reduce  # seconds without examples
        return max(1, math.ceil((cores * empty - 2 * self.overhead) / (self.work * (2 - slowdown))))


def fitted(medians: dict[tuple[str, int], float]) -> Step:
    """The model of measured steps: seconds by kind and examples of a device.

    Overhead and work, which are not negative, have the least squares of relative errors to the steps of a core alone.
    So do waiting and the all-reduce, to the steps of two devices. Sharing is the median over the batch sizes.
    """
    batches = np.array(sorted({batch for _, batch in medians}), float)
    alone, beside, shared = (np.array([medians[kind, int(batch)] for batch in batches]) for kind in KINDS)

    def line(x: np.ndarray, y: np.ndarray, scale: np.ndarray) -> tuple[float, float]:
        """(a, b), not negative, of y = a + b x."""
        a, b = nnls(np.stack([np.ones_like(x), x], axis=1) / scale[:, None], y / scale)[0]
        return float(a), float(b)

    overhead, work = line(batches, alone, alone)
    all_reduce, waiting = line(beside, np.maximum(shared - beside, 0), shared)
    return Step(overhead, work, max(0.0, float(np.median(beside / alone - 1))), waiting, all_reduce)


def largest_error(step: Step, medians: dict[tuple[str, int], float]) -> float:
    """The largest relative difference of the model from a measured step."""
    of_kinds = {"alone": (1, Growth(0, 0, 0)), "beside another": (1, Growth(1, 0, 0)), "shared": (2, Growth(1, 1, 1))}

    def seconds(kind: str, batch: int) -> float:
        cores, growth = of_kinds[kind]
        return step.seconds(cores, cores * batch, growth)

    return max(abs(seconds(*key) / measured - 1) for key, measured in medians.items())


def main() -> None:
    """Measures, and prints and writes the results."""
    arguments = tyro.cli(Arguments, prog="scaling.py")
    cores = check(arguments)
    machine = environment.describe()
    if machine["busy"] > environment.MAX_BUSY:
        busy = f"{machine['busy']:.0%} of the cores are in use by other programs"
        print(f"{busy}: the estimates will be wrong.", file=sys.stderr)
    measured = measure(arguments, cores)
    medians = {key: float(np.median(values)) for key, values in measured.items()}
    step = fitted(medians)
    if step.work == 0:
        sys.exit("scaling.py: steps of more examples took no longer. The machine is too busy to measure anything.")
    print(
        f"{machine['processor']}, vectors of {machine['vector_bits']} bits, {machine['busy']:.0%} of the cores in use "
        f"by other programs at the start.\nA step: medians of {arguments.rounds} rounds (minimum to maximum).\n\n"
        f"{table_of_steps(measured)}\n"
        f"The model: {1e3 * step.overhead:.2f} ms and {1e6 * step.work:.1f} µs an example; {step.sharing:.0%} longer "
        f"while another core is busy; {step.waiting:.0%} longer where two devices wait for each other; "
        f"{1e3 * step.all_reduce:.2f} ms for their all-reduce.\n"
        f"It differs from a measured step by {largest_error(step, medians):.0%} at most.\n\n"
        f"An epoch of MNIST, estimated, in seconds:\n\n{table_of_epochs(step)}"
    )
    found = {
        "machine": machine,
        "preset": arguments.preset,
        "steps": [{"kind": kind, "batch": batch, "seconds": values} for (kind, batch), values in measured.items()],
        "model": vars(step),
        "largest_error": largest_error(step, medians),
        "epochs": [{"batch": batch, "cores": count, "seconds": epoch(step, count, batch)}
                   for batch in TOTAL_BATCHES for count in CORES],
    }  # fmt: skip
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"written: {arguments.output}")


def check(arguments: Arguments) -> list[int]:
    """The two cores to measure on. Ends the program where an argument or the machine is wrong."""
    from lstm_mnist_jax import PRESETS

    if arguments.preset not in PRESETS:
        refuse(f"unknown preset {arguments.preset!r}; expected one of {', '.join(PRESETS)}.")
    if arguments.rounds < 1 or arguments.seconds <= 0:
        refuse("--rounds and --seconds must be positive.")
    if len({*arguments.batches}) < 2 or min(arguments.batches) < 1:
        refuse(f"--batches are {arguments.batches}; expected two or more different sizes of 1 or more.")
    if not arguments.output.parent.is_dir():
        refuse(f"the folder of --output {arguments.output} does not exist.")
    cores = physical_cores() if sys.platform == "linux" else []
    if len(cores) < 2:
        refuse(f"two physical cores and Linux are needed; this process may use {len(cores)} on {sys.platform}.")
    return cores[:2]


def refuse(reason: str) -> None:
    """Ends the program: the command line, or the machine, is wrong."""
    print(f"scaling.py: {reason}", file=sys.stderr)
    sys.exit(2)


def physical_cores() -> list[int]:
    """One logical processor of each physical core that this process may use."""
    found: dict[str, int] = {}
    for number in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        found.setdefault(siblings.read_text() if siblings.exists() else str(number), number)
    return list(found.values())


def measure(arguments: Arguments, cores: list[int]) -> dict[tuple[str, int], list[float]]:
    """Seconds of a step by kind and examples of a device, of each round."""
    found = {(kind, batch): list[float]() for batch in sorted({*arguments.batches}) for kind in KINDS}
    with ExitStack() as stack:
        one, other, both = (
            stack.enter_context(process(arguments, bound)) for bound in (cores[:1], cores[1:], cores)
        )  # fmt: skip
        processes = dict(zip(KINDS, ([one], [one, other], [both]), strict=True))
        for turn in range(arguments.rounds):
            for kind, batch in found:
                time.sleep(SETTLE_SECONDS)
                for connection in processes[kind]:
                    connection.send(batch)
                found[kind, batch].append(float(np.mean([answer(connection) for connection in processes[kind]])))
            print(f"round {turn + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    return found


@contextmanager
def process(arguments: Arguments, cores: list[int]) -> Iterator[Any]:
    """The connection to a process with a device on each of some cores, once it is ready."""
    # JAX reads them when it is imported, which is before `serve` begins. All of JAX's devices compute.
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(len(cores))}
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    child = context.Process(target=serve, args=(arguments, cores, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        answer(connection)
        yield connection
    finally:
        child.kill()
        child.join()


def answer(connection: Any) -> Any:
    """What a process sends. Ends the program where it sends nothing."""
    try:
        if connection.poll(TIMEOUT):
            return connection.recv()
    except EOFError:
        sys.exit("scaling.py: a process that measures has ended; the reason is above.")
    sys.exit(f"scaling.py: a process that measures has not answered within {TIMEOUT:.0f} seconds.")


def serve(arguments: Arguments, cores: list[int], connection: Any) -> None:
    """The process: for each number of examples of a device that it receives, sends the seconds of a step."""
    os.sched_setaffinity(0, cores)  # the threads of JAX, which has not started, inherit it
    import jax

    from lstm_mnist_jax import PRESETS, Execution, load
    from lstm_mnist_jax.training import make_program
    from lstm_mnist_jax.training.mesh import make_mesh

    preset = PRESETS[arguments.preset]
    dataset = load(**vars(preset.data))
    programs, states = {}, {}
    for batch in {*arguments.batches}:
        config = replace(preset, batch_size=batch * len(cores))
        programs[batch] = make_program([config], dataset, make_mesh(Execution(devices=len(cores)), config.batch_size))
        states[batch] = programs[batch].run_steps(programs[batch].init(), 1)  # compiles

    def run(batch: int, steps: int) -> float:
        began = time.perf_counter()
        states[batch] = jax.block_until_ready(programs[batch].run_steps(states[batch], steps))
        return time.perf_counter() - began

    # Calls of so many steps: long beside the call itself, short beside a turn.
    steps = {batch: max(1, round(arguments.seconds / 10 / (run(batch, 10) / 10))) for batch in states}
    connection.send("ready")
    while True:
        batch, seconds, done = connection.recv(), 0.0, 0
        while seconds < arguments.seconds:
            seconds += run(batch, steps[batch])
            done += steps[batch]
        connection.send(seconds / done)


def epoch(step: Step, cores: int, batch: int) -> tuple[float, float]:
    """Seconds of an epoch of MNIST, at least and at most."""
    least, most = (step.seconds(cores, batch, growth(cores)) for growth in (Growth.least, Growth.most))
    return TRAINING_SET / batch * least, TRAINING_SET / batch * most


def table_of_steps(measured: dict[tuple[str, int], list[float]]) -> str:
    """What was measured, in Markdown."""
    rows = []
    for batch in dict.fromkeys(batch for _, batch in measured):
        times = [[1e3 * value for value in measured[kind, batch]] for kind in KINDS]
        rows.append([str(batch), *(f"{np.median(own):.2f} ({min(own):.2f} to {max(own):.2f})" for own in times)])
    return _table(["examples a device", *(f"{kind}, ms" for kind in KINDS)], rows)


def table_of_epochs(step: Step) -> str:
    """The estimates, in Markdown."""
    rows = [[str(batch), *(_range(*(f"{end:.2f}" for end in epoch(step, cores, batch))) for cores in CORES)]
            for batch in TOTAL_BATCHES]  # fmt: skip
    ends = [[step.least_batch(cores, growth(cores)) or "none" for growth in (Growth.least, Growth.most)]
            for cores in CORES]  # fmt: skip
    rows.append(["batch for half of the speed-up", *(_range(*map(str, pair)) for pair in ends)])
    return _table(["batch", *(f"{cores} core{'s' * (cores > 1)}" for cores in CORES)], rows)


def _range(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in [heads, ["---"] * len(heads), *rows])


if __name__ == "__main__":
    main()
