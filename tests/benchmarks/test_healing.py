"""The table of healing: shares of the gap by seed, differences in pairs."""

import pytest

from benchmarks.healing import DISTILLED, PLAIN, Healed, recovered, table


def test_the_gap_is_each_seeds_own() -> None:
    starts = {0: 5.0, 1: 7.0}
    assert recovered({0: 4.0, 1: 4.0}, starts, 3.0).mean == pytest.approx((0.5 + 0.75) / 2)
    assert recovered({0: 3.0, 1: 3.0}, starts, 3.0).mean == 1


def test_the_table_compares_seed_by_seed() -> None:
    starts = {0: 5.0, 1: 7.0, 2: 6.0}
    plain = Healed(1e-3, {0: 4.0, 1: 4.5, 2: 4.2})
    better = Healed(3e-4, {seed: loss - 0.25 for seed, loss in plain.losses.items()})
    lines = table({PLAIN: plain, DISTILLED: better}, starts, 3.0).splitlines()
    assert lines[2].startswith("| plain | 0.001 | 4.233 ")
    assert lines[3].endswith("| -0.250 \N{PLUS-MINUS SIGN} 0.000 |")
