"""Time that a rank stands still in collectives, so that what is left of a step is known to be its own.

In synchronous training all ranks' steps take the same time, that of the slowest, for which the others wait inside
collectives: tensor-parallel neighbours in every layer, pipeline stages at every hop, replicas as gradients are reduced.
Only what is not such waiting tells them apart. Every collective of PyTorch's Python interface, ours and DeepSpeed's,
ends in `Work.wait`, so that is where waiting is measured: on a CPU by the host's clock; on a GPU, where the host waits
for nothing, by events on the stream that computes, whenever it waits for a collective or, as under ZeRO-3, for another
stream that does. A synchronous collective of NCCL runs on that stream itself, from where it is called. What
torch.compile has made of a collective is not seen, and counts as the rank's own time.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch._C._distributed_c10d import ProcessGroup, Work

CALLS = (
    "allgather",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "_allgather_base",
    "allreduce",
    "allreduce_coalesced",
    "alltoall",
    "alltoall_base",
    "barrier",
    "broadcast",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor_coalesced",
    "_reduce_scatter_base",
)
"""Methods of a process group that take options, which say whether the caller waits at once."""


class MeasuredStep:
    """One step's clock readings; durations in seconds, once they are :attr:`ready`."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._stream = torch.cuda.current_stream(device) if self._on_device else None
        self._waits: list[tuple[Any, Any]] = []
        self._begin = self._end = self.mark()

    @property
    def ready(self) -> bool:
        """Whether the device has come to the step's end; asks, and does not wait."""
        return not self._on_device or self._end.query()

    @property
    def seconds(self) -> float:
        """Duration of the whole step."""
        return self._elapsed(self._begin, self._end)

    @property
    def waited(self) -> float:
        """Time in collectives, those of others' slowness and the exchanges themselves."""
        return sum(self._elapsed(*wait) for wait in self._waits)

    def computes(self, stream: "torch.cuda.Stream | None" = None) -> bool:
        """Whether a stream, by default the current one, is the one that the step began on."""
        return not self._on_device or (stream or torch.cuda.current_stream()) == self._stream

    def mark(self) -> Any:
        """Note this moment."""
        if not self._on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add_wait(self, begin: Any) -> None:
        """Count as waiting what is between a moment and this one."""
        self._waits.append((begin, self.mark()))

    def finish(self) -> None:
        self._end = self.mark()

    def _elapsed(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1e3 if self._on_device else end - begin


_measured: MeasuredStep | None = None
_called = threading.local()


@contextmanager
def measuring(device: torch.device) -> Iterator[MeasuredStep]:
    """Measure the block as a step on a device; one at a time."""
    global _measured
    _replace_calls()
    _measured = step = MeasuredStep(device)
    try:
        yield step
    finally:
        _measured = None
        step.finish()


def _replace_calls() -> None:
    """Have collectives tell of themselves, from the first measured step of the process on."""
    if hasattr(Work.wait, "__wrapped__"):
        return
    for name in CALLS:
        if hasattr(ProcessGroup, name):
            setattr(ProcessGroup, name, _noting_call(getattr(ProcessGroup, name)))
    setattr(Work, "wait", _noting_wait(Work.wait))  # noqa: B010
    if torch.cuda.is_available():
        setattr(torch.cuda.Stream, "wait_stream", _noting_stream(torch.cuda.Stream.wait_stream))  # noqa: B010


def _noting_call(call: Any) -> Any:
    @wraps(call)
    def noted(*arguments: Any, **named: Any) -> Any:
        step = _measured
        if step is None:
            return call(*arguments, **named)
        at_once = any(getattr(a, "asyncOp", True) is False for a in (*arguments, *named.values()))
        begin = step.mark() if at_once and step.computes() else None
        work = call(*arguments, **named)
        _called.last = (work, begin)
        if work is None and begin is not None:  # NCCL: the stream waits already, and nobody will call
            step.add_wait(begin)
        return work

    return noted


def _noting_wait(wait: Any) -> Any:
    @wraps(wait)
    def noted(work: Work, *arguments: Any, **named: Any) -> Any:
        step = _measured
        if step is None or not step.computes():
            return wait(work, *arguments, **named)
        last, begin = getattr(_called, "last", (None, None))
        _called.last = (None, None)
        if last is not work or begin is None:
            begin = step.mark()
        answer = wait(work, *arguments, **named)
        step.add_wait(begin)
        return answer

    return noted


def _noting_stream(wait: Any) -> Any:
    @wraps(wait)
    def noted(stream: torch.cuda.Stream, other: torch.cuda.Stream) -> None:
        step = _measured
        if step is None or not step.computes(stream) or not step.computes():
            return wait(stream, other)
        begin = step.mark()
        wait(stream, other)
        step.add_wait(begin)

    return noted
