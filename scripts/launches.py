"""What a compiled training program does in a step, read from XLA's own texts: loops, all-reduces, launches on a GPU.

The program is a loop over steps, whose number is an argument, so the one loop without a known trip count outside of all
others. Two texts are read: the optimized HLO of any platform, and the thunks of a GPU, which are what the host does.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

WHILE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = .* while\(.*condition=%?([^,\s]+), body=%?([^,\s]+)")
ASYNC = re.compile(r" async-start\(.*calls=%?([^,\s]+)")
ALL_REDUCE = re.compile(r"[\])}] all-reduce(-start)?\(")


class UnknownProgramError(Exception):
    """The text is not that of such a program."""


@dataclass(frozen=True)
class Loop:
    """A while instruction: its name, its computations, and its trip count; None where XLA knows none."""

    name: str
    condition: str
    body: str
    trips: int | None


class Hlo:
    """The computations of a module's text, each a list of instructions.

    >>> text = '''HloModule m
    ... %below (p: (s32[], s32[])) -> pred[] {
    ...   %p = (s32[], s32[]) parameter(0)
    ...   %i = s32[] get-tuple-element(%p), index=0
    ...   %n = s32[] get-tuple-element(%p), index=1
    ...   ROOT %lt = pred[] compare(%i, %n), direction=LT
    ... }
    ... %step (p: (s32[], s32[])) -> (s32[], s32[]) {
    ...   %p = (s32[], s32[]) parameter(0)
    ...   ROOT %r = (s32[], s32[]) all-reduce(%p), to_apply=%add
    ... }
    ... ENTRY %main (a: (s32[], s32[])) -> (s32[], s32[]) {
    ...   ROOT %w = (s32[], s32[]) while(%a), condition=%below, body=%step
    ... }
    ... '''
    >>> hlo = Hlo(text)
    >>> hlo.step_loop().name, hlo.all_reduces_a_step(), hlo.loops_of_unknown_length()
    ('w', 1, [])
    """

    def __init__(self, text: str) -> None:
        self._aliased = len(re.findall(r"\{\d+\}: \(\d+, \{\}", text.partition("\n")[0]))
        self._computations: dict[str, list[str]] = {}
        current: list[str] = []
        for line in text.splitlines():
            if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = self._computations.setdefault(header[2], [])
                if header[1]:
                    self._entry = header[2]
            elif line.startswith("  "):
                current.append(line)
        if not hasattr(self, "_entry"):
            raise UnknownProgramError("The text has no ENTRY computation: it is not XLA's HLO.")

    @property
    def aliased(self) -> int:
        """How many results of the program take the memory of an argument."""
        return self._aliased

    def loops(self, computation: str) -> Iterator[Loop]:
        """The loops in a computation, not those within others."""
        for line in self._computations[computation]:
            if found := WHILE.match(line):
                name, condition, body = found.groups()
                known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
                yield Loop(name, condition, body, int(known[1]) if known else self._limit(condition))

    def _limit(self, condition: str) -> int | None:
        """The constant below which a counter stays: the trip count of JAX's loops, which count from 0 by 1.

        XLA writes trip counts down for GPUs alone.
        """
        lines = self._computations[condition]
        compared = re.search(r"compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT", lines[-1])
        if compared is None:
            return None
        for line in lines:
            if found := re.match(rf"\s*%?{re.escape(compared[1])} = s32\S* constant\((\d+)\)", line):
                return int(found[1])
        return None

    def step_loop(self) -> Loop:
        """The loop over steps."""
        found = [loop for loop in self.loops(self._entry) if loop.trips is None]
        if len(found) != 1:
            raise UnknownProgramError(f"Expected one loop over steps, found {len(found)} loops of unknown length.")
        return found[0]

    def loops_of_unknown_length(self) -> list[str]:
        """The names of loops in a step whose trip count is not known: the host, or the device, tests each iteration."""

        def within(computation: str) -> Iterator[str]:
            for loop in self.loops(computation):
                yield from [] if loop.trips is not None else [loop.name]
                yield from within(loop.body)

        return [*within(self.step_loop().body)]

    def all_reduces_a_step(self) -> int:
        """How often the devices exchange data in a step."""

        def count(computation: str) -> int:
            lines = self._computations[computation]
            own = sum(ALL_REDUCE.search(line) is not None for line in lines)
            wrapped = (count(found[1]) for line in lines if (found := ASYNC.search(line)))
            return own + sum(wrapped) + sum((loop.trips or 1) * count(loop.body) for loop in self.loops(computation))

        return count(self.step_loop().body)

    def trips(self) -> dict[str, int | None]:
        """The trip count of every loop, by name."""
        return {loop.name: loop.trips for computation in self._computations for loop in self.loops(computation)}


class Launches(NamedTuple):
    """What the host does for a step on a GPU.

    Attributes:
      launches: of the host: a kernel, a copy, a call of a library, or a whole CUDA graph, which is one launch.
      kernels: kernels and copies that the GPU runs, those within graphs too.
    """

    launches: int
    kernels: int

    def __add__(self, other: object) -> "Launches":
        if not isinstance(other, Launches):
            return NotImplemented
        return Launches(self.launches + other.launches, self.kernels + other.kernels)

    def times(self, count: int) -> "Launches":
        return Launches(self.launches * count, self.kernels * count)


NOTHING = Launches(0, 0)
READ = Launches(1, 1)
"""The copy by which the host reads the condition of a loop. It waits for it."""

WITHOUT_LAUNCH = ("kAsyncDone", "kWaitForStreams", "kSequential")


@dataclass
class Thunk:
    """A line of XLA's thunk_sequence text, with the lines that are indented below it."""

    number: int
    kind: str
    indent: int
    children: list["Thunk"] = field(default_factory=list)
    condition: list["Thunk"] = field(default_factory=list)


