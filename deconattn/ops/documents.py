"""Document boundaries of packed rows: the one description that every mixing path reads."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Documents:
    """Document boundaries of packed rows; mixing stays within a document.

    Attributes:
        ids: int64 [R, L], non-decreasing along a row; equal ids are one document.
        position_ids: int64 [R, L], the position within the document.
    """

    ids: Tensor
    position_ids: Tensor

    def rows(self, count: int) -> "Documents":
        """The first `count` rows."""
        if count == len(self.ids):  # keeps what is cached
            return self
        return Documents(self.ids[:count], self.position_ids[:count])

    def to(self, device: torch.device) -> "Documents":
        """The same on a device."""
        if self.ids.device == torch.device(device):  # keeps what is cached
            return self
        return Documents(self.ids.to(device), self.position_ids.to(device))

    @cached_property
    def causal_mask(self) -> Tensor:
        """bool [R, 1, L, L], true where query i may see key j: same document and j <= i.

        Cached: one mask serves every layer of a forward pass.
        """
        same = self.ids[:, None, :, None] == self.ids[:, None, None, :]
        return same.tril_()

    @cached_property
    def cumulative_lengths(self) -> Tensor:
        """int32 [documents + 1]: where each document starts in the rows laid end to end, and the end."""
        starts = torch.ones_like(self.ids, dtype=torch.bool)
        starts[:, 1:] = self.ids[:, 1:] != self.ids[:, :-1]
        indices = starts.flatten().nonzero().squeeze(1)
        end = torch.tensor([self.ids.numel()], device=indices.device)
        return torch.cat([indices, end]).to(torch.int32)
