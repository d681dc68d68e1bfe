"""A mean, and how far it may be from the truth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mean:
    """The mean of independent values.

    Attributes:
      mean: of the values; NaN where there are none.
      half_width: of its 95 % interval: the true mean lies within mean +- half_width in 95 of 100 such experiments, by
        Student's t distribution (Student, "The Probable Error of a Mean", 1908). NaN where there are fewer than two.
      count: how many values there are.
    """

    mean: float
    half_width: float
    count: int


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of some values, with its interval."""
    count = len(values)
    if count < 2:
        return Mean(float(values[0]) if count else math.nan, math.nan, count)
    from scipy.stats import t  # a third of a second, only for those who use it

    half_width = t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return Mean(float(np.mean(values)), float(half_width), count)


def percent(mean: Mean) -> str:
    """A share of 1 for people: "98.43 % ± 0.10"."""
    if math.isnan(mean.mean):
        return "-"
    return f"{mean.mean:.2%}" + ("" if math.isnan(mean.half_width) else f" ± {100 * mean.half_width:.2f}")
