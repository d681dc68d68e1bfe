"""A mean and a share, and how far each may be from the truth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

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


Z95 = NormalDist().inv_cdf(0.975)
"""Standard errors of a normal distribution to either side that hold 95 % of it."""


@dataclass(frozen=True)
class Share:
    """How many of some independent trials came right, and what that says of the probability.

    Attributes:
      correct, count: of the trials.
    """

    correct: int
    count: int

    @property
    def value(self) -> float:
        """The share, 0 to 1; NaN where there was no trial."""
        return self.correct / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the probability, binomial: Wilson's score interval ("Probable Inference, the Law of
        Succession, and Statistical Inference", 1927), which is right near 1 too, where value +- 2 standard errors is
        not. NaN where there was no trial. (SciPy's takes a third of a second to import, at each training's end.)"""
        if not self.count:
            return math.nan, math.nan
        n, p, z = self.count, self.value, Z95
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half_width = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        # The ends are 0 and 1 themselves where all went wrong or right, but for rounding.
        return 0.0 if self.correct == 0 else middle - half_width, 1.0 if self.correct == n else middle + half_width
