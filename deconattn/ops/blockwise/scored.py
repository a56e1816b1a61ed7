"""Causal attention whose scores get more than products, or whose weights are no softmax: a tile of queries at a time.

Both passes go over the same tiles of queries, each with all keys that it may see: a window's tiles see few. Scores are
in base 2, whose exponential a CPU computes faster.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import threshold

from deconattn.ops.blockwise.heads import BF16_HEADS, empty_heads, inner_products, one_at_a_time, row_groups
from deconattn.ops.blockwise.tiles import Visibility, scaled, tiles
from deconattn.ops.cached_attention import NOTHING
from deconattn.ops.compiling import outside_graphs
from deconattn.ops.matmul import matmul, scaled_matmul
from deconattn.ops.precision import at_least_fp32

STRIP = 32
"""Queries of a tile that levels are taken relative to one of."""


class Rule(NamedTuple):
    """How scores become weights, and what is hidden beside the future and other documents.

    Attributes:
        sigmoid: weights are the sigmoids of the scores, not their softmax.
        window: tokens that a query sees, itself the last; 0: all.
        sinks: first tokens of a document that are seen from everywhere in it.
    """

    sigmoid: bool = False
    window: int = 0
    sinks: int = 0


@outside_graphs
def scored_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    document_ids: Tensor | None,
    levels: Tensor | None,
    offsets: Tensor | None,
    rule: Rule,
) -> Tensor:
    """:func:`deconattn.ops.scored_attention.scored_attention`."""
    return _Scored.apply(queries, keys, values, document_ids, levels, offsets, rule)


class _Scored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        document_ids: Tensor | None,
        levels: Tensor | None,
        offsets: Tensor | None,
        rule: Rule,
    ) -> Tensor:
        assert not (rule.sigmoid and levels is not None)
        mixed = empty_heads(values, queries.shape[1])
        lse = None if rule.sigmoid else at_least_fp32(queries).new_empty(queries.shape[:-1])
        factor = _factor(queries)
        q, k, v = scaled(queries, factor)[0], keys.contiguous(), values.contiguous()
        for tile in _tiles(q, k, document_ids, rule):
            scores = tile.scores(q, k, levels, offsets)
            if lse is None:
                weights = _sigmoid_(scores)
            else:
                top = scores.amax(dim=-1, keepdim=True)
                weights = _exp2_(scores.sub_(top), levels)
                total = weights.sum(dim=-1, keepdim=True)
                weights.div_(total)
                tile.of_queries(lse).copy_(tile.heads(top.add_(total.log2_()).squeeze(-1)))
            tile.of_queries(mixed).copy_(tile.heads(matmul(weights.to(v.dtype), tile.of_keys(v))))
        ctx.save_for_backward(queries, keys, values, document_ids, levels, offsets, mixed, lse)
        ctx.rule = rule
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, document_ids, levels, offsets, mixed, lse = ctx.saved_tensors
        wanted = levels is not None and ctx.needs_input_grad[4]
        factor = _factor(queries)
        (q, scale), k, v, grad = scaled(queries, factor), keys.contiguous(), values.contiguous(), grad.contiguous()
        # Levels are added up over rows, whose gradients must sum to zero as exactly as they can.
        delta = None if lse is None or wanted else inner_products(grad, mixed)
        grad_queries = torch.empty_like(queries)
        grad_keys, grad_values = (torch.zeros_like(at_least_fp32(one)) for one in (k, v))
        grad_levels = levels.new_zeros(queries.shape[:-1]) if wanted else None
        for tile in _tiles(q, k, document_ids, ctx.rule):
            scores = tile.scores(q, k, levels, offsets)
            weights = _sigmoid_(scores) if lse is None else _exp2_(scores.sub_(tile.rows_of(lse)[..., None]), levels)
            if wanted:
                weights.div_(weights.sum(dim=-1, keepdim=True))  # lse is rounded
            upstream = tile.rows_of(grad)
            tile.add_to_keys(grad_values, matmul(weights.to(v.dtype).mT, upstream))
            grad_scores = at_least_fp32(matmul(upstream, tile.of_keys(v).mT))
            if lse is None:
                grad_scores.mul_(weights).mul_(weights.neg_().add_(1))
            elif delta is not None:
                grad_scores.sub_(tile.rows_of(delta)[..., None]).mul_(weights)
            else:
                grad_scores.mul_(weights)
                grad_scores.sub_(weights.mul_(grad_scores.sum(dim=-1, keepdim=True)))
            if grad_levels is not None:
                tile.add_to_levels(grad_levels, grad_scores)
            narrow = grad_scores.to(q.dtype)
            of_queries = at_least_fp32(matmul(narrow, tile.of_keys(k))).mul_(factor * math.log(2))
            tile.of_queries(grad_queries).copy_(tile.heads(of_queries))
            tile.add_to_keys(grad_keys, matmul(narrow.mT, tile.rows_of(q)))
        grad_keys.mul_(scale * math.log(2))
        of_levels = None if grad_levels is None else grad_levels.sum_to_size(levels.shape)
        return grad_queries, grad_keys.to(keys.dtype), grad_values.to(values.dtype), None, of_levels, None, None


class _Tile:
    """Some queries of some heads, the keys that they see, and what of those is hidden.

    Heads that share keys lie behind one another: rows of a tile are [N, group T, ..], N the rows' key heads.
    """

    def __init__(self, rows: slice, shared: slice, group: int, here: slice, seen: "_Seen") -> None:
        self.rows, self.shared, self.here, self.seen = rows, shared, here, seen
        self.heads_here = slice(shared.start * group, shared.stop * group)
        self.group = group

    def of_queries(self, tensor: Tensor) -> Tensor:
        """Return the tile's part of [R, heads, L, ..]."""
        return tensor[self.rows, self.heads_here, self.here]

    def rows_of(self, tensor: Tensor) -> Tensor:
        """Return it as rows, [N, group T, ..]."""
        part = self.of_queries(tensor).unflatten(1, (-1, self.group))
        return part.flatten(2, 3).flatten(0, 1)

    def heads(self, rows: Tensor) -> Tensor:
        """Return rows of the tile as its part of all heads: [N, group T, ..] -> [R', heads', T, ..]."""
        count = self.shared.stop - self.shared.start
        return rows.unflatten(0, (-1, count)).unflatten(2, (self.group, -1)).flatten(1, 2)

    def of_keys(self, tensor: Tensor) -> Tensor:
        """Return what the tile sees of [R, key_value_heads, L, x], the sinks first: [N, n, x]."""
        served = tensor[self.rows, self.shared]
        part = served[:, :, self.seen.keys]
        if self.seen.sinks is not None:
            index = self.seen.sinks[:, None, :, None].expand(-1, served.shape[1], -1, served.shape[3])
            part = torch.cat([served.gather(2, index), part], dim=2)
        return part.flatten(0, 1)

    def add_to_keys(self, total: Tensor, found: Tensor) -> None:
        """Add [N, n, x], as :meth:`of_keys` gives it, to [R, key_value_heads, L, x]."""
        served = total[self.rows, self.shared]
        part = found.unflatten(0, served.shape[:2])
        if self.seen.sinks is not None:
            count = self.seen.sinks.shape[1]
            index = self.seen.sinks[:, None, :, None].expand(-1, served.shape[1], -1, served.shape[3])
            served.scatter_add_(2, index, part[:, :, :count].to(served.dtype))
            part = part[:, :, count:]
        served[:, :, self.seen.keys] += part

    def scores(self, queries: Tensor, keys: Tensor, levels: Tensor | None, offsets: Tensor | None) -> Tensor:
        """Return the tile's scores in base 2, [N, group T, n], in at least fp32, hidden ones -inf."""
        q, k = self.rows_of(queries), self.of_keys(keys)
        scale = 1.0 if queries.dtype in (torch.float32, torch.float64) else _factor(queries)
        out = q.new_empty(len(q), q.shape[1], k.shape[1]) if scale != 1 else None
        products = matmul(q, k.mT) if out is None else scaled_matmul(q, k.mT, scale, out)
        scores = at_least_fp32(products)
        tile = self.heads(scores)
        if levels is not None:
            some = levels if len(levels) == 1 else levels[self.rows]
            some = some[:, self.heads_here]
            seen = some[..., self.seen.keys]
            for start in range(0, tile.shape[2], STRIP):
                stop = min(start + STRIP, tile.shape[2])
                # Relative to a query's near by: what is far, and so not exact in fp32, hardly counts for softmax.
                last = self.here.start + stop - 1
                relative = (seen - some[..., last : last + 1]).to(tile.dtype).div_(math.log(2))
                tile[:, :, start:stop].add_(relative[:, :, None])
        if offsets is not None:
            some = offsets if len(offsets) == 1 else offsets[self.rows]
            tile.add_(some[:, None, self.here, None].to(tile.dtype) / math.log(2))
        self.seen.hide_(tile)
        return scores

    def add_to_levels(self, total: Tensor, grad_scores: Tensor) -> None:
        total[self.rows, self.heads_here, self.seen.keys] += self.heads(grad_scores).sum(dim=2, dtype=total.dtype)


