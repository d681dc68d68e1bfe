"""The parts of the benchmark: what is compared in each, by whom, at which sizes.

A part fills its result as it goes, so that what was measured before Ctrl-C is there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import psutil

from lstm_mnist_jax.benchmark.process import PeerError, Worker
from lstm_mnist_jax.benchmark.rounds import Entry, Report, Result, Workers, compare, summary
from lstm_mnist_jax.benchmark.work import Epoch, Inference, Layer, Product, Work, to_json


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
      epoch: the epoch, without its prepared file.
      grid: the layers.
      latency_calls: single images a round.
      memory: layers whose memory is measured; the first is the one that is compared.
      compiled: the layer whose compilation is timed.
      products: sizes of the matrices that find the machine's peak.
    """

    epoch: Epoch
    grid: tuple[Layer, ...]
    latency_calls: int
    memory: tuple[Layer, ...]
    compiled: Layer
    products: tuple[int, ...]


def _grid(hidden: tuple[int, ...], batch: tuple[int, ...], time: tuple[int, ...]) -> tuple[Layer, ...]:
    return tuple(Layer(t, b, h, backward) for backward, t, h, b in product((False, True), time, hidden, batch))


_MEMORY = Layer(784, 128, 128, True)

SIZES = {
    "tiny": Size(
        epoch=Epoch(steps=12, batch_size=16, hidden_features=(6, 8)),
        grid=_grid((8,), (1, 4), (5,)),
        latency_calls=20,
        memory=(Layer(64, 8, 16, True), Layer(32, 8, 16, True), Layer(64, 4, 16, True)),
        compiled=Layer(5, 2, 8, True),
        products=(128,),
    ),
    "quick": Size(
        epoch=Epoch(),
        grid=_grid((32, 128), (1, 64), (28,)) + _grid((128,), (64,), (784,)),
        latency_calls=1000,
        memory=(_MEMORY, replace(_MEMORY, time=196), replace(_MEMORY, batch=32)),
        compiled=Layer(28, 64, 128, True),
        products=(1024, 2048),
    ),
    "full": Size(
        epoch=Epoch(),
        grid=_grid((32, 64, 128, 256, 512), (1, 32, 64, 256), (28, 784)),
        latency_calls=1000,
        memory=(_MEMORY, *(replace(_MEMORY, time=time) for time in (98, 196, 392, 1568)),
                *(replace(_MEMORY, batch=batch) for batch in (16, 32, 64, 256))),
        compiled=Layer(28, 64, 128, True),
        products=(1024, 2048, 4096),
    ),
}  # fmt: skip


@dataclass
class Run:
    """What the parts share.

    Attributes:
      size, rounds: how much, how often.
      wanted: the peers that were asked for; None is those that a part has by default.
      platform: where JAX computes: cpu, gpu or tpu.
      prepared: the file for `prepared.write`.
      tell: says what is going on.
      could_not_run: grows by a line for all that was not measured.
    """

    size: Size
    rounds: int
    wanted: tuple[str, ...] | None
    platform: str
    prepared: str
    tell: Callable[[str], None]
    could_not_run: list[dict[str, str]] = field(default_factory=list)

    def peers(self, *default: str) -> tuple[str, ...]:
        return self.wanted or default

    def report(self, what: str) -> Report:
        """The function that takes down who could not do `what`, and why."""

        def report(peer: str, why: str) -> None:
            self.could_not_run.append({"what": what, "peer": peer, "why": why})
            self.tell(f"{what}: could not run {peer}, because {why}")

        return report

    @property
    def epoch(self) -> Epoch:
        return replace(self.size.epoch, prepared=self.prepared)

    def compare(self, what: str, work: Work, peers: tuple[str, ...], repeats: int | None = None) -> Result:
        """Compares peers at one work, each in a fresh process."""
        self.tell(what)
        with Workers(self.platform) as workers:
            entries = [Entry(peer, peer, work) for peer in peers]
            return compare(workers, entries, self.rounds, self.report(what), repeats)


