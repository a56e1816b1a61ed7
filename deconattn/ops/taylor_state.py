"""The running sums of `approximate`: all that it needs of earlier tokens (paper, equation 6).

w_ij = 1 + s + s^2/2 with s = q_i.k_j / sqrt(head_dim) is a dot product of features, phi(q_i).psi(k_j): with
x' = [1, x], psi(x) has the products x'_a x'_b with a <= b, and phi(x) = C psi(x), where C has the powers of
1 / sqrt(head_dim) and 1/2 for the squares. So of all earlier tokens
    o_i = sum_j w_ij v_j / sum_j w_ij
needs the sums S = sum_j [v_j, 1] psi(k_j)^T of each row and key head, [R, key_value_heads, head_dim + 1, features];
at least fp32, because a weight is a sum of products of either sign, which may cancel.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from deconattn.ops.cached_attention import by_key_head
from deconattn.ops.precision import at_least_fp32, outside_autocast

CHUNK = 128
"""Tokens whose features are held at once: [R, key_value_heads, CHUNK, features] numbers."""
RECENT = 32
"""Tokens that are kept as they are until there are so many, and then added to the sums at once: to write the sums at
every token would take twice as long as to read them."""


def num_features(head_dim: int) -> int:
    """1, the dimensions, and their products without order."""
    return (head_dim + 1) * (head_dim + 2) // 2


def state_bytes(head_dim: int, bytes_per_element: int) -> int:
    """Bytes of one row and key head: the sums and the recent tokens."""
    sums = max(4, bytes_per_element) * num_features(head_dim) * (head_dim + 1)
    return sums + 2 * RECENT * head_dim * bytes_per_element


def is_smaller(head_dim: int, bytes_per_element: int, tokens: int) -> bool:
    """Whether the sums take fewer bytes than the keys and values of so many tokens."""
    return state_bytes(head_dim, bytes_per_element) < 2 * tokens * head_dim * bytes_per_element


def no_sums(keys: Tensor) -> Tensor:
    """Sums of no tokens, for keys [R, key_value_heads, .., head_dim]."""
    width = keys.shape[-1]
    return at_least_fp32(keys.new_zeros(*keys.shape[:2], width + 1, num_features(width)))


@outside_autocast()
def add(sums: Tensor, keys: Tensor, values: Tensor, real: Tensor | None = None) -> None:
    """Add T tokens in place, without their gradients.

    Args:
        keys, values: [R, key_value_heads, T, head_dim].
        real: bool [R, T], the tokens that count; None: all.
    """
    for start in range(0, keys.shape[2], CHUNK):
        part = slice(start, start + CHUNK)
        psi = _features(at_least_fp32(keys[:, :, part].detach()))
        if real is not None:
            psi = psi * real[:, None, part, None]
        extended = _with_one(at_least_fp32(values[:, :, part].detach()))
        sums.flatten(0, 1).baddbmm_(extended.transpose(-1, -2).flatten(0, 1), psi.flatten(0, 1))


@outside_autocast()
def read(sums: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of T new tokens over the sums, and over themselves where T > 1; where T is 1, over all tokens given.

    Args:
        queries: [R, heads, T, head_dim].
        keys, values: [R, key_value_heads, n, head_dim], tokens that are not in the sums: the T new ones, the last
            n where T is 1.

    Returns:
        [R, heads, T, head_dim] in the values' dtype.
    """
    tokens, width = queries.shape[2:]
    q, k = at_least_fp32(by_key_head(queries, keys.shape[1])), at_least_fp32(keys)
    phi = _features(q) * _factors(width, q.dtype, q.device)
    if phi.requires_grad:  # then the sums are kept for its gradient, and they are added to before
        sums = sums.clone()
    total = (sums @ phi.transpose(-1, -2)).transpose(-1, -2)
    s = q @ k.transpose(-1, -2) / math.sqrt(width)
    weights = torch.addcmul(s + 1, s, s, value=0.5)
    if tokens > 1:
        weights = weights.unflatten(2, (-1, tokens)).tril().flatten(2, 3)
    total = total + weights @ _with_one(at_least_fp32(values))
    return (total[..., :-1] / total[..., -1:]).to(values.dtype).reshape(queries.shape)


@outside_autocast()
def extend(sums: Tensor, queries: Tensor, keys: Tensor, values: Tensor, real: Tensor | None) -> Tensor:
    """Add T tokens in place; what each sees, itself and all before it: [R, heads, T, head_dim]."""
    mixed = []
    for start in range(0, keys.shape[2], CHUNK):
        part = slice(start, start + CHUNK)
        mixed.append(read(sums, queries[:, :, part], keys[:, :, part], values[:, :, part]))
        add(sums, keys[:, :, part], values[:, :, part], None if real is None else real[:, part])
    return torch.cat(mixed, dim=2)


def _with_one(values: Tensor) -> Tensor:
    return pad(values, (0, 1), value=1.0)


def _features(x: Tensor) -> Tensor:
    """psi, [.., head_dim] -> [.., features]."""
    first, second = _pairs(x.shape[-1] + 1, x.device)
    extended, shape = pad(x, (1, 0), value=1.0), (*x.shape[:-1], len(first))
    # On a CPU index_select takes ten times longer along the last of several dimensions.
    return extended.gather(-1, first.expand(shape)) * extended.gather(-1, second.expand(shape))


@cache
@torch.inference_mode(False)
def _pairs(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 [features] each: all a <= b below `size`."""
    first, second = torch.triu_indices(size, size, device=device)
    return first, second


@cache
@torch.inference_mode(False)
def _factors(head_dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """C, [features]."""
    first, second = _pairs(head_dim + 1, device)
    scale = torch.full((head_dim + 1,), head_dim**-0.5, dtype=torch.float64, device=device)
    scale[0] = 1
    halves = torch.where((first == second) & (first > 0), 0.5, 1.0)
    return (scale[first] * scale[second] * halves).to(dtype)
