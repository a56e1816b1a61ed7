"""Collectives of tensor and sequence parallelism around cut modules, with their backward passes.

Entering with a whole input and leaving with a sum are each other's transposes, and so are the two forms of
sequence parallelism (Shoeybi et al. 2019, figure 4; Korthikanti et al. 2023, section 4.2.2). The sequence is
dimension 1 of [R, L, d].

torch.compile follows functional collectives only. Run eagerly each of those costs about a millisecond of Python, more
than the exchange itself in small layers, so that the plain ones stand in for them there.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed import _functional_collectives as collectives

SEQUENCE = 1

# torch 2.13 renamed them and warns of the old names
_all_gather = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
_reduce_scatter = getattr(collectives, "reduce_scatter_single", None) or collectives.reduce_scatter_tensor
_eager_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_eager_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def all_reduce(group: ProcessGroup, tensor: Tensor) -> Tensor:
    """All-reduce into a new tensor; not differentiable."""
    if torch.compiler.is_compiling():
        return collectives.wait_tensor(collectives.all_reduce(tensor.contiguous(), "sum", group))
    return start_all_reduce(group, tensor.clone(memory_format=torch.contiguous_format)).wait()


def all_gather(group: ProcessGroup, tensor: Tensor, dim: int) -> Tensor:
    """All-gather equal parts side by side along `dim`; not differentiable."""
    if torch.compiler.is_compiling():
        return collectives.wait_tensor(_all_gather(tensor.contiguous(), dim, group))
    return start_all_gather(group, tensor, dim).wait()


def reduce_scatter(group: ProcessGroup, tensor: Tensor, dim: int) -> Tensor:
    """Reduce-scatter: this rank's equal part along `dim` of the sum over ranks; not differentiable."""
    if torch.compiler.is_compiling():
        return collectives.wait_tensor(_reduce_scatter(tensor.contiguous(), "sum", dim, group))
    return start_reduce_scatter(group, tensor, dim).wait()


class Started:
    """Collective under way, eager; what is computed before `wait` runs beside it.

    Args:
        tensors: what it reads and writes, kept until it has ended.
        result: makes the result of them then.
    """

    def __init__(self, work: Any, tensors: tuple[Tensor, ...], result: Callable[[], Tensor]) -> None:
        self._work, self._tensors, self._result = work, tensors, result

    def wait(self) -> Tensor:
        """Return the result; on a GPU the stream waits for it, not the host."""
        self._work.wait()
        self._tensors = ()
        return self._result()


def start_all_reduce(group: ProcessGroup, total: Tensor) -> Started:
    """Begin :func:`all_reduce` in place."""
    work = dist.all_reduce(total, group=group, async_op=True)
    return Started(work, (total,), lambda: total)


def start_all_gather(group: ProcessGroup, tensor: Tensor, dim: int) -> Started:
    """Begin :func:`all_gather`."""
    own = tensor.reshape(-1)
    parts = tensor.new_empty(group.size(), *tensor.shape)
    work = _eager_all_gather(parts.view(-1), own, group=group, async_op=True)
    return Started(work, (own, parts), lambda: parts.movedim(0, dim).flatten(dim, dim + 1))


def start_reduce_scatter(group: ProcessGroup, tensor: Tensor, dim: int) -> Started:
    """Begin :func:`reduce_scatter`."""
    parts = tensor.unflatten(dim, (group.size(), -1)).movedim(dim, 0).contiguous()
    own = torch.empty_like(parts[0])
    work = _eager_reduce_scatter(own.view(-1), parts.view(-1), group=group, async_op=True)
    return Started(work, (own, parts), lambda: own)


def enter(hidden: Tensor, group: ProcessGroup, sequence_parallel: bool) -> Tensor:
    """Enter a cut module (Megatron's f or g): [R, L, d] on every rank, from the same or [R, L / tp_size, d]."""
    return (_Gather if sequence_parallel else _Copy).apply(hidden, group)


def leave(partial: Tensor, group: ProcessGroup, sequence_parallel: bool) -> Tensor:
    """Leave a cut module (Megatron's f-bar or g-bar): the sum over ranks, whole or as [R, L / tp_size, d]."""
    return (_Scatter if sequence_parallel else _Sum).apply(partial, group)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce(ctx.group, grad), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: ProcessGroup) -> Tensor:
        return all_reduce(group, partial)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return all_gather(group, hidden, SEQUENCE)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter(ctx.group, grad, SEQUENCE), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return reduce_scatter(group, partial, SEQUENCE)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_gather(ctx.group, grad, SEQUENCE), None
