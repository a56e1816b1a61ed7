"""Batches whose rows have padding."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
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
        """Build from a mask bool [B, L], false at padding, which may be anywhere; None if there is none."""
        if mask.all():
            return None
        order = (~mask).long().argsort(dim=1, stable=True)
        return cls(mask.gather(1, order), order)

    def pack(self, columns: Tensor) -> Tensor:
        """Reorder [B, L] or [B, L, d] from the caller's columns: real tokens first."""
        return _reordered(columns, self.order)

    def unpack(self, hidden: Tensor) -> Tensor:
        """Reorder [B, L, d] back into the caller's columns."""
        return _reordered(hidden, self.order.argsort(dim=1))

    def unpack_map(self, weights: Tensor) -> Tensor:
        """Reorder a map [B, heads, L, L] back into the caller's rows and columns, zero where either is padding."""
        inverse, real = (one.to(weights.device) for one in (self.order.argsort(dim=1), self.real[:, None]))
        weights = weights * (real[..., None] & real[:, :, None])
        weights = weights.gather(2, inverse[:, None, :, None].expand_as(weights))
        return weights.gather(3, inverse[:, None, None].expand_as(weights))


def _reordered(columns: Tensor, order: Tensor) -> Tensor:
    order = order.to(columns.device)
    return columns.gather(1, order if columns.ndim == 2 else order[..., None].expand_as(columns))
