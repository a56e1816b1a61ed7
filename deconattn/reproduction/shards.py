"""Which machine does which runs."""

import re
from collections.abc import Sequence

from deconattn.errors import UserError


def read_shard(text: str) -> tuple[int, int]:
    """`2/3` as (2, 3), the second of three (UserError if it is no such thing)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text}: give I/N, the I-th of N machines counted from 1, such as 1/3")
    return int(match[1]), int(match[2])


def deal(costs: Sequence[float], count: int) -> list[int]:
    """The shard, from 1, of each item: the dearest first, each to the shard that has least so far.

    Every machine comes to the same answer by itself. A run and all that is measured of it are one item, so that no
    machine waits for another.
    """
    loads = [0.0] * count
    shards = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        least = loads.index(min(loads))
        loads[least] += costs[item]
        shards[item] = least + 1
    return shards
