"""Means over seeds with their intervals, paired differences, and what a family of comparisons shows; by SciPy.

Everything here is of a handful of numbers: Student's t, two-sided, at 95 % unless told otherwise.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its interval.

    Attributes:
        low, high: None where one value is all there is: nothing is known of its spread.
        count: values, which are seeds as a rule.
        level: the interval's coverage.
    """

    mean: float
    low: float | None
    high: float | None
    count: int
    level: float = LEVEL

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def below(self, value: float) -> bool:
        """Tell whether the whole interval is below a value; never where there is none."""
        return self.high is not None and self.high < value

    def above(self, value: float) -> bool:
        """Tell whether the whole interval is above a value; never where there is none."""
        return self.low is not None and self.low > value


def mean_interval(values: Sequence[float], level: float = LEVEL, shared_error: float = 0.0) -> Interval:
    """Estimate a mean from independent values.

    Args:
        shared_error: standard error that all values have in common, as of scores of the same documents: more seeds do
            not make it smaller. It is added in quadrature.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Interval(mean, None, None, 1, level)
    own = statistics.stdev(values) / math.sqrt(count)
    half = math.hypot(_t(level, count - 1) * own, _z(level) * shared_error)
    return Interval(mean, mean - half, mean + half, count, level)


def share_interval(right: int, count: int, level: float = LEVEL) -> Interval:
    """Estimate a share from independent trials, by Wilson's score interval (1927), which is sound at 0 and 1 too."""
    z, share = _z(level), right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), count, level)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], level: float = LEVEL, shared_error: float = 0.0
) -> Interval | None:
    """Estimate `values - baseline` from the seeds that both have; None where they share none.

    Pairs share data order and initial weights, so that what a seed does to both falls out.
    """
    seeds = sorted(values.keys() & baseline.keys())
    return mean_interval([values[s] - baseline[s] for s in seeds], level, shared_error) if seeds else None


def family_level(comparisons: int, level: float = LEVEL) -> float:
    """Return the level of each of several intervals that all hold together with probability `level` (Bonferroni)."""
    return 1 - (1 - level) / max(comparisons, 1)


def values_needed(interval: Interval, margin: float) -> int | None:
    """Return how many values would leave an interval of half width `margin` by the spread seen; None: unknown."""
    if interval.half is None or margin <= 0:
        return None
    if interval.half <= margin:
        return interval.count
    deviation = interval.half * math.sqrt(interval.count) / _t(interval.level, interval.count - 1)
    count = interval.count
    while _t(interval.level, count - 1) * deviation / math.sqrt(count) > margin:
        count = max(count + 1, math.ceil(1.02 * count))
        if count > 10_000:
            return None
    return count


@cache
def _t(level: float, freedom: int) -> float:
    from scipy.stats import t  # at first use: half a second, and of the extra "plot"

    return float(t.ppf((1 + level) / 2, freedom))


def _z(level: float) -> float:
    return statistics.NormalDist().inv_cdf((1 + level) / 2)
