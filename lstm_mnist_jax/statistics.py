"""Means and proportions with their confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

FOR_AN_INTERVAL = "a confidence interval needs three seeds"


@dataclass(frozen=True)
class Mean:
    """The mean of independent values.

    Attributes:
      mean: of the values; NaN where there are none.
      half_width: of the 95 % confidence interval, mean +- half_width, by Student's t distribution (Student, "The
        Probable Error of a Mean", 1908). NaN where there are fewer than three: of two, t is 12.7 standard errors, which
        says nothing.
      count: the number of values.
    """

    mean: float
    half_width: float
    count: int


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of some values, with its confidence interval."""
    count = len(values)
    if count < 3:
        return Mean(float(np.mean(values)) if count else math.nan, math.nan, count)
    from scipy.special import stdtrit  # Student's t; scipy.stats takes five times as long to import

    half_width = stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count)
    return Mean(float(np.mean(values)), float(half_width), count)


def percent(mean: Mean) -> str:
    """A proportion as text: "98.43 % ± 0.10"."""
    if math.isnan(mean.mean):
        return "-"
    return f"{mean.mean:.2%}" + ("" if math.isnan(mean.half_width) else f" ± {100 * mean.half_width:.2f}")


Z95 = NormalDist().inv_cdf(0.975)
"""The standard normal quantile of two-sided 95 % confidence intervals, 1.96."""


@dataclass(frozen=True)
class Share:
    """A proportion of independent trials.

    Attributes:
      correct: the number of successes.
      count: the number of trials.
    """

    correct: int
    count: int

    @property
    def value(self) -> float:
        """The proportion, 0 to 1; NaN where there was no trial."""
        return self.correct / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the probability: Wilson's score interval ("Probable Inference, the Law of
        Succession, and Statistical Inference", 1927), which is valid near 1 too. NaN where there was no trial. The same
        as scipy.stats.binomtest(correct, count).proportion_ci(method="wilson"), whose import takes half a second."""
        if not self.count:
            return math.nan, math.nan
        n, p, z = self.count, self.value, Z95
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half_width = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        # Exactly 0 and 1 where no trial or every trial succeeded, despite rounding.
        return 0.0 if self.correct == 0 else middle - half_width, 1.0 if self.correct == n else middle + half_width
