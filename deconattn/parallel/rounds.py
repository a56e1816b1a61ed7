"""Rounds of attention over rows that several ranks share: which rank computes what, and what must come to it.

Each of n ranks has the queries, keys and values of one of n consecutive parts of a row. A query sees its own part and
the earlier ones, so that of the pairs of parts the last rank's queries are in n - 1 and the first's in none. Of each
pair one of its two ranks computes all, and is sent what the other has: the keys and values of the earlier part, or the
queries of the later one, whose results go back. In round s rank r has the part of rank r - s for its partner, counted
in a circle: where that is an earlier part it gets keys and values, where it is a later one queries. So in every round
every rank has one pair, or half of the one with the part half way round, whose queries are then divided: the work is
the same on all ranks, in every round (DistFlashAttn, arXiv:2310.03294, but for that half: there some ranks have no work
in that round).

Elements sent by a rank in a forward pass, per token of its part, where queries are q and keys k elements wide:
    zigzag cuts (Llama 3, arXiv:2407.21783, section 3.3.2)    2 (n - 1) k + 2 q + 2 k
    here, the rank that sends most                            (n - 1) (2 k + q) / 2, and k more where n is even
    here, the mean of all                                     about (n - 1) (3 k + q) / 4
With zigzag cuts keys and values visit all ranks, and queries, keys, values and results change places before and after;
here they visit half of the ranks at most, and nothing changes places. Where q = k the most that a rank sends is 3 to 8
with 3 ranks, 11.5 to 18 with 8; where q = 8 k it is as much with 7 ranks, the mean with 25. Backward, the mean is twice
as much here, and with zigzag cuts, whose sums of gradients travel with their keys, 4 (n - 1) k + 2 q + 2 k.
Documents stay runs of parts, and pairs of parts that share none are left out; with striped cuts (arXiv:2311.09431),
which send what zigzag cuts do, each document would be on every rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deconattn.ops.documents import Documents


class Seen(NamedTuple):
    """What is seen of a pair of parts in some rows: a number of its first queries see a number of its last keys."""

    rows: slice
    queries: int
    keys: int

    @property
    def of_queries(self) -> tuple[slice, slice, slice]:
        """Index into what queries have, [R, heads, T, ..]."""
        return self.rows, slice(None), slice(self.queries)

    @property
    def of_keys(self) -> tuple[slice, slice, slice]:
        """Index into what keys have, all of the part's or its last."""
        return self.rows, slice(None), slice(-self.keys, None)


@dataclass(frozen=True)
class Task:
    """Attention of the later part's queries, or some of them, over the earlier part's keys.

    Attributes:
        later, earlier: the parts, and so the ranks that have them.
        at: the one of the two that computes.
        span: queries of the later part.
        seen: what is seen, of the queries in the span.
    """

    later: int
    earlier: int
    at: int
    span: slice
    seen: tuple[Seen, ...]

    @property
    def other(self) -> int:
        """The rank that sends inputs, and gets results back."""
        return self.earlier if self.at == self.later else self.later

    @property
    def of_queries(self) -> tuple[slice, slice, slice]:
        """Index into what the later part's queries have, [R, heads, T, ..]."""
        return slice(None), slice(None), self.span

    @property
    def of_keys(self) -> tuple[slice, slice, slice]:
        """Index into what the earlier part's keys have: the last, which some query sees."""
        return slice(None), slice(None), slice(-max(seen.keys for seen in self.seen), None)


@dataclass(frozen=True)
class Plan:
    """What one rank computes and exchanges for some rows.

    Attributes:
        own: documents of its own part; None: a row is one document.
        rounds: its tasks and those in which others compute for it. What nobody sees is in none.
    """

    own: Documents | None
    rounds: tuple[tuple[Task, ...], ...]


def plan(rank: int, size: int, length: int, documents: Documents | None) -> Plan:
    """Plan a rank's rounds.

    Args:
        length: tokens of a part.
        documents: of the whole rows. On an accelerator they are waited for, so that one plan should serve all layers.
    """
    bounds = None if documents is None else _Bounds(documents.ids, length)
    own = None
    if documents is not None and bounds is not None:
        here = slice(rank * length, (rank + 1) * length)
        ids, position_ids = documents.ids[:, here].contiguous(), documents.position_ids[:, here]
        own = Documents(ids, position_ids, bounds.offsets(here).to(ids.device))

    def tasks(distance: int) -> Iterator[Task]:
        """Of one round, in an order that is the same on both ranks of a pair."""
        before, after = (rank - distance) % size, (rank + distance) % size
        for partner, at in {before: rank, after: after}.items():
            later, earlier = max(rank, partner), min(rank, partner)
            seen = (Seen(slice(None), length, length),) if bounds is None else bounds.seen(later, earlier)
            longest = max((some.queries for some in seen), default=0)
            if before != after:
                yield from _task(later, earlier, at, slice(0, longest), seen)
                continue
            half = (longest + 1) // 2
            yield from _task(later, earlier, earlier, slice(0, half), seen)
            yield from _task(later, earlier, later, slice(half, longest), seen)

    # Half way round first, neighbours last: of those fewest wait for results. Empty rounds stay, so that all ranks are
    # in one round at a time, and none waits for another in a circle.
    return Plan(own, tuple(tuple(tasks(distance)) for distance in range(size // 2, 0, -1)))


def _task(later: int, earlier: int, at: int, span: slice, seen: tuple[Seen, ...]) -> Iterator[Task]:
    """Yield a task, or nothing where nothing is seen."""
    within = ((some, min(some.queries, span.stop) - span.start) for some in seen)
    parts = tuple(some._replace(queries=queries) for some, queries in within if queries > 0)
    if parts:
        yield Task(later, earlier, at, span, parts)


class _Bounds:
    """Document boundaries around the parts' first tokens."""

    def __init__(self, ids: Tensor, length: int) -> None:
        self._ids, self._length = ids.cpu().contiguous(), length
        firsts = self._ids[:, ::length].contiguous()
        found = (torch.searchsorted(self._ids, firsts, right=right).tolist() for right in (False, True))
        self._starts, self._ends = found

    def offsets(self, here: slice) -> Tensor:
        """Return where documents begin in the rows' parts laid end to end, and the end: int32 [n]."""
        ids = self._ids[:, here]
        return Documents(ids, ids).cumulative_lengths

    def seen(self, later: int, earlier: int) -> tuple[Seen, ...]:
        """Return what each row's document that lies across the parts has in both."""
        found = []
        for row, (starts, ends) in enumerate(zip(self._starts, self._ends, strict=True)):
            queries = min(ends[later] - later * self._length, self._length)
            keys = min((earlier + 1) * self._length - starts[later], self._length)
            if keys > 0:
                found.append(Seen(slice(row, row + 1), queries, keys))
        return tuple(found)
