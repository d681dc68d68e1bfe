"""Metrics of a population for machines: one JSON object a group and epoch."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lstm_mnist_jax.config.json import from_dict
from lstm_mnist_jax.reporting.json_lines import JsonLines, read_json_lines
from lstm_mnist_jax.reporting.statistics import mean_of

MEASURES = (
    "train_loss",
    "train_accuracy",
    "gradient_norm",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)


@dataclass(frozen=True)
class MemberMetrics:
    """What is known of a member after an epoch; see `EpochMetrics`. None where the member has diverged."""

    member: int
    seed: int
    train_loss: float | None
    train_accuracy: float | None
    gradient_norm: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None

    @property
    def diverged(self) -> bool:
        """Whether its loss was not finite any more."""
        return self.validation_accuracy is None


@dataclass(frozen=True)
class GroupMetrics:
    """What is known of a group after an epoch.

    Attributes:
      group: its number.
      epoch, step: of each of its members, counted from the start, after the epoch.
      seconds: time that the epoch's training steps took, of all members.
      examples_per_second: training examples of all members in that time.
      members: what is known of each.
    """

    group: int
    epoch: int
    step: int
    seconds: float
    examples_per_second: float
    members: tuple[MemberMetrics, ...]


def read_group_metrics(path: Path) -> list[GroupMetrics]:
    """The lines of a population's metrics.jsonl. Lines that are none, as a crash may leave, are passed over."""

    def parse(values: Any) -> GroupMetrics:
        if isinstance(values, dict):
            values.pop("settings", None)  # follows from the members
        return from_dict(GroupMetrics, values)

    return read_json_lines(path, parse)


class GroupMetricsWriter:
    """Writes the epochs of a group to metrics.jsonl. Close it at the end."""

    def __init__(self, path: Path, group: int, step: int, setting_of: Callable[[int], dict[str, Any]]) -> None:
        """Opens the file for a group that stands at `step`; what it holds of its later steps is dropped.

        Args:
          path: the file.
          group, step: which group, and where it stands.
          setting_of: from a member to what makes it and others one setting.

        Raises:
          RunError: it cannot be written to.
        """
        self._setting_of = setting_of
        kept = [line for line in read_group_metrics(path) if line.group != group or line.step <= step]
        self._lines = JsonLines(path, map(self._values, kept))

    def write(self, metrics: GroupMetrics) -> None:
        """Adds an epoch; when this returns, it is in the file.

        Raises:
          RunError: it could not be written.
        """
        self._lines.write(self._values(metrics))

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def _values(self, metrics: GroupMetrics) -> dict[str, Any]:
        values = asdict(metrics)
        members = values.pop("members")
        return values | {"settings": self._summaries(metrics), "members": members}

    def _summaries(self, metrics: GroupMetrics) -> list[dict[str, Any]]:
        """Mean and 95 % interval of each setting over its seeds."""
        by_setting: dict[str, list[MemberMetrics]] = {}
        for member in metrics.members:
            by_setting.setdefault(json.dumps(self._setting_of(member.member)), []).append(member)
        return [
            {"setting": json.loads(setting), "diverged": sum(member.diverged for member in members)}
            | {name: _summary([getattr(member, name) for member in members]) for name in MEASURES}
            for setting, members in by_setting.items()
        ]


def _summary(values: list[float | None]) -> dict[str, float | None]:
    mean = mean_of([value for value in values if value is not None])
    return {
        name: None if math.isnan(value) else value
        for name, value in (("mean", mean.mean), ("half_width_95", mean.half_width))
    }
