"""The parts of the benchmark: their work, libraries and sizes.

A part adds to its result as it goes, so Ctrl-C keeps the results so far.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import psutil

from benchmarks import start as starts
from benchmarks.rounds import Report, Result, Workers, compare, summary
from benchmarks.work import Epoch, Inference, Layer, Product, Start, Work
from benchmarks.worker import LibraryError, Worker


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
      epoch: the epoch, without its start.
      grid: the layers.
      latency_calls: single images a round.
      memory: the layer whose memory is measured.
      compiled: the layer whose compilation is timed.
      products: sizes of the matrices that find the machine's peak.
      preset: whose start is timed.
    """

    epoch: Epoch
    grid: tuple[Layer, ...]
    latency_calls: int
    memory: Layer
    compiled: Layer
    products: tuple[int, ...]
    preset: str = "tutorial"


def _grid(hidden: tuple[int, ...], batch: tuple[int, ...], time: tuple[int, ...], **kind: Any) -> tuple[Layer, ...]:
    sizes = product((False, True), time, hidden, batch)
    return tuple(Layer(t, b, h, backward, **kind) for backward, t, h, b in sizes)


QUICK = Size(
    epoch=Epoch(),
    grid=_grid((32, 128), (1, 64), (28,))
    + _grid((128,), (64,), (784,))
    + _grid((128,), (1, 64), (28,), cell="gru")
    + _grid((128,), (64,), (28, 784), ragged=True),
    latency_calls=1000,
    memory=Layer(784, 128, 128, True),
    compiled=Layer(28, 64, 128, True),
    products=(1024, 2048),
)

SIZES = {
    "tiny": Size(
        epoch=Epoch(steps=12, batch_size=16, hidden_features=(6, 8)),
        grid=_grid((8,), (1, 4), (5,)),
        latency_calls=20,
        memory=Layer(64, 8, 16, True),
        compiled=Layer(5, 2, 8, True),
        products=(128,),
        preset="smoke",
    ),
    "quick": QUICK,
    "full": replace(
        QUICK,
        grid=_grid((32, 64, 128, 256, 512), (1, 32, 64, 256), (28, 784))
        + _grid((32, 128, 512), (1, 32, 256), (28, 784), cell="gru")
        + _grid((128,), (64,), (28, 784), ragged=True)
        + _grid((128,), (64,), (28, 784), cell="gru", ragged=True),
        products=(1024, 2048, 4096),
    ),
}


@dataclass
class Run:
    """What the parts share.

    Attributes:
      size, rounds: how much, how often.
      wanted: the libraries from the command line; None is the default of each part.
      platform: where JAX computes: cpu, gpu or tpu.
      start: what all libraries start an epoch from.
      show: prints a line of progress.
      could_not_run: a line for everything that was not measured.
    """

    size: Size
    rounds: int
    wanted: tuple[str, ...] | None
    platform: str
    start: Start
    show: Callable[[str], None]
    could_not_run: list[dict[str, str]] = field(default_factory=list)

    @property
    def epoch(self) -> Epoch:
        return replace(self.size.epoch, start=self.start)

    def reporter(self, what: str) -> Report:
        """The function that records why a library could not do `what`, once for each library and reason."""

        def report(library: str, why: str) -> None:
            if not any((line["library"], line["why"]) == (library, why) for line in self.could_not_run):
                self.could_not_run.append({"what": what, "library": library, "why": why})
                self.show(f"{what}: could not run {library}, because {why}")

        return report

    def compare(self, what: str, work: Work, libraries: tuple[str, ...], repeats: int | None = None) -> Result:
        """Compares libraries at one work, each in a fresh process."""
        self.show(what)
        with Workers(self.platform) as workers:
            return compare(workers, work, self.wanted or libraries, self.rounds, self.reporter(what), repeats)

    def in_fresh_processes(self, what: str, libraries: tuple[str, ...], rounds: int, *request: Any) -> Result:
        """The answers of each library, one a round, each from a new process."""
        self.show(what)
        values: dict[str, list[float]] = {library: [] for library in self.wanted or libraries}
        for _, library in product(range(rounds), list(values)):
            if library in values:
                try:
                    with Worker(library, self.platform) as worker:
                        values[library].append(worker.call(*request))
                except LibraryError as error:
                    self.reporter(what)(library, str(error))
                    del values[library]
        return {library: summary(found) for library, found in values.items()}


