"""A causal convolution of each channel with a filter as long as the sequence, by fast Fourier transforms.

Documents are kept apart by halving: what the first half of a span gives the second is one convolution, of those tokens
of the first and to those of the second that lie in the document at the middle. The halves go on alike, all spans of a
length at once, down to spans of `SPAN` tokens, within which the taps are added up one by one: L log^2 L in all.
"""

import torch
from torch import Tensor
from torch.fft import irfft, rfft
from torch.nn.functional import pad

from deconattn.ops.short_convolution import short_convolution

SPAN = 16


def long_convolution(inputs: Tensor, taps: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """y_i = sum_{j <= i} c_{i-j} x_j over the tokens j of the same document.

    Args:
        inputs: [R, L, n], fp32 or fp64.
        taps: [L, n].
        document_ids: int64 [R, L] or None.

    Returns:
        [R, L, n].
    """
    length = inputs.shape[1]
    if document_ids is None:
        return _convolution(inputs, taps, 1 << (2 * length - 1).bit_length())[:, :length]
    missing = -length % SPAN
    while (length + missing) // SPAN & (length + missing) // SPAN - 1:
        missing += SPAN  # to a power of two of spans
    inputs, taps = (pad(one, (0, 0, 0, missing)) for one in (inputs, taps))
    document_ids = torch.cat([document_ids, document_ids[:, -1:].expand(-1, missing)], dim=1)
    within = torch.arange(SPAN, device=inputs.device)
    spans = document_ids.unflatten(1, (-1, SPAN))
    earlier = (spans[:, :, :, None] == spans[:, :, None, :]).tril().sum(dim=3) - 1
    mixed = short_convolution(
        inputs.unflatten(1, (-1, SPAN)).flatten(0, 1), taps[:SPAN].flip(0).T, earlier.clamp(max=within).flatten(0, 1)
    ).view_as(inputs)
    half = SPAN
    while half < length:
        first = inputs.unflatten(1, (-1, 2, half))[:, :, 0]
        ids_first, ids_second = document_ids.unflatten(1, (-1, 2, half)).unbind(2)
        middle = ids_second[:, :, :1]
        given = _convolution(first * (ids_first == middle)[..., None], taps[: 2 * half], 2 * half)[:, :, half:]
        given = given * (ids_second == middle)[..., None]
        mixed = mixed + pad(given[:, :, None], (0, 0, 0, 0, 1, 0)).view_as(mixed)
        half *= 2
    return mixed[:, :length]


def _convolution(inputs: Tensor, taps: Tensor, size: int) -> Tensor:
    """Convolution in a ring of `size` tokens: [.., L, n], [K, n] -> [.., size, n]."""
    inputs, taps = inputs.transpose(-1, -2), taps.T
    return irfft(rfft(inputs, size) * rfft(taps, size), size).transpose(-1, -2)
