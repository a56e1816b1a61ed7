import numpy as np
import pytest

from deconattn.data.sampler import Blend, make_key, permute


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 64, 1000, 4097])
def test_permutation_is_a_bijection(size: int) -> None:
    images = [permute(i, size, key=7) for i in range(size)]
    assert sorted(images) == list(range(size))


@pytest.mark.parametrize("size", [1, 3, 1000, 10**12])
def test_arrays_and_integers_agree(size: int) -> None:
    indices = np.unique(np.linspace(0, size - 1, 50).astype(np.uint64))
    assert permute(indices, size, 99).tolist() == [permute(int(i), size, 99) for i in indices]


def test_permutation_depends_on_key_and_looks_random() -> None:
    size = 5000
    indices = np.arange(size, dtype=np.uint64)
    first, second = permute(indices, size, 1), permute(indices, size, 2)
    assert (first == second).sum() < 20  # one expected
    assert (first == indices).sum() < 20
    assert abs(np.corrcoef(first[:-1].astype(float), first[1:].astype(float))[0, 1]) < 0.05
    assert abs(np.corrcoef(first.astype(float), second.astype(float))[0, 1]) < 0.05


def test_every_first_place_is_reached() -> None:
    seen = {permute(0, 6, key) for key in range(200)}
    assert seen == set(range(6))


def test_index_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        permute(5, 5, 0)
    with pytest.raises(ValueError, match="outside"):
        permute(np.array([1, 5], dtype=np.uint64), 5, 0)


def test_keys_differ_in_each_part() -> None:
    keys = {make_key(seed, corpus, epoch) for seed in range(10) for corpus in range(10) for epoch in range(10)}
    assert len(keys) == 1000


@pytest.mark.parametrize(
    "weights", [[1], [1, 3], [0.1, 0.2, 0.7], [5, 1, 1, 1], [1, 1, 1], [0.333, 0.5, 0.1234, 7], [1e-9, 1], [2**0.5, 1]]
)
def test_blend_keeps_its_proportions_at_every_prefix(weights: list[float]) -> None:
    blend = Blend(weights)
    counts = np.zeros(len(weights))
    for number in range(min(2 * blend.period + 5, 20_000)):
        corpus, index = blend(number)
        assert index == counts[corpus]
        counts[corpus] += 1
        assert np.all(np.abs(counts - np.array(blend.weights) * (number + 1)) < 1)


def test_blend_weights_are_the_given_ones() -> None:
    assert Blend([0.1, 0.3]).weights == (0.25, 0.75)
    assert Blend([1e-9, 1]).counts[0] == 1
    irrational = Blend([2**0.5, 1])
    assert irrational.weights[0] == pytest.approx(2**0.5 / (1 + 2**0.5), abs=1e-4)


def test_blend_refuses_weights_that_are_not_positive() -> None:
    for weights in ([], [1, 0], [-1, 2], [float("nan")], [float("inf"), 1]):
        with pytest.raises(ValueError, match="positive"):
            Blend(weights)
