"""Attention maps in blocks of rows, for analysis that cannot hold a whole map."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deconattn.ops import reference


class MapBlock(NamedTuple):
    """Rows start .. stop - 1 of a map, and their activations before the softmax.

    Attributes:
        weights: [R, heads, stop - start, stop]: the map is causal, so no key from `stop` on has a weight.
        scores: [R, heads, n, m], over all blocks each activation once, -inf where there is none; None where a mixer
            has none to show.
    """

    weights: Tensor
    scores: Tensor | None

    @property
    def start(self) -> int:
        """The first row."""
        return self.stop - self.weights.shape[-2]

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.weights.shape[-1]


def cut(whole: Tensor, size: int) -> Iterator[MapBlock]:
    """Cut a map [R, heads, L, L] into blocks of `size` rows, the last maybe fewer."""
    for start, stop in _spans(whole.shape[-1], size):
        yield MapBlock(whole[..., start:stop, :stop], None)


def softmax_blocks(queries: Tensor, keys: Tensor, documents: Tensor | None, size: int) -> Iterator[MapBlock]:
    """Yield blocks of :func:`deconattn.ops.reference.softmax_map` and scores s_ij; Q and K [R, heads, L, head_dim]."""
    for scores, _ in _scores(queries, keys, documents, size):
        yield MapBlock(scores.softmax(dim=-1), scores)


def taylor_blocks(queries: Tensor, keys: Tensor, documents: Tensor | None, size: int) -> Iterator[MapBlock]:
    """Yield blocks of :func:`deconattn.ops.reference.taylor_map` and its polynomial's arguments s_ij."""
    for scores, hidden in _scores(queries, keys, documents, size):
        weights = (1 + scores + scores.square() / 2).masked_fill(hidden, 0)
        yield MapBlock(weights / weights.sum(dim=-1, keepdim=True), scores)


def product_blocks(queries: Tensor, keys: Tensor, documents: Tensor | None, size: int) -> Iterator[MapBlock]:
    """Yield blocks of the map that is q_i.k_j divided by its sum; nonnegative features [R, heads, L, x]."""
    for start, stop in _spans(queries.shape[-2], size):
        products = queries[..., start:stop, :] @ keys[..., :stop, :].transpose(-1, -2)
        weights = products.masked_fill(_hidden(start, stop, documents, queries.device), 0)
        yield MapBlock(weights / weights.sum(dim=-1, keepdim=True), None)


def prefix_blocks(token_scores: Tensor, documents: Tensor | None, size: int) -> Iterator[MapBlock]:
    """Yield blocks of :func:`deconattn.ops.reference.prefix_map` and their token scores, given [R, heads, L]."""
    for start, stop in _spans(token_scores.shape[-1], size):
        hidden = _hidden(start, stop, documents, token_scores.device)
        rows = token_scores[..., None, :stop].masked_fill(hidden, -math.inf)
        yield MapBlock(rows.softmax(dim=-1), token_scores[..., start:stop, None])


def _scores(queries: Tensor, keys: Tensor, documents: Tensor | None, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (s_ij, -inf where key j is hidden from query i; the mask of what is hidden), block by block."""
    for start, stop in _spans(queries.shape[-2], size):
        hidden = _hidden(start, stop, documents, queries.device)
        scores = reference.scores(queries[..., start:stop, :], keys[..., :stop, :])
        yield scores.masked_fill(hidden, -math.inf), hidden


def _spans(length: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _hidden(start: int, stop: int, documents: Tensor | None, device: torch.device) -> Tensor:
    """Return where keys are hidden, bool [.., stop - start, stop]: not :func:`deconattn.ops.reference.allowed`."""
    columns = torch.arange(stop, device=device)
    hidden = columns > columns[start:, None]
    if documents is None:
        return hidden
    return hidden | (documents[..., start:stop, None] != documents[..., None, :stop])
