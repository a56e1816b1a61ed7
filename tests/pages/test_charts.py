"""Charts: axes and ticks, what is left out of them, and bands."""

import re

import pytest

from deconattn.pages.axis import Axis, labels
from deconattn.pages.charts import NO_VARIANT, Dot, Series, dot_chart, line_chart, thinned
from deconattn.pages.palette import INK


def test_axes() -> None:
    axis = Axis.over([10, 1000], 0, 100, log=True)
    assert axis(100) == pytest.approx(50) and axis.ticks() == [10, 100, 1000]
    assert Axis.over([3.0, 3.0], 0, 100)(3.0) == pytest.approx(50)
    for low, high in ((1.5, 2.5), (0.0, 1e9), (38.1, 38.2), (60, 140)):
        for log in (False, low > 0):
            axis = Axis.over([low, high], 0, 100, log)
            assert 2 <= len(axis.ticks()) <= 8
            assert all(0 <= axis(tick) <= 100 for tick in axis.ticks())


def test_ticks_are_told_apart() -> None:
    assert labels([7.1601, 7.1602, 7.16]) == ["7.1601", "7.1602", "7.16"]
    assert labels([1.0, 2.0]) == ["1", "2"] and len(set(labels([13_100_100.0, 13_100_200.0]))) == 2


def test_a_chart_leaves_out_what_cannot_be_drawn() -> None:
    points = [(1.0, 2.0, "two"), (0.0, 3.0, "three"), (4.0, float("inf"), "four")]
    drawn = line_chart([Series("a", "mlp", 0, points)], "label", "x", "y")
    assert "two" in drawn and "three" not in drawn and "four" not in drawn
    assert line_chart([Series("a", "mlp", 0, points[1:])], "label", "x", "y") == ""
    assert dot_chart([("a", [Dot(0.0, "mlp", 0, "zero")])], "label", "x", True, None) == ""


def test_thinned_curves_keep_their_ends_and_their_mean() -> None:
    points = [[float(x), 5.0] for x in range(1, 5000)]
    kept = thinned(points)
    assert 40 <= len(kept) <= 80 and kept[0][0] == 1.0 and {y for _, y in kept} == {5.0}
    assert thinned(points[:10]) == [(x, y) for x, y in points[:10]]
    assert thinned([*points, [5000.0, 500.0]])[-1][1] < 10.0  # one step is not the end of a curve


def test_a_band_lies_around_its_line_and_on_the_chart() -> None:
    points = [(1.0, 5.0, "five"), (2.0, 6.0, "six")]
    plain = line_chart([Series("a", "mlp", 0, points)], "label", "x", "y")
    drawn = line_chart([Series("a", "mlp", 0, points, band=[(1.0, 0.0, 9.0), (2.0, 5.5, 6.5)])], "label", "x", "y")
    assert "<polygon" not in plain
    (corners,) = re.findall(r'<polygon points="([^"]*)" fill="[^"]*" fill-opacity', drawn)
    ring = [tuple(map(float, corner.split(","))) for corner in corners.split()]
    line = [tuple(map(float, p.split(","))) for p in re.findall(r'<polyline points="([^"]*)"', drawn)[0].split()]
    assert [x for x, _ in ring] == [x for x, _ in (*line, *reversed(line))]
    for (_, low), (_, high), (_, y) in zip(ring[:2], reversed(ring[2:]), line, strict=True):
        assert high < y < low  # downwards, as drawings count
    assert all(0 < y < 300 for _, y in ring)


def test_an_axis_has_room_for_what_it_is_told_and_a_line_may_be_of_no_variant() -> None:
    drawn = line_chart([Series("chance", NO_VARIANT, 0, [(1.0, 5.0, "five")])], "label", "x", "y", y_within=(0, 100))
    assert ">100</text>" in drawn and f'stroke="{INK}"' in drawn
