"""Context parallelism: ranks that share each sequence, and what they exchange, with its backward passes.

The sequence is cut into equal consecutive parts, in the order of the ranks. What a layer exchanges is its mixer's to
say (:mod:`deconattn.mixers.exchange`); all else reads each token alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed import _functional_collectives as collectives

from deconattn.layers.rotary import Rotary
from deconattn.mixers import FixedStream
from deconattn.mixers.exchange import ContextRanks, SharedContext, exchanged
from deconattn.model.causal_lm import CausalLM
from deconattn.ops.backend import backend_for
from deconattn.ops.documents import Documents
from deconattn.ops.softmax_attention import causal_attention
from deconattn.parallel.collectives import all_gather, reduce_scatter
from deconattn.parallel.ring import Ring, attend
from deconattn.parallel.topology import Topology


def share_sequences(model: CausalLM, topology: Topology) -> None:
    """Have a model take this rank's part of each sequence, where the topology has several ranks for one."""
    if topology.cp_group is None:
        return
    model.model.context_ranks = _Ranks(topology.cp_group, topology.cp_rank, topology.cp_size)
    for block in model.model.blocks:
        mixer = block.self_attn
        mixer.forward = partial(exchanged, mixer)  # type: ignore[method-assign]  # within the module's hooks


class _Ranks(ContextRanks):
    """Ranks of a process group."""

    def __init__(self, group: ProcessGroup, rank: int, size: int) -> None:
        self.group, self.rank, self.size = group, rank, size
        self._ring = Ring(group, rank, size)

    def context(
        self,
        rotary: Callable[[Tensor], Rotary],
        positions: Tensor,
        documents: Documents | None,
        fixed_rows: dict[FixedStream, int],
    ) -> SharedContext:
        return SharedContext.of(self, rotary, positions, documents, fixed_rows)

    def whole(self, part: Tensor, dim: int = 1) -> Tensor:
        whole: Tensor = _Whole.apply(part, self.group, dim)
        return whole

    def part(self, whole: Tensor, dim: int = 1) -> Tensor:
        return whole.chunk(self.size, dim)[self.rank]

    def to_heads(self, parts: Tensor) -> Tensor:
        heads: Tensor = _ToHeads.apply(parts, self.group)
        return heads

    def to_tokens(self, heads: Tensor) -> Tensor:
        parts: Tensor = _ToTokens.apply(heads, self.group)
        return parts

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, documents: Documents | None) -> Tensor:
        if backend_for(values) == "reference":
            whole = (self.whole(heads, dim=2) for heads in (queries, keys, values))
            return self.part(causal_attention(*whole, documents), dim=2)
        return attend(queries, keys, values, self._ring, documents)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: ProcessGroup, dim: int) -> Tensor:
        ctx.group, ctx.dim = group, dim
        return all_gather(group, part, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter(ctx.group, grad, ctx.dim), None, None


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _to_heads(parts, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _to_tokens(grad, ctx.group), None


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _to_tokens(heads, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _to_heads(grad, ctx.group), None


def _to_heads(parts: Tensor, group: ProcessGroup) -> Tensor:
    """[R, heads, L / n, x] -> [R, heads / n, L, x]."""
    sent = parts.unflatten(1, (group.size(), -1)).movedim(1, 0)
    return _all_to_all(sent, group).permute(1, 2, 0, 3, 4).flatten(2, 3)


def _to_tokens(heads: Tensor, group: ProcessGroup) -> Tensor:
    """[R, heads / n, L, x] -> [R, heads, L / n, x]."""
    sent = heads.unflatten(2, (group.size(), -1)).movedim(2, 0)
    return _all_to_all(sent, group).movedim(0, 1).flatten(1, 2)


def _all_to_all(sent: Tensor, group: ProcessGroup) -> Tensor:
    """Give rank i the i-th of [n, ..]; what comes lies in the order of the ranks."""
    sent = sent.contiguous()
    if torch.compiler.is_compiling():
        return collectives.wait_tensor(collectives.all_to_all_single(sent, None, None, group))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received.view(-1), sent.view(-1), group=group)
    return received