def read_thunks(text: str) -> list[Thunk]:
    """The thunks of a program, from the text that XLA writes with --xla_dump_to.

    >>> (loop,) = read_thunks('''014: kWhile [source | sink]
    ... condition:
    ...     015: kKernel [source | sink] compare
    ...   body:
    ...     000: kCommandBuffer [source | sink]
    ...         016: kKernel [source | sink] add
    ... ''')
    >>> loop.kind, [thunk.kind for thunk in loop.condition], [thunk.kind for thunk in loop.children]
    ('kWhile', ['kKernel'], ['kCommandBuffer'])
    """
    root = Thunk(-1, "kSequential", -1)
    open_thunks, last_loops = [root], list[Thunk]()
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() == "body:":
            while last_loops[-1].indent >= indent:
                last_loops.pop()
            loop = last_loops[-1]
            loop.condition, loop.children = loop.children, []
            open_thunks = open_thunks[: open_thunks.index(loop) + 1]
        elif found := re.match(r"\s*(\d+): (k\w+)", line):
            thunk = Thunk(int(found[1]), found[2], indent)
            while open_thunks[-1].indent >= indent:
                open_thunks.pop()
            open_thunks[-1].children.append(thunk)
            open_thunks.append(thunk)
            if thunk.kind == "kWhile":
                last_loops.append(thunk)
    return root.children


def launches_a_step(sequence: str, metadata: str, hlo: Hlo) -> Launches:
    """The launches of a training step on a GPU.

    Args:
      sequence: XLA's text of the thunks, after its passes over thunks.
      metadata: its text of what belongs to each thunk.
      hlo: the same program.
    """
    names = {
        int(found[2] or 0): found[1]
        for found in re.finditer(r'profile_annotation: "([^"]*)"\s*(?:thunk_id: (\d+))?', metadata)
    }
    by_name = hlo.trips()

    def trips(thunk: Thunk) -> int | None:
        name = names.get(thunk.number)
        if name not in by_name:
            raise UnknownProgramError(f"XLA's loop {thunk.number} ({name}) is not in its HLO.")
        return by_name[name]

    thunks = read_thunks(sequence)
    steps = [thunk for thunk in thunks if thunk.kind == "kWhile" and trips(thunk) is None]
    if len(steps) != 1:
        raise UnknownProgramError(f"Expected one loop over steps among XLA's thunks, found {len(steps)}.")
    (step,) = steps
    return _count(step.children, trips) + _count(step.condition, trips) + READ


def _count(thunks: list[Thunk], trips: Callable[[Thunk], int | None]) -> Launches:
    total = NOTHING
    for thunk in thunks:
        if thunk.kind == "kCommandBuffer":
            total += Launches(1, _count(thunk.children, trips).kernels)
        elif thunk.kind == "kWhile":
            count, body = trips(thunk), _count(thunk.children, trips)
            # Of unknown length: at least one iteration, before which the host reads the condition.
            total += body.times(count) if count is not None else body + _count(thunk.condition, trips) + READ
        elif thunk.children:
            total += _count(thunk.children, trips)
        elif thunk.kind not in WITHOUT_LAUNCH:
            total += Launches(1, 1)
    return total
