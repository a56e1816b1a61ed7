"""Document boundaries of packed rows: the one description that every mixing path reads."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class Documents:
    """Document boundaries of packed rows; mixing stays within a document.

    Attributes:
        ids: int64 [R, L], non-decreasing along a row; equal ids are one document.
        position_ids: int64 [R, L], the position within the document.
        offsets: int32 [n], where each document starts in the rows laid end to end, and the end. An offset that is
            repeated is that of an empty document, so that n need not change with the number of documents. None: found
            on the device by whoever asks, who waits for it, and whose graph breaks.
    """

    ids: Tensor
    position_ids: Tensor
    offsets: Tensor | None = None
    _causal_mask: Tensor | None = field(default=None, init=False, repr=False)

    def rows(self, count: int) -> "Documents":
        """The first `count` rows."""
        if count == len(self.ids):  # keeps what is cached
            return self
        # The documents of later rows become empty ones at the end.
        offsets = None if self.offsets is None else self.offsets.clamp(max=count * self.ids.shape[1])
        return Documents(self.ids[:count], self.position_ids[:count], offsets)

    def and_rows_of_one(self, position_ids: Tensor) -> "Documents":
        """These rows followed by rows that are one document each, of positions int64 [E, L]."""
        extra, length = position_ids.shape
        if not extra:
            return self
        offsets = self.offsets
        if offsets is not None:
            ends = torch.arange(1, extra + 1, dtype=offsets.dtype, device=offsets.device) * length
            offsets = torch.cat([offsets, ends + self.ids.numel()])
        ids = torch.cat([self.ids, torch.zeros_like(position_ids)])
        return Documents(ids, torch.cat([self.position_ids, position_ids]), offsets)

    def to(self, device: torch.device) -> "Documents":
        """The same on a device."""
        if self.ids.device == torch.device(device):  # keeps what is cached
            return self
        offsets = None if self.offsets is None else self.offsets.to(device)
        return Documents(self.ids.to(device), self.position_ids.to(device), offsets)

    @property
    def causal_mask(self) -> Tensor:
        """bool [R, 1, L, L], true where query i may see key j: same document and j <= i.

        One mask serves every layer of a forward pass, but for compiled layers: each makes it within its graph.
        """
        if torch.compiler.is_compiling():
            return self._new_causal_mask()
        if self._causal_mask is None:
            self._causal_mask = self._new_causal_mask()
        return self._causal_mask

    @property
    def cumulative_lengths(self) -> Tensor:
        """int32 [n]: `offsets`."""
        if self.offsets is None:
            starts = torch.ones_like(self.ids, dtype=torch.bool)
            starts[:, 1:] = self.ids[:, 1:] != self.ids[:, :-1]
            indices = starts.flatten().nonzero().squeeze(1)
            end = torch.tensor([self.ids.numel()], device=indices.device)
            self.offsets = torch.cat([indices, end]).to(torch.int32)
        return self.offsets

    def _new_causal_mask(self) -> Tensor:
        same = self.ids[:, None, :, None] == self.ids[:, None, None, :]
        return same.tril_()
