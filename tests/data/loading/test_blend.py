from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deconattn.data.loading import blend as blend_module
from deconattn.data.loading.blend import Blend


def check(weights: list[float], start: int, length: int) -> None:
    """Every prefix that ends in `length` samples from `start` on: in integers, so that it is exact far out too."""
    blend = Blend(weights)
    corpora, drawn = blend(np.arange(start, start + length))
    exact = [Fraction(str(weight)) for weight in weights]
    for corpus, weight in enumerate(exact):
        share = weight / sum(exact)
        before = np.flatnonzero(corpora == corpus)
        ranks = drawn[before].tolist()
        assert set(np.diff(ranks).tolist()) <= {1}
        if ranks:
            assert start > 0 or ranks[0] == 0
        for place, rank in zip(before.tolist(), ranks, strict=True):
            number = start + place  # samples before this draw, which is number `rank` of its corpus
            assert abs(rank - number * share) < 1
            assert abs(rank + 1 - (number + 1) * share) < 1
    if start == 0:  # also where nothing was drawn
        held = np.bincount(corpora, minlength=len(weights)).tolist()
        assert all(abs(count - length * weight / sum(exact)) < 1 for count, weight in zip(held, exact, strict=True))


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), start=st.sampled_from([0, 50, 700, 5000]))
@example(weights=[0.333, 0.5, 0.1234, 7], start=0)
@example(weights=[1e-9, 1], start=0)
@example(weights=[1e-300, 1e300, 3.0], start=100)
@example(weights=[2**0.5, 1, 3**0.5], start=65)
@example(weights=[1 / 3, 1 / 3, 1 / 3], start=0)
@settings(deadline=None, max_examples=40)
def test_shares_are_exact_at_every_prefix(weights: list[float], start: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(blend_module, "_LENGTH", 64)  # many stretches
        check(weights, start, 400)


def test_shares_are_exact_far_out() -> None:
    for weights in ([0.1, 0.3, 0.6], [2**0.5, 1, 0.01, 1e-7]):
        check(weights, 2**16 * 50 - 300, 600)


@pytest.mark.parametrize("number", [150, 400])
def test_shares_of_hundreds_of_corpora(number: int) -> None:
    random = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(blend_module, "_LENGTH", 512)
        check(random.lognormal(size=number).tolist(), 0, 1500)


def test_a_sample_does_not_depend_on_those_asked_for_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blend_module, "_LENGTH", 32)
    monkeypatch.setattr(blend_module, "_STATES_KEPT_EVERY", 4)
    weights = [0.377, 2**0.5, 1e-3, 0.2]
    whole = Blend(weights)(np.arange(2000))
    for start in (1999, 0, 1000, 31, 990):
        again = Blend(weights)
        for other in (start, 1500, start):
            corpora, drawn = again(np.arange(other, other + 1))
            assert (corpora[0], drawn[0]) == (whole[0][other], whole[1][other])
    some = np.array([1700, 3, 3, 64, 1999, 31, 32])
    assert [part.tolist() for part in Blend(weights)(some)] == [part[some].tolist() for part in whole]


def test_the_order_of_short_periods() -> None:
    corpora, drawn = Blend([0.5, 0.3, 0.2])(np.arange(10, 20))
    assert corpora.tolist() == [0, 1, 0, 2, 0, 1, 0, 1, 0, 2]
    assert drawn.tolist() == [5, 3, 6, 2, 7, 4, 8, 5, 9, 3]


def test_weights_are_the_given_ones() -> None:
    assert Blend([0.1, 0.3]).weights == (0.25, 0.75)
    assert Blend([1e-9, 1]).counts == (1, 10**9)
    assert Blend([2**0.5, 1]).weights[0] == pytest.approx(2**0.5 / (1 + 2**0.5), abs=1e-15)


def test_weights_that_are_not_positive_are_refused() -> None:
    for weights in ([], [1, 0], [-1, 2], [float("nan")], [float("inf"), 1]):
        with pytest.raises(ValueError, match="positive"):
            Blend(weights)
