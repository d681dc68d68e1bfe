"""Alternating rounds: all libraries take turns at the same work, so that other load on the machine affects all.

Before anything is timed, the libraries must compute the same numbers.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.work import Work
from benchmarks.worker import LibraryError, Worker

TOLERANCE = 1e-4
"""The largest relative difference of losses and norms of gradients from the reference's."""

ROUND_SECONDS = 0.3
"""A round repeats short work for about so long."""

SETTLE_SECONDS = 0.1
"""A pause before each turn, in which the other libraries' threads fall asleep."""

Result = dict[str, Any]
Report = Callable[[str, str], None]
"""Takes a library and why it was not timed."""


class Workers:
    """A worker for each library, started when it is first asked for, anew after a crash. A context manager."""

    def __init__(self, platform: str) -> None:
        self._platform = platform
        self._workers: dict[str, Worker] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __getitem__(self, library: str) -> Worker:
        if library not in self._workers or not self._workers[library].alive:
            self._workers[library] = self._stack.enter_context(Worker(library, self._platform))
        return self._workers[library]


def compare(
    workers: Workers, work: Work, libraries: Sequence[str], rounds: int, report: Report, repeats: int | None = None
) -> Result:
    """Times libraries at one work in alternating rounds.

    Args:
      workers: where they run.
      work: what is timed.
      libraries: what is compared; the first one that works is the reference of the check.
      rounds: how many turns each has.
      report: is called for every library that could not be timed.
      repeats: calls a round; None takes as many as `ROUND_SECONDS` need.

    Returns:
      By library: its setting, ready and compile time, and seconds a call: `median`, `min`, `max` over the rounds, and
      `rounds`. With `repeats` above 1 also `p50` and `p99` of single calls, each the median over the rounds. A
      library that fails between two rounds is left out.
    """
    loaded: dict[str, Result] = {}
    for library in libraries:
        try:
            facts = workers[library].call("load", work)
        except LibraryError as error:
            report(library, str(error))
            continue
        reference = next(iter(loaded), library)
        if why := differs(loaded.get(reference, facts)["check"], facts["check"]):
            report(library, f"its results differ from those of {reference}: {why}")
        else:
            loaded[library] = facts | {"seconds": []}

    for number in range(rounds):
        turns = list(loaded)
        first = number % max(1, len(turns))
        for library in turns[first:] + turns[:first]:
            facts = loaded[library]
            calls = repeats or max(1, min(10_000, math.ceil(ROUND_SECONDS / max(facts["call_seconds"], 1e-6))))
            time.sleep(SETTLE_SECONDS)
            try:  # under other load a call can take a hundred times as long as when it was tried
                seconds = workers[library].call("round", calls, 60.0 if repeats else 3 * ROUND_SECONDS)
                facts["seconds"].append(seconds)
            except LibraryError as error:
                report(library, str(error))
                del loaded[library]
    for facts in loaded.values():
        seconds = facts.pop("seconds")
        facts |= summary([statistics.fmean(calls) for calls in seconds])
        if repeats and repeats > 1:
            cuts = [statistics.quantiles(calls, n=100, method="inclusive") for calls in seconds]
            facts |= {f"p{place}": statistics.median(cut[place - 1] for cut in cuts) for place in (50, 99)}
    return loaded


def differs(reference: list[float], values: list[float]) -> str:
    """Where two lists of numbers, as far as both go, are further apart than `TOLERANCE`; empty where nowhere."""
    for number, (expected, value) in enumerate(zip(reference, values, strict=False), 1):
        if not abs(value - expected) <= TOLERANCE * abs(expected):  # nor is NaN
            return f"number {number} of {len(values)} is {value:.7g}, expected {expected:.7g}"
    return ""


def summary(values: list[float]) -> Result:
    """The median of values and their spread."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}
