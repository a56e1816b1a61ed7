import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deconattn.data.loading.blend import Blend
from deconattn.data.loading.sampler import Order, make_key, permute


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


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 5000),
    shuffle=st.booleans(),
)
@settings(deadline=None, max_examples=20)
def test_order_goes_through_each_corpus_before_it_repeats(
    sizes: list[int], seed: int, start: int, shuffle: bool
) -> None:
    blend = Blend([1.0 + corpus for corpus in range(len(sizes))])
    order = Order(blend, sizes, seed, shuffle)
    drawn: list[list[int]] = [[] for _ in sizes]
    for number in range(3000):
        corpus, place = order(number)
        drawn[corpus].append(place)
    for corpus, size in enumerate(sizes):
        for epoch in range(len(drawn[corpus]) // size):
            seen = drawn[corpus][epoch * size : (epoch + 1) * size]
            key = make_key(seed, corpus, epoch)
            assert seen == ([permute(i, size, key) for i in range(size)] if shuffle else list(range(size)))
    other = Order(blend, sizes, seed, shuffle)  # from anywhere, back and forth
    for number in (start, 0, 2999, start + 1, start):
        assert other(number) == order(number)


def test_order_has_no_negative_numbers() -> None:
    with pytest.raises(IndexError, match="sample number -1 is negative"):
        Order(Blend([1]), [5], 0, True)(-1)
