"""A short causal convolution of each channel by itself, within documents, and what it needs of the tokens before."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


def new_taps(channels: int, taps: int) -> nn.Parameter:
    """Return the weights of a short convolution, drawn as PyTorch draws those of its own: [channels, taps]."""
    return nn.Parameter(torch.empty(channels, taps).uniform_(-(taps**-0.5), taps**-0.5))


def short_convolution(
    inputs: Tensor, weight: Tensor, position_ids: Tensor | None = None, before: Tensor | None = None
) -> Tensor:
    """y_i = sum_{m < K} w_m x_{i-m}, where x_{i-m} is of the same document.

    Args:
        inputs: [R, L, n].
        weight: [n, K], the last column for the token itself, as in PyTorch's convolutions.
        position_ids: int64 [R or 1, L], each token's position in its document; None where a row is one document.
        before: [R, K - 1, n], the inputs before the first; None: there are none.

    Returns:
        [R, L, n].
    """
    length, taps = inputs.shape[1], weight.shape[1]
    whole = pad(inputs, (0, 0, taps - 1, 0)) if before is None else torch.cat([before, inputs], dim=1)
    total = inputs * weight[:, -1]
    for lag in range(1, taps):
        earlier = whole[:, taps - 1 - lag : taps - 1 - lag + length]
        if position_ids is not None:
            earlier = earlier.masked_fill((position_ids < lag)[..., None], 0)
        total = total + earlier * weight[:, taps - 1 - lag]
    return total


def last_inputs(inputs: Tensor, before: Tensor, real: Tensor | None = None) -> Tensor:
    """Return the last inputs of each row, as many as `before` has: [R, L, n] after [R, K, n] -> [R, K, n].

    Args:
        real: bool [R, L], false for padding, which comes after a row's real tokens and does not count.
    """
    whole, kept = torch.cat([before, inputs], dim=1), before.shape[1]
    if real is None:
        return whole[:, whole.shape[1] - kept :]
    slots = real.sum(dim=1, keepdim=True) + torch.arange(kept, device=real.device)
    return whole.gather(1, slots[..., None].expand(-1, -1, whole.shape[2]))
