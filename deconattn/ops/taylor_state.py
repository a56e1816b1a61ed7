"""The running sums of `approximate`: all that it needs of earlier tokens (paper, equation 6).

w_ij = 1 + s + s^2/2 with s = q_i.k_j / sqrt(head_dim) is a dot product of features, phi(q_i).psi(k_j): 1, the x_a,
and the products x_a x_b with a <= b, of which psi doubles none and phi carries the 1/2 where a = b. Of a row and key
head: sum_j psi(k_j) v_j^T, [R, key_value_heads, features, head_dim], and sum_j psi(k_j), [.., features, 1]; at least
fp32, because a weight is a sum of products of either sign, which may cancel.
"""

import math

import torch
from torch import Tensor

from deconattn.ops.cached_attention import by_key_head
from deconattn.ops.precision import at_least_fp32

CHUNK = 128
"""Tokens whose features are held at once: [R, key_value_heads, CHUNK, features] numbers."""


def num_features(head_dim: int) -> int:
    """1, the dimensions, and their products without order."""
    return 1 + head_dim + head_dim * (head_dim + 1) // 2


def state_bytes(head_dim: int, bytes_per_element: int) -> int:
    """Of one row and key head."""
    return max(4, bytes_per_element) * num_features(head_dim) * (head_dim + 1)


def is_smaller(head_dim: int, bytes_per_element: int, tokens: int) -> bool:
    """Whether the sums take fewer bytes than the keys and values of so many tokens."""
    return state_bytes(head_dim, bytes_per_element) < 2 * tokens * head_dim * bytes_per_element


def new_state(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Of no tokens, for keys [R, key_value_heads, .., head_dim]."""
    width = keys.shape[-1]
    shape = *keys.shape[:2], num_features(width)
    precise = at_least_fp32(keys.new_empty(0))
    return precise.new_zeros(*shape, width), precise.new_zeros(*shape, 1)


def add(state: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, real: Tensor | None) -> None:
    """Add T tokens, in place: [R, key_value_heads, T, head_dim] each; real is bool [R, T] or None (all of them)."""
    for start in range(0, keys.shape[2], CHUNK):
        part = slice(start, start + CHUNK)
        psi = _features(keys[:, :, part])
        if real is not None:
            psi = psi * real[:, None, part, None]
        _accumulate(state, psi, values[:, :, part])


def step(state: tuple[Tensor, Tensor], queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Add one token in place and read: queries [R, heads, 1, head_dim] -> [R, heads, 1, head_dim]."""
    _accumulate(state, _features(keys), values)
    numerator, denominator = _read(state, by_key_head(queries, keys.shape[1]))
    return (numerator / denominator).to(values.dtype).reshape(queries.shape)


def extend(state: tuple[Tensor, Tensor], queries: Tensor, keys: Tensor, values: Tensor, real: Tensor | None) -> Tensor:
    """Add T tokens in place; what each reads, itself and all before it: [R, heads, T, head_dim]."""
    mixed = torch.empty_like(queries)
    for start in range(0, keys.shape[2], CHUNK):
        part = slice(start, start + CHUNK)
        q, k = by_key_head(queries[:, :, part], keys.shape[1]), at_least_fp32(keys[:, :, part])
        v = at_least_fp32(values[:, :, part])
        numerator, denominator = _read(state, q)
        s = _scaled(q) @ k.transpose(-1, -2)
        weights = (1 + s + s.square() / 2).unflatten(2, (-1, k.shape[2])).tril().flatten(2, 3)
        numerator += weights @ v
        denominator += weights.sum(dim=-1, keepdim=True)
        mixed[:, :, part] = (numerator / denominator).unflatten(2, (-1, k.shape[2])).flatten(1, 2)
        add(state, keys[:, :, part], values[:, :, part], None if real is None else real[:, part])
    return mixed


def _accumulate(state: tuple[Tensor, Tensor], psi: Tensor, values: Tensor) -> None:
    products, sums = state
    products.flatten(0, 1).baddbmm_(psi.transpose(-1, -2).flatten(0, 1), at_least_fp32(values).flatten(0, 1))
    sums += psi.sum(dim=2)[..., None]


def _read(state: tuple[Tensor, Tensor], queries: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j w_ij v_j [R, key_value_heads, T, head_dim] and sum_j w_ij [.., 1]."""
    phi = _features(_scaled(queries), _halves(queries))
    return phi @ state[0], phi @ state[1]


def _scaled(queries: Tensor) -> Tensor:
    return at_least_fp32(queries) / math.sqrt(queries.shape[-1])


def _features(x: Tensor, factors: Tensor | None = None) -> Tensor:
    """[.., head_dim] -> [.., features]."""
    x = at_least_fp32(x)
    first, second = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    products = x[..., first] * x[..., second]
    return torch.cat([torch.ones_like(x[..., :1]), x, products if factors is None else products * factors], dim=-1)


def _halves(x: Tensor) -> Tensor:
    """What each product counts in s^2/2: 1/2 where a = b, 1 where a < b."""
    first, second = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    return torch.where(first == second, 0.5, 1.0).to(at_least_fp32(x).dtype)