def peak(run: Run, result: Result) -> None:
    """The best rate of a float32 matrix product, by whichever library."""
    peers = tuple(peer for peer in ("numpy", "ours", "torch") if peer in ("numpy", *run.peers("ours", "torch")))
    best = (0.0, "")
    for size in run.size.products:
        work = Product(size)
        # The best is wanted, not the median: a few rounds find it, however many are asked for.
        compared = replace(run, rounds=min(run.rounds, 5)).compare(f"the machine's peak, {size} x {size}", work, peers)
        for name, peer in compared["peers"].items():
            setting = ", ".join(filter(None, (name.replace("ours", "jax"), peer["setting"].replace("JAX", ""))))
            best = max(best, (work.flops / peer["min"], f"{setting}, {size} x {size}"))
    result |= {"flops_per_second": best[0], "by": best[1]}


def epoch(run: Run, result: Result) -> None:
    """A whole epoch of the tutorial."""
    work = run.epoch
    everybody = ("ours", "flax", "torch", "torch-compile", "keras-jax", "keras-torch", "keras-tensorflow", "tf1")
    compared = run.compare("epoch", work, run.peers(*everybody), 1)
    result |= {"steps": work.steps, "batch_size": work.batch_size, "flops": work.flops, **compared}


def layers(run: Run, result: Result) -> None:
    """One layer at many sizes, forward and forward+backward."""
    peers = run.peers("ours", "flax", "torch", *(("cudnn",) if run.platform == "gpu" else ()))
    points: list[Result] = []
    result |= {"points": points}
    with Workers(run.platform) as workers:
        for number, work in enumerate(run.size.grid, 1):
            what = f"layer {_name(work)}"
            run.tell(f"{what} ({number}/{len(run.size.grid)})")
            if _too_large(run, work, what, len(peers)):
                continue
            entries = [Entry(peer, peer, work) for peer in peers]
            points.append({**to_json(work), **compare(workers, entries, run.rounds, _once(run, what))})
            result |= summarize_layers(points)


def summarize_layers(points: list[Result]) -> Result:
    """In how many points ours is at least as fast as each of the others."""
    counts: dict[str, dict[str, int]] = {}
    for point in points:
        medians = {name: peer["median"] for name, peer in point["peers"].items()}
        for name in medians.keys() - {"ours"} if "ours" in medians else ():
            count = counts.setdefault(name, {"points": 0, "at_least_as_fast": 0})
            count["points"] += 1
            count["at_least_as_fast"] += medians["ours"] <= medians[name]
    return {"ours_against": counts}


def inference(run: Run, result: Result) -> None:
    """Single images, and the 10,000 of the test set."""
    peers = run.peers("ours", "flax", "torch")
    result["single"] = run.compare("single images", Inference(1, run.prepared), peers, run.size.latency_calls)
    result["batched"] = run.compare("10,000 images", Inference(10_000, run.prepared), peers)


def memory(run: Run, result: Result) -> None:
    """Peak memory and time of forward+backward, each measurement in a fresh process."""
    points: list[Result] = []
    result |= {"points": points}
    if run.platform != "cpu":
        run.report("memory")("everybody", "only the memory of processes is measured, and not that of accelerators")
        return
    for work in run.size.memory:
        what = f"memory of layer {_name(work)}"
        run.tell(what)
        peers = run.peers("ours", "flax", "torch")
        if _too_large(run, work, what, 1):
            continue
        found: Result = {}
        for peer in peers:
            small, values = to_json(replace(work, time=4, batch=2)), []
            try:
                for _ in range(min(3, run.rounds)):  # the peak hardly varies
                    with Worker(peer, run.platform) as worker:
                        worker.call("hello")
                        values.append(worker.call("memory", work=to_json(work), small=small))
            except PeerError as error:
                run.report(what)(peer, str(error))
                continue
            found[peer] = {
                **summary([value["bytes"] for value in values]),
                "seconds": min(value["seconds"] for value in values),
                "note": values[0]["note"],
            }
        points.append({**to_json(work), "peers": found})
    result["linear_in"] = {axis: _fits(points, axis) for axis in ("time", "batch")}


