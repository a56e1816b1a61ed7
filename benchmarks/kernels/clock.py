"""Races: contestants take turns under one clock; and the two ceilings of the device, in the same units."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch

from deconattn.ops.matmul import matmul

Call = Callable[[], Any]
Clock = Callable[[Call], float]
WARM_UPS = 2
FEWEST_ROUNDS = 3
FLUSHED_BYTES = 2**28
FLUSHES = 8


@dataclass
class Race:
    """Seconds of every round by contestant, in the same order, and why some did not finish."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def race(calls: Mapping[str, Call], clock: Clock, rounds: int, seconds: float) -> Race:
    """Time all calls in turn, for so many rounds or, from the third on, until so many seconds have passed."""
    found = Race(samples={name: [] for name in calls})

    def turn(name: str, counts: bool) -> None:
        try:
            taken = clock(calls[name])
            if counts:
                found.samples[name].append(taken)
        except Exception as error:  # the others go on
            found.failures[name] = described(error)
            found.samples.pop(name)
            release()

    start = time.perf_counter()
    for number in range(-WARM_UPS, rounds):
        if number == 0:
            start = time.perf_counter()
        if number >= FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name in list(found.samples):  # a copy: who fails is out
            turn(name, counts=number >= 0)
    return found


def clock_of(device: str) -> Clock:
    """The clock of a device."""
    return EventClock(device) if device == "cuda" else _wall_seconds


def ratio(samples: list[float], baseline: list[float]) -> float:
    """Median over rounds of time over the baseline's."""
    return median(ours / theirs for ours, theirs in zip(samples, baseline, strict=True))


def ceilings(device: str, dtypes: Mapping[str, torch.dtype], copy_mib: int, size: int) -> dict[str, Any]:
    """Rates of a large copy (bytes read and written) and, in each precision, of a square product of `size`."""
    clock = clock_of(device)
    source = torch.zeros(copy_mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Call] = {"copy": partial(target.copy_, source)}
    for name, dtype in dtypes.items():
        calls[name] = partial(matmul, *torch.randn(2, size, size, device=device).to(dtype))
    found = race(calls, clock, rounds=10, seconds=20)
    if found.failures:
        raise RuntimeError(f"the device's ceilings could not be measured: {found.failures}")
    best = {name: min(samples) for name, samples in found.samples.items()}
    return {
        "bytes_per_second": 2 * source.nbytes / best.pop("copy"),
        "flops_per_second": {name: 2 * size**3 / seconds for name, seconds in best.items()},
        "samples": found.samples,
    }


def described(error: BaseException) -> str:
    """An exception for a result file."""
    return f"{type(error).__name__}: {error}"[:2000]


def release() -> None:
    """Gives back what a failed allocation has left in the cache."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class EventClock:
    """Seconds between two CUDA events.

    Before each call a buffer of several times the L2 cache is written, again and again: the call finds none of its
    inputs in the cache, and the GPU is busy for most of a millisecond, in which the host enqueues the call, so that
    kernels are timed and not the launching of them.
    """

    def __init__(self, device: str) -> None:
        self.buffer = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device)
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def __call__(self, call: Call) -> float:
        before, after = self.events
        for _ in range(FLUSHES):
            self.buffer.zero_()
        before.record()
        call()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3


def _wall_seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
