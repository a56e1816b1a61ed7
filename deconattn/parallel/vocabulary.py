"""Vocabulary-parallel embedding and head: no rank ever holds all logits."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from deconattn.layers.shards import Shard
from deconattn.model.causal_lm import Head
from deconattn.ops.cross_entropy import linear_losses
from deconattn.ops.distillation import Taught, linear_divergence
from deconattn.parallel.collectives import all_gather, all_reduce, enter, leave


class VocabularyEmbedding(nn.Embedding):
    """Vocabulary-parallel embedding with the rows `shard`; each rank looks up its rows, and the sum is all-reduced."""

    def __init__(self, shard: Shard, group: ProcessGroup, sequence_parallel: bool) -> None:
        rows, width = shard.local_shape
        super().__init__(rows, width)
        self._first = shard.bounds[shard.rank][0]
        self._group, self._sequence_parallel = group, sequence_parallel

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed int64 [R, L] -> [R, L, d], or this rank's [R, L / tp_size, d]."""
        local = input_ids - self._first
        elsewhere = (local < 0) | (local >= self.num_embeddings)
        found = super().forward(local.masked_fill(elsewhere, 0)).masked_fill(elsewhere[..., None], 0)
        return leave(found, self._group, self._sequence_parallel)


class VocabularyHead(Head):
    """Vocabulary-parallel head with the rows `shard`; the loss needs one number a token and rank from the others."""

    def __init__(self, shard: Shard, group: ProcessGroup, sequence_parallel: bool) -> None:
        rows, width = shard.local_shape
        super().__init__(width, rows, bias=False)
        self._shard, self._group, self._sequence_parallel = shard, group, sequence_parallel
        self._least: dict[int, int] = {}

    def forward(self, hidden: Tensor, labels: Tensor | None = None, taught: Taught | None = None) -> Any:
        """Return the summed loss and its parts, or the summed divergence from a teacher's predictions.

        Args:
            hidden: [B, L, d], or this rank's [B, L / tp_size, d].
            labels: all, int64 [B, L].
            taught: hidden states cut as `hidden`, of a head that is cut as this one.
        """
        if labels is None:
            raise ValueError("a head that is cut by vocabulary gives the loss, not logits: pass labels")
        hidden = enter(hidden, self._group, self._sequence_parallel).flatten(0, -2)
        if taught is not None:
            theirs = enter(taught.hidden, self._group, self._sequence_parallel).flatten(0, -2)
            return linear_divergence(hidden, self.weight, labels.flatten(), taught._replace(hidden=theirs), self)
        return linear_losses(hidden, self.weight, labels.flatten(), self, self.z_loss)

    @property
    def first_id(self) -> int:
        """The token id of this rank's first row."""
        return self._shard.bounds[self._shard.rank][0]

    @property
    def most_rows(self) -> int:
        """Rows of the rank that holds most."""
        return max(stop - start for start, stop in self._shard.bounds)

    def least(self, number: int) -> int:
        """Return the smallest of the ranks' numbers; a collective call, the first time for each number."""
        if number not in self._least:
            smallest = torch.tensor(number, device=self.weight.device)
            dist.all_reduce(smallest, dist.ReduceOp.MIN, group=self._group)
            self._least[number] = int(smallest)
        return self._least[number]

    def log_normaliser(self, local: Tensor) -> Tensor:
        """Return the log-sum-exp over the whole vocabulary from this rank's, [n] each."""
        return torch.logsumexp(all_gather(self._group, local[None], 0), dim=0)

    def total(self, local: Tensor) -> Tensor:
        """All-reduce over the ranks."""
        return all_reduce(self._group, local)
