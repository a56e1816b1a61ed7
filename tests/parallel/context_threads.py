"""Ranks of context parallelism as threads of one process: what they exchange is one graph, which knows its gradients.

An exchange that is computed so has the transposes of its collectives from autograd, and what it sends is counted.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor

from deconattn.layers.config import ModelConfig
from deconattn.layers.rotary import Rotary
from deconattn.mixers import Mixer
from deconattn.mixers.exchange import ContextRanks, SharedContext, exchanged
from deconattn.ops.documents import Documents

SECONDS = 60.0
"""Time after which ranks that do not meet have failed."""


class Meeting:
    """Where threads lay down a tensor each, and see those of all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier, self._laid = Barrier(size, timeout=SECONDS), [torch.empty(0)] * size

    def exchange(self, rank: int, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks."""
        self._laid[rank] = tensor
        self._barrier.wait()
        laid = list(self._laid)
        self._barrier.wait()
        return laid

    def leave(self) -> None:
        """Have all others fail that wait for this rank."""
        self._barrier.abort()


class Thread(ContextRanks):
    """One of the ranks.

    Attributes:
        sent_bytes: what it has sent: to each other rank what that one needs, and nothing to itself.
    """

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size, self.sent_bytes = meeting, rank, meeting.size, 0

    def whole(self, part: Tensor, dim: int = 1) -> Tensor:
        self.sent_bytes += (self.size - 1) * part.numel() * part.element_size()
        return torch.cat(self.meeting.exchange(self.rank, part), dim)

    def part(self, whole: Tensor, dim: int = 1) -> Tensor:
        return whole.chunk(self.size, dim)[self.rank]

    def to_heads(self, parts: Tensor) -> Tensor:
        return self._to_all(parts, split=1, joined=2)

    def to_tokens(self, heads: Tensor) -> Tensor:
        return self._to_all(heads, split=2, joined=1)

    def _to_all(self, sent: Tensor, split: int, joined: int) -> Tensor:
        self.sent_bytes += (self.size - 1) * sent.numel() // self.size * sent.element_size()
        return torch.cat(
            [one.chunk(self.size, split)[self.rank] for one in self.meeting.exchange(self.rank, sent)], joined
        )


def mixed_by_ranks(
    mixer: Mixer, hidden: Tensor, static: Tensor | None, document_ids: Tensor | None, size: int
) -> tuple[Tensor, list[int]]:
    """Mix whole rows [R, L, d] by `size` ranks; the result [R, L, d], and the bytes that each rank has sent."""
    meeting = Meeting(size)

    def run(rank: int) -> tuple[Tensor, int]:
        ranks = Thread(meeting, rank)
        context = shared_context(mixer.config, hidden, document_ids, ranks)
        try:
            here = None if static is None else ranks.part(static)
            return exchanged(mixer, ranks.part(hidden).contiguous(), here, context), ranks.sent_bytes
        except BaseException:
            meeting.leave()
            raise

    with ThreadPoolExecutor(size) as pool:
        mixed, sent = zip(*pool.map(run, range(size)), strict=True)
    return torch.cat(mixed, dim=1), list(sent)


def shared_context(
    config: ModelConfig, hidden: Tensor, document_ids: Tensor | None, ranks: ContextRanks
) -> SharedContext:
    """Return the context of a rank's part of rows [R, L, d], none of which is a fixed stream's."""
    positions, documents, part = torch.arange(hidden.shape[1])[None], None, None
    if document_ids is not None:
        starts = torch.ones_like(document_ids, dtype=torch.bool)
        starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        positions = positions - torch.where(starts, positions, 0).cummax(dim=1).values
        documents = Documents(document_ids, positions)
        part = Documents(ranks.part(document_ids), ranks.part(positions))
    whole_rotary: Callable[[], Rotary] = lambda: Rotary.of(config, positions, hidden.dtype)  # noqa: E731
    return SharedContext(
        Rotary.of(config, ranks.part(positions), hidden.dtype),
        part,
        {},
        ranks=ranks,
        whole_documents=documents,
        whole_rotary=whole_rotary,
    )
