"""Pace of the ranks: each one's step time, the part of it that is its own, and its memory; and who holds up the others.

Numbers travel in the sum that every step makes anyway, so that they cost no collective and no wait: what a rank has
measured lately goes with the step before a row of `metrics.jsonl`, and rank 0 sees everybody's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean, median, median_low

import torch

from deconattn.parallel.waiting import MeasuredStep, measuring

NUMBERS = ("step_seconds", "busy_seconds", "memory_gib")
"""What each rank tells, in order: means of the steps since it last did, and its memory."""
STEPS_A_MEASUREMENT = 10
"""On a GPU so many steps go unmeasured for one that is: it takes an event before and after each collective."""
SLOWER = 1.2
"""Busy time, in that of its like, from which on a rank is a straggler..."""
ROWS = 3
"""...if it is so in as many rows, one after the other..."""
LOST_SECONDS = 1.0
"""...that have cost so much between them."""


class Pace:
    """Measurements of this rank's steps.

    Args:
        alone: there are no other ranks, or they cannot be measured: nothing is.
    """

    def __init__(self, device: torch.device, alone: bool) -> None:
        self._device, self._alone = device, alone
        self._every = STEPS_A_MEASUREMENT if device.type == "cuda" else 1
        self._steps = 0
        self._measured: list[MeasuredStep] = []

    @contextmanager
    def step(self, counts: bool = True) -> Iterator[None]:
        """Measure the step inside the block, unless it is the first, whose time is start-up, or does not count."""
        self._steps += 1
        if self._alone or not counts or self._steps == 1 or self._steps % self._every:
            yield
            return
        with measuring(self._device) as measured:
            yield
        self._measured.append(measured)

    def numbers(self, memory_gib: float) -> list[float]:
        """Return :data:`NUMBERS` of this rank, zeros where no step was measured since; empty if it is alone."""
        if self._alone:
            return []
        done = [step for step in self._measured if step.ready]
        self._measured = [step for step in self._measured if step not in done]
        if not done:
            return [0.0, 0.0, memory_gib]
        seconds = fmean(step.seconds for step in done)
        return [seconds, max(0.0, seconds - fmean(step.waited for step in done)), memory_gib]


def spread(ranks: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return least, median and greatest of the ranks' numbers, by the names of a row, without what was not measured."""
    row: dict[str, float] = {}
    for name, values in zip(NUMBERS, zip(*ranks, strict=True), strict=False):
        if all(values):
            row |= {f"{name}_min": min(values), f"{name}_median": median(values), f"{name}_max": max(values)}
    return {name: round(value, 6) for name, value in row.items()}


class Stragglers:
    """Judge of who is persistently slower than its like: on rank 0.

    A rank's like are the ranks of its pipeline stage, which compute as much as it does. The only one of its stage is
    held against its own least time.

    Args:
        stages: of each rank, its pipeline stage.
        step: that the run is at.
    """

    def __init__(self, stages: Sequence[int], step: int) -> None:
        self._stages, self._step = stages, step
        self._least: dict[int, float] = {}
        self._rows = [0] * len(stages)
        self._lost = [0.0] * len(stages)
        self._named: set[int] = set()

    def judge(self, ranks: Sequence[Sequence[float]], step: int) -> list[tuple[int, float, float]]:
        """Return who has just become known as a straggler: (rank, its busy seconds a step, its like's).

        Args:
            ranks: each rank's :data:`NUMBERS`.
            step: that they are told with.
        """
        busy = [numbers[1] for numbers in ranks]
        if not all(busy):
            return []
        steps, self._step = step - self._step, step
        found = []
        for rank, (own, like) in enumerate(zip(busy, self._likes(busy), strict=True)):
            self._least[rank] = min(own, self._least.get(rank, own))
            if own <= SLOWER * like:
                self._rows[rank], self._lost[rank] = 0, 0.0
                self._named.discard(rank)
                continue
            self._rows[rank] += 1
            self._lost[rank] += (own - like) * steps
            if rank not in self._named and self._rows[rank] >= ROWS and self._lost[rank] >= LOST_SECONDS:
                self._named.add(rank)
                found.append((rank, own, like))
        return found

    def _likes(self, busy: Sequence[float]) -> list[float]:
        """Return for each rank the busy time of its like; of two in a stage, that of the faster."""
        of_stage: dict[int, list[float]] = {}
        for stage, own in zip(self._stages, busy, strict=True):
            of_stage.setdefault(stage, []).append(own)
        middle = {stage: median_low(values) for stage, values in of_stage.items()}
        return [
            middle[stage] if len(of_stage[stage]) > 1 else self._least.get(rank, busy[rank])
            for rank, stage in enumerate(self._stages)
        ]