class _Seen:
    """The keys that a tile of queries may see: a run of them, and before it the sinks where it does not reach to them.

    Attributes:
        keys: the run.
        sinks: int64 [rows, s], or None.
    """

    def __init__(self, visible: Visibility, here: slice, rule: Rule, like: Tensor) -> None:
        first = visible.first_key(here.start)
        if rule.window:
            first = max(first, here.start - rule.window + 1)
        self.keys = slice(first, here.stop)
        self.sinks: Tensor | None = None
        self._hides: Tensor
        device, dtype = like.device, at_least_fp32(like.new_empty(0)).dtype
        queries = torch.arange(here.start, here.stop, device=device)[:, None]
        if not rule.window and visible.starts is None:
            # Above the diagonal of the last keys, which are the queries' own, lies the future.
            self._hides = torch.full((len(queries), len(queries)), -math.inf, dtype=dtype, device=device).triu_(1)
            return
        keys = torch.arange(first, here.stop, device=device)[None]
        starts = queries.new_zeros(1, len(queries), 1) if visible.starts is None else visible.starts[:, here, None]
        hidden = (keys > queries) | (keys < starts)
        if rule.window:
            hidden |= (keys <= queries - rule.window) & (keys >= starts + rule.sinks)
            if first > 0 and rule.sinks:
                # Of the documents of these queries only one began before the run.
                begun = starts.new_zeros(1, 1) if visible.starts is None else visible.starts[:, first, None]
                index = begun + torch.arange(rule.sinks, device=device)
                hidden = torch.cat([(index >= first)[:, None] | (starts != begun[..., None]), hidden], dim=-1)
                self.sinks = index.clamp(max=first)
        self._hides = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)[:, None]

    def hide_(self, tile: Tensor) -> None:
        """Make hidden pairs of [R', heads, T, n] -inf."""
        tile[..., tile.shape[-1] - self._hides.shape[-1] :].add_(self._hides)


