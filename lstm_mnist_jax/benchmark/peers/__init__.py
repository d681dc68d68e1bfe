"""The peers: a module each, with one function for every kind of work that it can do.

    epoch(work, setting) -> Job      layer(work, setting) -> Job
    inference(work, setting) -> Job  product(work, setting) -> Job
    settings(work) -> list[str]      the settings worth trying, the likeliest first; may be missing

The modules are imported in the peers' own processes alone. This file imports none of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

CHECKED_STEPS = 10
"""How many first steps of an epoch must give the same losses in all peers."""

CHECKED_IMAGES = 20


class Unavailable(Exception):
    """A peer cannot do a work on this machine; the message says why."""


@dataclass(frozen=True)
class Job:
    """A work that a peer has made ready.

    Attributes:
      run: does the work once, and returns when its results are there.
      check: does a first part of it and gives numbers in which all peers must agree; called before any `run`.
      compile_seconds: how long tracing, lowering and compiling took, where it is a step of its own.
      setting: how it runs, for people.
      activate: makes the process run it so again, where another setting was tried in between.
    """

    run: Callable[[], Any]
    check: Callable[[], Sequence[float]]
    compile_seconds: float | None = None
    setting: str = ""
    activate: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Peer:
    """Where a peer is found.

    Attributes:
      module: its module.
      environment: variables that its process needs.
    """

    module: str
    environment: dict[str, str] = field(default_factory=dict)


_HERE = "lstm_mnist_jax.benchmark.peers"

PEERS = {
    "ours": Peer(f"{_HERE}.ours"),
    "flax": Peer(f"{_HERE}.flax"),
    "torch": Peer(f"{_HERE}.torch"),
    "torch-compile": Peer(f"{_HERE}.torch_compile"),
    "keras-jax": Peer(f"{_HERE}.keras", {"KERAS_BACKEND": "jax"}),
    "keras-torch": Peer(f"{_HERE}.keras", {"KERAS_BACKEND": "torch"}),
    "keras-tensorflow": Peer(f"{_HERE}.keras", {"KERAS_BACKEND": "tensorflow"}),
    "tf1": Peer(f"{_HERE}.tf1", {"TF_USE_LEGACY_KERAS": "1"}),
    "cudnn": Peer(f"{_HERE}.cudnn"),
    "numpy": Peer(f"{_HERE}.numpy"),  # for the machine's peak alone
}


def find(name: str) -> Peer:
    """A peer by its name, or one of your own by the dotted name of its module."""
    return PEERS.get(name) or Peer(name)
