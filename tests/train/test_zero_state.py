"""What a rank's ZeRO-3 partition has of a tensor."""

from itertools import pairwise

import pytest

from deconattn.train.zero_state import zero_3_bounds


@pytest.mark.parametrize(("elements", "ranks"), [(32, 5), (32, 3), (6, 2), (2, 5), (1, 3)])
def test_partitions_are_the_tensor_and_nothing_of_the_padding(elements: int, ranks: int) -> None:
    size = -(-elements // ranks)
    bounds = [zero_3_bounds(elements, size, rank) for rank in range(ranks)]
    assert bounds[0][0] == 0 and bounds[-1][1] == elements
    assert all(one[1] == other[0] for one, other in pairwise(bounds))
