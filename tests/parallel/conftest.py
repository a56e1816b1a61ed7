"""Ranks that stay up for all tests of a file."""

from collections.abc import Callable, Iterator

import pytest

from benchmarks.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], Ranks]]:
    """ranks(n): n processes in one group."""
    started: dict[int, Ranks] = {}

    def of(world_size: int) -> Ranks:
        if world_size not in started or started[world_size].closed:
            started[world_size] = Ranks(world_size)
        return started[world_size]

    yield of
    for group in started.values():
        group.close()