def _tiles(queries: Tensor, keys: Tensor, document_ids: Tensor | None, rule: Rule) -> Iterator[_Tile]:
    heads, group = keys.shape[1], queries.shape[1] // keys.shape[1]
    at_once = heads
    if one_at_a_time(queries.device):
        at_once = BF16_HEADS if queries.dtype == torch.bfloat16 else 1
    visible = Visibility.of(queries.shape[2], document_ids)
    for rows in row_groups(queries):
        of_rows = visible.rows(rows, 1)
        for start, stop in tiles(queries.shape[2]):
            here = slice(start, stop)
            seen = _Seen(of_rows, here, rule, queries)
            if seen.sinks is not None and len(seen.sinks) == 1:
                seen.sinks = seen.sinks.expand(len(queries[rows]), -1)
            for first in range(0, heads, at_once):
                yield _Tile(rows, slice(first, min(first + at_once, heads)), group, here, seen)


def _sigmoid_(scores: Tensor) -> Tensor:
    """Sigmoid of scores in base 2, in their place."""
    return scores.mul_(math.log(2)).sigmoid_()


def _exp2_(scores: Tensor, levels: Tensor | None) -> Tensor:
    """2^score, in their place; where levels make many all but vanish, 0: a CPU takes long over denormal numbers."""
    weights = scores.exp2_()
    return weights if levels is None else threshold(weights, NOTHING, 0.0, inplace=True)


def _factor(queries: Tensor) -> float:
    """From products of queries and keys to scores in base 2."""
    return 1 / math.sqrt(queries.shape[-1]) / math.log(2)
