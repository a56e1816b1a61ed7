"""Blocks of :mod:`deconattn.ops.ring_attention` a tile at a time."""

from dataclasses import dataclass

from torch import Tensor

from deconattn.ops.blockwise import attention, softmax
from deconattn.ops.blockwise.tiles import Visibility
from deconattn.ops.documents import Documents


def forward(
    queries: Tensor, keys: Tensor, values: Tensor, causal: bool, documents: Documents | None
) -> tuple[Tensor, Tensor]:
    """:func:`deconattn.ops.ring_attention.attend`."""
    return attention.forward(softmax, queries, keys, values, _visible(queries, keys, causal, documents))


def backward(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mixed: Tensor,
    lse: Tensor,
    grad: Tensor,
    causal: bool,
    documents: Documents | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`deconattn.ops.ring_attention.gradients`."""
    visible = _visible(queries, keys, causal, documents)
    return attention.backward(softmax, queries, keys, values, mixed, lse, grad, visible)


@dataclass(frozen=True)
class _Everything(Visibility):
    """Visibility of all `length` keys from all queries.

    Attributes:
        queries: how many there are.
    """

    queries: int = 0

    def rows(self, rows: slice, heads: int) -> Visibility:
        return self

    def seen(self, start: int, stop: int) -> slice:
        return slice(0, self.length)

    def seeing(self, start: int, stop: int) -> slice:
        return slice(0, self.queries)

    def hide_(self, tile: Tensor, queries: slice, keys: slice, value: float) -> Tensor:
        return tile

    def hide_from_keys_(self, tile: Tensor, queries: slice, keys: slice, value: float, keys_first: bool) -> Tensor:
        return tile


def _visible(queries: Tensor, keys: Tensor, causal: bool, documents: Documents | None) -> Visibility:
    if causal:
        return Visibility.of(queries.shape[2], None if documents is None else documents.ids)
    return _Everything(keys.shape[2], queries=queries.shape[2])
