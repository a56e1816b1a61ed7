"""Attention with the exponential's second-order Taylor series (approximate; paper, equation 6), linear in L.

w_ij = 1 + s + s^2/2 with s = q_i.k_j is a dot product of features, w_ij = phi(q_i).C.phi(k_j), so that
o_i = sum_j w_ij v_j / sum_j w_ij needs of all earlier keys only the state S = C sum_j phi(k_j) v'_j^T, v' = [v, 1].
(q carries the 1 / sqrt(head_dim).) phi(x) = [1, x] and the products x_a x_b: dimensions are cut into blocks of
`BLOCK`, and a block is multiplied with itself and the blocks after it, so of each pair of blocks one order is kept.
C is 1 for those, and 1/2 for pairs within a block, where both orders are present.

The sequence is cut into chunks. Within one, w is a causal [CHUNK, CHUNK] tile; everything before it is the state
that the chunk inherits. States and tiles are computed again in the backward pass. With g_i = do_i / z_i,
c_i = (do_i.o_i) / z_i and g' = [g, -c], the gradient of w_ij is g'_i.v'_j, and
    dq_i follows from dphi(q_i) = S g'_i,  and with the reverse state T = C sum_i phi(q_i) g'_i^T of later queries
    dv'_j = T^T phi(k_j),  dk_j follows from dphi(k_j) = T v'_j.

A document's tokens are consecutive, so the index of its first token tells all: `starts` [R, 1, L]. A state has the
keys of one document only, that of the last token before the chunk (in reverse, of the first token after it).

Rows may follow others, whose part of the first token's document they know by its sums: P_f = sum_j phi(k_j)_f v'_j^T of
each product once, without C. They are the state that the first chunk inherits, and T after the first token, both orders
of a pair together, is the gradient of P. As a function of the keys P has the gradients that S has, G in T's place: G is
that of P, of each product in one order.

Everything is at least fp32: a weight is a sum of products of either sign, which may cancel.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from deconattn.ops.blockwise.by_hand import Context, Passes
from deconattn.ops.blockwise.tiles import Visibility
from deconattn.ops.compiling import outside_graphs
from deconattn.ops.precision import at_least_fp32

CHUNK = 256
"""Tokens that mix by their whole map. Features of a chunk are 10 times its inputs at head_dim 64: shorter saves
memory, longer saves kernel launches."""
BLOCK = 16
"""Dimensions multiplied together: 2560 products at head_dim 64, where the fewest would be 2080."""


@outside_graphs
def taylor_states_attention(
    queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None
) -> Tensor:
    """o_i = sum_{j<=i} w_ij v_j / sum_{j<=i} w_ij with w = 1 + s + s^2/2, s = q.k / sqrt(head_dim).

    Args:
        queries: [R, heads, L, head_dim].
        keys, values: [R, key_value_heads, L, head_dim].
        document_ids: int64 [R, L] or None; mixing stays within a document. A document's tokens are consecutive.

    Returns:
        [R, heads, L, head_dim] in the values' dtype.
    """
    return _TaylorStates.apply(*_by_key_head(queries, keys, values, document_ids), None).flatten(1, 2)


@outside_graphs
def following_attention(
    queries: Tensor, keys: Tensor, values: Tensor, sums: Tensor, document_ids: Tensor | None = None
) -> Tensor:
    """:func:`deconattn.ops.taylor_scan.following_attention`."""
    queries, keys, values, starts = _by_key_head(queries, keys, values, document_ids)
    if starts is not None:
        starts = starts - (starts == 0).to(starts.dtype)  # the first document begins before the first chunk
    return _TaylorStates.apply(queries, keys, values, starts, sums).flatten(1, 2)


@outside_graphs
def last_sums(keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """:func:`deconattn.ops.taylor_scan.last_sums`."""
    starts = Visibility.of(keys.shape[2], document_ids).starts
    return _LastSums.apply(keys, values, None if starts is None else starts[:, -1:, None])


def passes(queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None = None) -> Passes:
    """:func:`taylor_states_attention` where autograd records nothing."""
    context = Context()
    output = _TaylorStates.forward(context, *_by_key_head(queries, keys, values, document_ids), None)

    def gradients(grad: Tensor) -> tuple[Tensor, ...]:
        grad_queries, *others, _, _ = _TaylorStates.backward(context, grad.unflatten(1, output.shape[1:3]))
        return grad_queries.flatten(1, 2), *others

    return Passes(output.flatten(1, 2), gradients)


def _by_key_head(
    queries: Tensor, keys: Tensor, values: Tensor, document_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What :class:`_TaylorStates` takes."""
    starts = Visibility.of(queries.shape[2], document_ids).starts
    starts = None if starts is None else starts[:, None]
    return queries.unflatten(1, (-1, queries.shape[1] // keys.shape[1])), keys, values, starts


class _TaylorStates(torch.autograd.Function):
    """q [R, k, group, L, x], k and v [R, k, L, x], starts [R, 1, L], sums P or None -> [R, k, group, L, x]."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, starts: Tensor | None, sums: Tensor | None
    ) -> Tensor:
        mixed = torch.empty_like(queries)
        normaliser = at_least_fp32(queries).new_empty(queries.shape[:-1])
        state = _State(queries.shape[-1])
        state.follow(sums)
        for chunk in _chunks(queries.shape[-2]):
            q, k, v = _scaled(queries[..., chunk, :]), at_least_fp32(keys[..., chunk, :]), _extended(values, chunk)
            hidden = _hidden(chunk, starts, queries.device)
            s = _grouped(q, k.transpose(-1, -2))
            total = _grouped(_weights(s, hidden), v)
            total += state.read(q) * _inherits(chunk, starts, total)[..., None, :, None]
            normaliser[..., chunk] = total[..., -1]
            mixed[..., chunk, :] = total[..., :-1] / total[..., -1:]
            state.forget(_continues(chunk, starts, v))
            state.add(k, v * _passes_on(chunk, starts, v)[..., None])
        ctx.save_for_backward(queries, keys, values, starts, mixed, normaliser, sums)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, Tensor | None]:
        queries, keys, values, starts, mixed, normaliser, sums = ctx.saved_tensors
        scale = 1 / math.sqrt(queries.shape[-1])
        grad_queries, grad_keys, grad_values = map(torch.empty_like, (queries, keys, values))
        earlier, later = _State(queries.shape[-1]), _State(queries.shape[-1])
        earlier.follow(sums)
        chunks = list(_chunks(queries.shape[-2]))

        for chunk in chunks:
            q, k, v = _scaled(queries[..., chunk, :]), at_least_fp32(keys[..., chunk, :]), _extended(values, chunk)
            g = _upstream(grad, mixed, normaliser, chunk)
            hidden = _hidden(chunk, starts, queries.device)
            grad_scores = _grad_scores(q, k, v, g, hidden)
            inherited = earlier.read_backward(q, g * _inherits(chunk, starts, v)[..., None, :, None])
            grad_queries[..., chunk, :] = (_grouped(grad_scores, k) + inherited) * scale
            earlier.forget(_continues(chunk, starts, v))
            earlier.add(k, v * _passes_on(chunk, starts, v)[..., None])

        for chunk in reversed(chunks):
            q, k, v = _scaled(queries[..., chunk, :]), at_least_fp32(keys[..., chunk, :]), _extended(values, chunk)
            g = _upstream(grad, mixed, normaliser, chunk)
            hidden = _hidden(chunk, starts, queries.device)
            passes_on = _passes_on(chunk, starts, v)[..., None]
            weights = _weights(_grouped(q, k.transpose(-1, -2)), hidden)
            grad_values[..., chunk, :] = (_summed(weights, g) + later.read(k) * passes_on)[..., :-1]
            grad_scores = _grad_scores(q, k, v, g, hidden)
            grad_keys[..., chunk, :] = _summed(grad_scores, q) + later.read_backward(k, v * passes_on)
            later.forget(_continues(chunk, starts, v))
            g = g * _inherits(chunk, starts, v)[..., None, :, None]
            later.add(q.flatten(-3, -2), g.flatten(-3, -2))

        return grad_queries, grad_keys, grad_values, None, None if sums is None else later.gradient()


class _LastSums(torch.autograd.Function):
    """k and v [R, k, L, x], the first token that counts [R, 1, 1] or None -> P [R, k, features, x + 1]."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, values: Tensor, first: Tensor | None) -> Tensor:
        ctx.save_for_backward(keys, values, first)
        state = _State(keys.shape[-1])
        for chunk in _chunks(keys.shape[-2]):
            state.add(at_least_fp32(keys[..., chunk, :]), _counted(_extended(values, chunk), chunk, first))
        return state.sums()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        keys, values, first = ctx.saved_tensors
        grad_keys, grad_values = torch.empty_like(keys), torch.empty_like(values)
        state = _State(keys.shape[-1])
        state.take(grad)
        for chunk in _chunks(keys.shape[-2]):
            k, v = at_least_fp32(keys[..., chunk, :]), _counted(_extended(values, chunk), chunk, first)
            grad_keys[..., chunk, :] = state.read_backward(k, v)
            grad_values[..., chunk, :] = _counted(state.read(k), chunk, first)[..., :-1]
        return grad_keys, grad_values, None


class _State:
    """C sum_j phi(x_j) y_j^T of one document's tokens, a [.., features, n] tensor for each block of features."""

    def __init__(self, head_dim: int) -> None:
        self.blocks: list[Tensor] = []
        self._head_dim = head_dim
        self._firsts = range(0, head_dim, BLOCK)

    def add(self, x: Tensor, y: Tensor) -> None:
        """x [.., T, head_dim], y [.., T, n]."""
        sums = [_low_orders(x).transpose(-1, -2) @ y]
        for first in self._firsts:
            products = _products(x, first).flatten(-2).transpose(-1, -2) @ y
            within = products.unflatten(-2, (-1, x.shape[-1] - first))[..., :BLOCK, :]
            within *= 0.5
            sums.append(products)
        self.blocks = [old + new for old, new in zip(self.blocks, sums, strict=True)] if self.blocks else sums

    def follow(self, sums: Tensor | None) -> None:
        """Begin with the keys of which these are P, [.., features, n]; None: with none."""
        if sums is not None:
            places, factors, _ = _layout(self._head_dim, sums.device)
            self._cut(sums.index_select(-2, places) * factors.to(sums.dtype))

    def take(self, gradient: Tensor) -> None:
        """Begin with the gradient of P."""
        places, _, firsts = _layout(self._head_dim, gradient.device)
        whole = gradient.new_zeros(*gradient.shape[:-2], len(places), gradient.shape[-1])
        self._cut(whole.index_copy_(-2, firsts, gradient))

    def sums(self) -> Tensor:
        """Return P, [.., features, n]."""
        _, factors, firsts = _layout(self._head_dim, self.blocks[0].device)
        whole = torch.cat(self.blocks, dim=-2)
        return whole.index_select(-2, firsts) / factors[firsts].to(whole.dtype)

    def gradient(self) -> Tensor:
        """Return the gradient of P, where this is the state of all that read it."""
        places, _, firsts = _layout(self._head_dim, self.blocks[0].device)
        whole = torch.cat(self.blocks, dim=-2)
        sums = whole.new_zeros(*whole.shape[:-2], len(firsts), whole.shape[-1])
        return sums.index_add_(-2, places, whole)

    def _cut(self, whole: Tensor) -> None:
        widths = [min(BLOCK, self._head_dim - first) * (self._head_dim - first) for first in self._firsts]
        self.blocks = list(whole.split([1 + self._head_dim, *widths], dim=-2))

    def forget(self, keep: Tensor) -> None:
        """Multiply by `keep`, 0 or 1, [.., 1, 1]."""
        self.blocks = [block * keep for block in self.blocks]

    def read(self, x: Tensor) -> Tensor:
        """sum_j w(x, x_j) y_j, [.., T, head_dim] -> [.., T, n] (0 of no tokens). The state may lack x's group."""
        if not self.blocks:
            return x.new_zeros(())
        low, *second = (_like(block, x) for block in self.blocks)
        total = _low_orders(x) @ low
        for first, block in zip(self._firsts, second, strict=True):
            total += _products(x, first).flatten(-2) @ block
        return total

    def read_backward(self, x: Tensor, grad: Tensor) -> Tensor:
        """The gradient of `x` from that of what it read, [.., T, n] -> [.., T, head_dim]."""
        grad_x = torch.zeros_like(x)
        if not self.blocks:
            return grad_x
        low, *second = (_like(block, x).transpose(-1, -2) for block in self.blocks)
        grad_x += (grad @ low)[..., 1:]
        for first, block in zip(self._firsts, second, strict=True):
            left, right = x[..., first : first + BLOCK], x[..., first:]
            products = (grad @ block).unflatten(-1, (left.shape[-1], right.shape[-1]))
            grad_x[..., first : first + BLOCK] += (products @ right[..., None])[..., 0]
            grad_x[..., first:] += (left[..., None, :] @ products)[..., 0, :]
        return grad_x


@cache
@torch.inference_mode(False)
def _layout(head_dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where the blocks of a state have P's products: of each feature in blocks, laid end to end, its place in P.

    Returns:
        Places int64 [features in blocks]; C, fp64 [features in blocks, 1]; of each place the first feature there,
        int64 [features].
    """
    low = range(1 + head_dim)
    pairs = [(0, a) for a in low]
    factors = [1.0 for _ in low]
    for first in range(0, head_dim, BLOCK):
        last = min(first + BLOCK, head_dim)
        for a in range(first, last):
            pairs += [(1 + min(a, b), 1 + max(a, b)) for b in range(first, head_dim)]
            factors += [0.5 if b < last else 1.0 for b in range(first, head_dim)]
    number: dict[tuple[int, int], int] = {}
    firsts: list[int] = []
    for index, pair in enumerate(pairs):
        if number.setdefault(pair, len(number)) == len(firsts):
            firsts.append(index)
    places = torch.tensor([number[pair] for pair in pairs], device=device)
    scale = torch.tensor(factors, dtype=torch.float64, device=device)[:, None]
    return places, scale, torch.tensor(firsts, device=device)


def _low_orders(x: Tensor) -> Tensor:
    return pad(x, (1, 0), value=1.0)


def _products(x: Tensor, first: int) -> Tensor:
    """A block of dimensions by itself and those after it: [.., T, x] -> [.., T, BLOCK, x - first]."""
    return x[..., first : first + BLOCK, None] * x[..., None, first:]


def _like(block: Tensor, x: Tensor) -> Tensor:
    """Add an axis for the group to `block` where x [R, k, group, T, x] has one."""
    return block if block.ndim == x.ndim else block.unsqueeze(-3)


def _grouped(grouped: Tensor, shared: Tensor) -> Tensor:
    """[R, k, group, L, x] @ [R, k, x, n] -> [R, k, group, L, n], the shared operand not repeated."""
    return (grouped.flatten(-3, -2) @ shared).unflatten(-2, grouped.shape[-3:-1])


def _summed(left: Tensor, right: Tensor) -> Tensor:
    """Sum over group of [R, k, group, L, n]^T @ [R, k, group, L, x] -> [R, k, n, x]."""
    return left.flatten(-3, -2).transpose(-1, -2) @ right.flatten(-3, -2)


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, CHUNK):
        yield slice(start, min(start + CHUNK, length))


def _scaled(queries: Tensor) -> Tensor:
    return at_least_fp32(queries) / math.sqrt(queries.shape[-1])


def _extended(values: Tensor, chunk: slice) -> Tensor:
    """v' = [v, 1]."""
    return pad(at_least_fp32(values[..., chunk, :]), (0, 1), value=1.0)


def _counted(tokens: Tensor, chunk: slice, first: Tensor | None) -> Tensor:
    """[R, k, C, n] with zeros for tokens before the first that counts."""
    if first is None:
        return tokens
    index = torch.arange(chunk.start, chunk.stop, device=tokens.device)
    return tokens * (index >= first)[..., None]


def _upstream(grad: Tensor, mixed: Tensor, normaliser: Tensor, chunk: slice) -> Tensor:
    """g' = [do, -do.o] / z."""
    grad, mixed = at_least_fp32(grad[..., chunk, :]), mixed[..., chunk, :]
    delta = (grad * mixed).sum(dim=-1, keepdim=True)
    return torch.cat([grad, -delta], dim=-1) / normaliser[..., chunk, None]


def _weights(s: Tensor, hidden: Tensor) -> Tensor:
    return s.mul(0.5).add_(1).mul_(s).add_(1).masked_fill_(hidden, 0)


def _grad_scores(q: Tensor, k: Tensor, v: Tensor, g: Tensor, hidden: Tensor) -> Tensor:
    """ds_ij = (g'_i.v'_j)(1 + s_ij) within a chunk."""
    s = _grouped(q, k.transpose(-1, -2))
    return _grouped(g, v.transpose(-1, -2)).mul_(s.add_(1)).masked_fill_(hidden, 0)


def _hidden(chunk: slice, starts: Tensor | None, device: torch.device) -> Tensor:
    """bool [.., C, C], or [R, 1, 1, C, C] with documents: keys that a query of the same chunk may not see."""
    index = torch.arange(chunk.start, chunk.stop, device=device)
    hidden = index > index[:, None]
    return hidden if starts is None else hidden | (index < starts[:, None, :, chunk, None])


def _inherits(chunk: slice, starts: Tensor | None, like: Tensor) -> Tensor:
    """[R, 1, C] or a scalar as [1]: 1 for tokens whose document began before the chunk."""
    return like.new_ones(1) if starts is None else (starts[..., chunk] < chunk.start).to(like.dtype)


def _passes_on(chunk: slice, starts: Tensor | None, like: Tensor) -> Tensor:
    """[R, 1, C] or a scalar as [1]: 1 for tokens of the chunk's last document."""
    if starts is None:
        return like.new_ones(1)
    index = torch.arange(chunk.start, chunk.stop, device=like.device)
    return (index >= starts[..., chunk.stop - 1, None]).to(like.dtype)


def _continues(chunk: slice, starts: Tensor | None, like: Tensor) -> Tensor:
    """[R, 1, 1, 1] or a scalar as [1, 1]: 1 where the chunk's last document began before the chunk."""
    if starts is None:
        return like.new_ones(1, 1)
    return (starts[..., chunk.stop - 1, None, None] < chunk.start).to(like.dtype)
