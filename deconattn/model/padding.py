"""Batches whose rows have padding."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Padding:
    """Rows with their real tokens first and the padding behind them, where causal mixing never sees it.

    Attributes:
        real: bool [B, L], in that order.
        order: int64 [B, L], which column each came from.
    """

    real: Tensor
    order: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> "Padding | None":
        """For bool [B, L], false at padding, which may be anywhere; None if there is none."""
        if mask.all():
            return None
        order = (~mask).long().argsort(dim=1, stable=True)
        return cls(mask.gather(1, order), order)

    def pack(self, columns: Tensor) -> Tensor:
        """[B, L], in the caller's columns -> in this order."""
        return columns.gather(1, self.order)

    def unpack(self, hidden: Tensor) -> Tensor:
        """[B, L, d] -> back into the caller's columns."""
        inverse = self.order.argsort(dim=1)
        return hidden.gather(1, inverse[..., None].expand_as(hidden))