def peak(run: Run, result: Result) -> None:
    """The best rate of a float32 matrix product over the libraries."""
    wanted = run.wanted or ("ours", "torch")
    libraries = ("numpy", *(library for library in ("ours", "torch") if library in wanted))
    best = replace(run, wanted=libraries, rounds=min(run.rounds, 5))  # the best, unlike the median, needs few rounds
    rates = [(0.0, "")]
    for size in run.size.products:
        work = Product(size)
        for library, facts in best.compare(f"the machine's peak, {size} x {size}", work, libraries).items():
            rates.append((work.flops / facts["min"], f"{facts['setting'] or library}, {size} x {size}"))
    result["flops_per_second"], result["by"] = max(rates)


def epoch(run: Run, result: Result) -> None:
    """A whole epoch of the tutorial."""
    work = run.epoch
    libraries = ("ours", "flax", "torch", "torch-compile", "keras-jax", "keras-torch", "keras-tensorflow", "tf1")
    found = run.compare("epoch", work, libraries, 1)
    result |= {"steps": work.steps, "batch_size": work.batch_size, "flops": work.flops, "libraries": found}


def layers(run: Run, result: Result) -> None:
    """One layer at many sizes, forward and forward+backward."""
    libraries = run.wanted or ("ours", "flax", "torch", *(("cudnn",) if run.platform == "gpu" else ()))
    points: list[Result] = []
    result |= {"points": points}
    with Workers(run.platform) as workers:
        for number, work in enumerate(run.size.grid, 1):
            run.show(f"{work} ({number}/{len(run.size.grid)})")
            if not _too_large(run, work, len(libraries)):
                found = compare(workers, work, libraries, run.rounds, run.reporter(str(work)))
                points.append({**asdict(work), "libraries": found})
                result["ours_against"] = wins(points)


def wins(points: list[Result]) -> Result:
    """In how many points ours is at least as fast as each of the others."""
    counts: Result = {}
    for point in points:
        medians = {name: facts["median"] for name, facts in point["libraries"].items()}
        for name in medians.keys() - {"ours"} if "ours" in medians else ():
            count = counts.setdefault(name, {"points": 0, "at_least_as_fast": 0})
            count["points"] += 1
            count["at_least_as_fast"] += medians["ours"] <= medians[name]
    return counts


def inference(run: Run, result: Result) -> None:
    """Single images, and the 10,000 of the test set."""
    libraries = ("ours", "flax", "torch")
    result["single"] = run.compare("single images", Inference(1, run.start), libraries, run.size.latency_calls)
    result["batched"] = run.compare("10,000 images", Inference(10_000, run.start), libraries)


def memory(run: Run, result: Result) -> None:
    """Peak memory of forward+backward, in bytes."""
    work = run.size.memory
    result |= {"layer": asdict(work), "libraries": {}}
    if run.platform != "cpu":
        run.reporter("memory")("any library", "the memory of processes is measured, not that of accelerators")
    elif not _too_large(run, work, 1):
        small, rounds = replace(work, time=4, batch=2), min(3, run.rounds)  # the peak hardly varies
        what = f"memory of {work}"
        result["libraries"] = run.in_fresh_processes(what, ("ours", "flax", "torch"), rounds, "memory", work, small)


def compile_(run: Run, result: Result) -> None:
    """Tracing, lowering and compiling, without a cache, in seconds."""
    for name, work in (("epoch", run.epoch), ("layer", run.size.compiled)):
        result[name] = run.in_fresh_processes(
            f"compilation of the {name}", ("ours", "flax"), run.rounds, "compile", work
        )


def start(run: Run, result: Result) -> None:
    """Programs in fresh processes, in seconds from the shell; in every round the caches are emptied once."""
    values: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        programs = starts.programs(Path(folder), run.size.preset)
        for number in range(run.rounds + 1):  # the first round, which brings files into memory, does not count
            for name, seconds in programs.items():
                run.show(f"{name} ({number}/{run.rounds})")
                try:
                    values.setdefault(name, []).append(seconds())
                except starts.StartError as error:
                    run.reporter("start")(name, str(error))
    result |= {name: summary(found[1:]) for name, found in values.items() if len(found) > 1}


PARTS: dict[str, Callable[[Run, Result], None]] = {
    "epoch": epoch,
    "layers": layers,
    "inference": inference,
    "memory": memory,
    "compile": compile_,
    "start": start,
}


def _too_large(run: Run, work: Layer, processes: int) -> bool:
    """Whether the work may not fit into the machine's memory; then it is reported. Workers keep their inputs."""
    needed = work.bytes + processes * 2 * 4 * work.time * work.batch * work.hidden
    available = psutil.virtual_memory().available
    if run.platform != "cpu" or needed < available:
        return False
    why = f"it may take {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free"
    run.reporter(str(work))("any library", why)
    return True
