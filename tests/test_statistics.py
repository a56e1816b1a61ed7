"""Intervals against published quantiles, and against what they promise: coverage."""

import math

import numpy as np
import pytest

from deconattn.statistics import (
    Interval,
    family_level,
    mean_interval,
    paired_difference,
    share_interval,
    values_needed,
)


def test_an_interval_is_students():
    interval = mean_interval([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.302653 (any table), s = 1, n = 3
    assert interval.mean == 2.0
    assert interval.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert interval.above(-0.5)
    assert not interval.above(0.0)
    assert interval.below(4.5)


def test_one_value_has_no_interval_and_shows_nothing():
    interval = mean_interval([0.9])
    assert interval == Interval(0.9, None, None, 1)
    assert not interval.above(0.0)
    assert not interval.below(1.0)
    assert values_needed(interval, 0.1) is None


def test_the_error_that_all_values_share_does_not_shrink():
    few, many = (mean_interval([0.5, 0.5] * n, shared_error=0.01).half for n in (1, 50))
    assert few == pytest.approx(0.0196, rel=1e-3)
    assert many == pytest.approx(few)


def test_pairs_are_of_the_seeds_that_both_have():
    ours, standard = {1: 3.0, 2: 13.1, 3: 7.0}, {2: 12.0, 1: 2.1, 4: 0.0}
    difference = paired_difference(ours, standard)
    assert difference is not None
    assert difference.count == 2
    assert difference.mean == pytest.approx(1.0)
    assert difference.half == pytest.approx(12.7062 * 0.1, rel=1e-4)  # what the seeds differ by themselves is gone
    assert paired_difference({1: 0.0}, {2: 0.0}) is None


@pytest.mark.parametrize("comparisons", [1, 6])
def test_a_family_of_intervals_holds_as_often_as_promised(comparisons):
    generator, level, trials = np.random.default_rng(0), family_level(comparisons), 600
    held = 0
    for _ in range(trials):
        intervals = [mean_interval(generator.normal(size=3).tolist(), level) for _ in range(comparisons)]
        held += not any(interval.above(0.0) or interval.below(0.0) for interval in intervals)
    assert held / trials == pytest.approx(0.95, abs=0.03)


def test_values_needed_grow_as_the_square_of_precision():
    interval = mean_interval([0.0, 1.0, 2.0])
    needed = values_needed(interval, 0.1)
    assert needed is not None
    # 1.96^2 / 0.1^2 = 384, in steps of 2 %
    assert 384 <= needed <= 395
    assert values_needed(interval, 10.0) == 3


def test_shares_have_wilsons_interval() -> None:
    interval = share_interval(8, 10)  # the textbook's: 0.490 to 0.943
    assert (interval.mean, interval.count) == (0.8, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    none, every = share_interval(0, 16), share_interval(16, 16)
    assert (none.low, every.high) == (0, 1) and none.high == pytest.approx(1 - every.low) == pytest.approx(
        0.1936, abs=1e-4
    )