def _fits(points: list[Result], axis: str) -> Result:
    """How well a straight line fits bytes and seconds along an axis, through the points that differ in it alone."""
    other = "batch" if axis == "time" else "time"
    line = [point for point in points if point[other] == points[0][other]]
    fits: Result = {}
    for peer in {name for point in line for name in point["peers"]}:
        here = [point for point in line if peer in point["peers"]]
        x = np.array([point[axis] for point in here], float)
        if len(x) < 3:
            continue
        for quantity, key in (("bytes", "median"), ("seconds", "seconds")):
            y = np.array([point["peers"][peer][key] for point in here], float)
            slope, start = np.polyfit(x, y, 1)
            residual = np.abs(slope * x + start - y).max() / y.max()
            fits.setdefault(peer, {})[quantity] = {
                "slope": slope, "start": start, "largest_residual_of_largest": residual, "points": len(x),
            }  # fmt: skip
    return fits


def compile_(run: Run, result: Result) -> None:
    """Tracing, lowering and compiling, in a fresh process every time and without a cache."""
    for name, work in (("epoch", run.epoch), ("layer", run.size.compiled)):
        what = f"compilation of the {name}"
        run.tell(what)
        seconds: dict[str, list[float]] = {peer: [] for peer in run.peers("ours", "flax")}
        for _ in range(run.rounds):
            for peer in list(seconds):
                try:
                    with Worker(peer, run.platform) as worker:
                        worker.call("hello")
                        seconds[peer].append(worker.call("compile", work=to_json(work))["compile_seconds"])
                except PeerError as error:
                    run.report(what)(peer, str(error))
                    del seconds[peer]
        result[name] = {**to_json(work), "peers": {peer: summary(values) for peer, values in seconds.items()}}


def loop(run: Run, result: Result) -> None:
    """What the epoch's compiled loop adds to its steps.

    The steps alone are forward pass, backward pass, the mean over the devices and Adam on one batch that is
    already in place, as often as the epoch has steps. The epoch adds shuffling, gathering and converting each
    batch, sums for the metrics, and the loop. Beside it stands the same epoch with one call a step.
    """
    run.tell("the epoch's loop")
    entries = [
        Entry(name, "ours", replace(run.epoch, form=form))  # type: ignore[arg-type]
        for name, form in (("epoch", "loop"), ("steps alone", "bare"), ("one call a step", "calls"))
    ]
    with Workers(run.platform) as workers:
        result |= compare(workers, entries, run.rounds, run.report("loop"), 1)
    medians = {name: peer["median"] for name, peer in result["peers"].items()}
    if {"epoch", "steps alone"} <= medians.keys():
        result["added_to_steps"] = medians["epoch"] / medians["steps alone"] - 1


PARTS: dict[str, Callable[[Run, Result], None]] = {
    "epoch": epoch,
    "layers": layers,
    "inference": inference,
    "memory": memory,
    "compile": compile_,
    "loop": loop,
}


def _name(work: Layer) -> str:
    return f"H={work.hidden} B={work.batch} T={work.time} {'forward+backward' if work.backward else 'forward'}"


def _too_large(run: Run, work: Layer, what: str, processes: int) -> bool:
    """Whether the work may not fit into the machine's memory; then it is reported. Workers keep their inputs."""
    inputs = 4 * work.time * work.batch * work.hidden
    needed, available = work.bytes + processes * 2 * inputs, psutil.virtual_memory().available
    if run.platform != "cpu" or needed < available:
        return False
    run.report(what)("everybody", f"it may take {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free")
    return True


def _once(run: Run, what: str) -> Report:
    """Reports a peer that is missing at its first layer alone, not at every one of the grid."""

    def report(peer: str, why: str) -> None:
        layers = [line for line in run.could_not_run if line["what"].startswith("layer ")]
        if not any((line["peer"], line["why"]) == (peer, why) for line in layers):
            run.report(what)(peer, why)

    return report
