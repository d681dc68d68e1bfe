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
    """A worker for each library and number of a setting, started when it is first asked for, anew after a crash. A
    context manager."""

    def __init__(self, platform: str) -> None:
        self._platform = platform
        self._workers: dict[tuple[str, int], Worker] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __getitem__(self, key: tuple[str, int]) -> Worker:
        if key not in self._workers or not self._workers[key].alive:
            self._workers[key] = self._stack.enter_context(Worker(key[0], self._platform))
        return self._workers[key]


def compare(
    workers: Workers, work: Work, libraries: Sequence[str], rounds: int, report: Report, repeats: int | None = None
) -> Result:
    """Times libraries at one work in alternating rounds, each of their settings in a process of its own.

    Args:
      workers: where they run.
      work: what is timed.
      libraries: what is compared; the first one that works is the reference of the check.
      rounds: how many turns each setting has.
      report: is called for every library or setting that could not be timed.
      repeats: calls a round; None takes as many as `ROUND_SECONDS` need.

    Returns:
      By library: the setting with the least median, its ready and compile time, and seconds a call: `median`, `min`,
      `max` over the rounds, and `rounds`. With `repeats` above 1 also `p50` and `p99` of single calls, each the median
      over the rounds. `settings` has the median of each setting. A setting that fails between two rounds is left out.
    """
    loaded: dict[tuple[str, int], Result] = {}
    for library in libraries:
        try:
            settings = workers[library, 0].call("settings", work)
        except LibraryError as error:
            report(library, str(error))
            continue
        for key in [(library, number) for number in range(len(settings))]:
            try:
                facts = workers[key].call("load", work, settings[key[1]])
            except LibraryError as error:
                report(library, str(error))
                continue
            reference = next(iter(loaded), key)
            if why := differs(loaded.get(reference, facts)["check"], facts["check"]):
                report(library, f"its results differ from those of {reference[0]}: {why}")
            else:
                loaded[key] = facts | {"seconds": []}

    for number in range(rounds):
        turns = list(loaded)
        first = number % max(1, len(turns))
        for key in turns[first:] + turns[:first]:
            facts = loaded[key]
            calls = repeats or max(1, min(10_000, math.ceil(ROUND_SECONDS / max(facts["call_seconds"], 1e-6))))
            time.sleep(SETTLE_SECONDS)
            try:  # under other load a call can take a hundred times as long as when it was tried
                facts["seconds"].append(workers[key].call("round", calls, 60.0 if repeats else 3 * ROUND_SECONDS))
            except LibraryError as error:
                report(key[0], str(error))
                del loaded[key]
    found: Result = {}
    for (library, _), facts in loaded.items():
        seconds = facts.pop("seconds")
        facts |= summary([statistics.fmean(calls) for calls in seconds])
        if repeats and repeats > 1:
            cuts = [statistics.quantiles(calls, n=100, method="inclusive") for calls in seconds]
            facts |= {f"p{place}": statistics.median(cut[place - 1] for cut in cuts) for place in (50, 99)}
        medians = found.get(library, {}).get("settings", {}) | {facts["setting"]: facts["median"]}
        if library not in found or facts["median"] < found[library]["median"]:
            found[library] = facts
        found[library]["settings"] = medians
    return found


def differs(reference: list[float], values: list[float]) -> str:
    """Where two lists of numbers, as far as both go, are further apart than `TOLERANCE`; empty where nowhere."""
    for number, (expected, value) in enumerate(zip(reference, values, strict=False), 1):
        if not abs(value - expected) <= TOLERANCE * abs(expected):  # nor is NaN
            return f"number {number} of {len(values)} is {value:.7g}, expected {expected:.7g}"
    return ""


def summary(values: list[float]) -> Result:
    """The median of values and their spread."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": values}
