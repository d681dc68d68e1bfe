"""Alternating rounds: all peers take turns at the same work, so that whatever the machine does meanwhile hits all.

Before anything is timed, the peers must give the same numbers.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from lstm_mnist_jax.benchmark.process import PeerError, Worker
from lstm_mnist_jax.benchmark.work import Work, to_json

TOLERANCE = 1e-4
"""How far the peers' losses and norms of gradients may be apart, relative to the reference's."""

ROUND_SECONDS = 0.3
"""A round repeats short work for about so long."""

SETTLE_SECONDS = 0.1
"""A pause before each turn, in which the other workers' threads fall asleep."""

Result = dict[str, Any]
Report = Callable[[str, str], None]
"""Takes a peer and why it was not timed."""


class Entry(NamedTuple):
    """One column of a comparison: a label, the peer, and its work."""

    label: str
    peer: str
    work: Work


class Workers:
    """The workers of one part, started when they are first wanted, anew after a crash. A context manager."""

    def __init__(self, platform: str) -> None:
        self._platform = platform
        self._workers: dict[str, Worker] = {}
        self._missing: dict[str, str] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def get(self, label: str, peer: str) -> Worker:
        """The worker of a label.

        Raises:
          PeerError: the peer cannot be imported.
        """
        if label in self._missing:
            raise PeerError(self._missing[label])
        worker = self._workers.get(label)
        if worker is None or not worker.alive:
            worker = self._workers[label] = self._stack.enter_context(Worker(peer, self._platform))
            try:
                worker.call("hello")
            except PeerError as error:
                worker.close()
                self._missing[label] = str(error)
                raise
        return worker

    def idle_seconds(self, busy: str) -> float:
        """CPU time used so far by all workers but one."""
        return sum((worker.cpu_seconds() for label, worker in self._workers.items() if label != busy), 0.0)


def compare(
    workers: Workers, entries: Iterable[Entry], rounds: int, report: Report, repeats: int | None = None
) -> Result:
    """Times entries in alternating rounds.

    Args:
      workers: where they run.
      entries: what is compared; the first one that works is the reference of the check.
      rounds: how often each has its turn.
      report: is told of every entry that could not be timed.
      repeats: calls a round; None takes as many as `ROUND_SECONDS` need.

    Returns:
      By label: the setting, what compiling took, and seconds a call: `median`, `min`, `max` over the rounds, and
      `rounds`. With `repeats` above 1 also `p50` and `p99` of single calls, each the median over the rounds. The
      rounds of an entry that fails between two of them are lost.
    """
    loaded: dict[str, tuple[Entry, Result]] = {}
    for entry in entries:
        try:
            facts = workers.get(entry.label, entry.peer).call("load", work=to_json(entry.work))
        except PeerError as error:
            report(entry.label, str(error))
            continue
        reference = next(iter(loaded.values()), None)
        if reference and (why := differs(reference[1]["check"], facts["check"])):
            report(entry.label, f"its results differ from those of {reference[0].label}: {why}")
        else:
            loaded[entry.label] = entry, facts

    seconds: dict[str, list[list[float]]] = {label: [] for label in loaded}
    idle = busy = 0.0
    for number in range(rounds):
        labels = list(loaded)
        for label in labels[number % len(labels) :] + labels[: number % len(labels)] if labels else []:
            entry, facts = loaded[label]
            calls = repeats or max(1, min(10_000, math.ceil(ROUND_SECONDS / max(facts["call_seconds"], 1e-6))))
            time.sleep(SETTLE_SECONDS)
            before, began = workers.idle_seconds(label), time.perf_counter()
            try:
                worker = workers.get(label, entry.peer)
                # On a busy machine a call can take a hundred times as long as when it was tried.
                most_seconds = 3 * ROUND_SECONDS if repeats is None else 60.0
                answer = worker.call("round", repeats=calls, most_seconds=most_seconds)
                seconds[label].append(answer["seconds"])
            except PeerError as error:
                report(label, str(error))
                del loaded[label]
            busy += time.perf_counter() - began
            idle += workers.idle_seconds(label) - before
    return {
        "peers": {
            label: {
                **{name: facts[name] for name in ("setting", "tried", "ready_seconds", "compile_seconds", "check")},
                **summary([statistics.fmean(calls) for calls in seconds[label]]),
                **(_percentiles(seconds[label]) if repeats and repeats > 1 else {}),
            }
            for label, (_, facts) in loaded.items()
        },
        "idle_workers_cpu_share": idle / busy if busy else 0.0,
    }


def differs(reference: list[float], values: list[float]) -> str:
    """Where two lists of numbers, as far as both go, are further apart than `TOLERANCE`; empty where nowhere."""
    for number, (expected, value) in enumerate(zip(reference, values, strict=False), 1):
        if not abs(value - expected) <= TOLERANCE * abs(expected):  # nor is NaN
            return f"number {number} of {len(values)} is {value:.7g}, expected {expected:.7g}"
    return ""


def summary(values: list[float]) -> Result:
    """The median of values and their spread."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}


def _percentiles(rounds: list[list[float]]) -> Mapping[str, float]:
    cuts = [statistics.quantiles(calls, n=100, method="inclusive") for calls in rounds]
    return {name: statistics.median(cut[place - 1] for cut in cuts) for name, place in (("p50", 50), ("p99", 99))}
