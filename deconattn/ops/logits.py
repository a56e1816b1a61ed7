"""The two passes over a slice of logits on a GPU: each token's log-sum-exp, then their gradient in their place.

Between the two, ranks that share the vocabulary exchange a number a token. Both are kernels
(:mod:`deconattn.ops.kernels.cross_entropy`) where those run, and else PyTorch's operations on a few rows at a time,
since these hold the rows in fp32. Rows may be longer than the vocabulary: see :data:`ALIGNMENT`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from deconattn.ops.backend import fused
from deconattn.ops.precision import at_least_fp32

ALIGNMENT = 64
"""Multiple to which rows of logits are padded on a GPU, as vocabularies are in Megatron-LM and nanoGPT.

A row of 50277 logits in 16 bits begins anywhere; tensor cores are fed 16 bytes at a time, from multiples of that.
"""
NOWHERE = -(2**31)
"""The target of a token that is ignored, or whose label is another rank's."""
PLAIN_AT_ONCE = 2**24
"""Logits that PyTorch's operations hold in fp32 at a time."""


def padded(words: int) -> int:
    """Length of a row of logits."""
    return -(-words // ALIGNMENT) * ALIGNMENT


def log_normalisers(logits: Tensor, targets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Each row's log-sum-exp over its first `words` logits, and its target's logit: [n] each, in at least fp32.

    Args:
        logits: [n, padded(words)], contiguous.
        targets: int64 [n]; of NOWHERE the logit is 0, of any other number that is no word NaN.
    """
    if fused(logits):
        normalisers, picked = torch.ops.deconattn.log_normalisers(logits, targets, words)
        return normalisers, picked
    return plain_log_normalisers(logits, targets, words)


def gradients_(logits: Tensor, targets: Tensor, normalisers: Tensor, words: int, slope: float = 0.0) -> None:
    """Replace logits by softmax less one-hot: exp(logit - normaliser), less 1 at the target; 0 beyond the words.

    With a z-loss the softmax is taken times 1 + slope * normaliser.

    Args:
        logits: [n, padded(words)], contiguous.
        targets: int64 [n], or NOWHERE.
        normalisers: [n], in at least fp32; infinity and NOWHERE give a row of zeros.
        slope: twice the z-loss's coefficient.
    """
    if fused(logits):
        torch.ops.deconattn.logit_gradients_(logits, targets, normalisers, words, slope)
    else:
        plain_gradients_(logits, targets, normalisers, words, slope)


def plain_log_normalisers(logits: Tensor, targets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """:func:`log_normalisers` by PyTorch's operations."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    normalisers, picked = (logits.new_empty(len(logits), dtype=precise) for _ in range(2))
    for rows in _slices(logits):
        scores = at_least_fp32(logits[rows, :words])
        normalisers[rows] = scores.logsumexp(dim=1)
        index, here = _found(targets[rows], words)
        found = scores.gather(1, index).squeeze(1).where(here, float("nan"))
        picked[rows] = found.where(targets[rows] != NOWHERE, 0)
    return normalisers, picked


def plain_gradients_(logits: Tensor, targets: Tensor, normalisers: Tensor, words: int, slope: float = 0.0) -> None:
    """:func:`gradients_` by PyTorch's operations."""
    for rows in _slices(logits):
        gradients = (at_least_fp32(logits[rows, :words]) - normalisers[rows, None]).exp_()
        if slope:  # of an infinite normaliser the softmax is 0, and stays it
            gradients.mul_(1 + slope * normalisers[rows, None].where(normalisers[rows, None].isfinite(), 0))
        index, here = _found(targets[rows], words)
        gradients.scatter_add_(1, index, here[:, None].to(gradients.dtype).neg_())
        logits[rows, :words] = gradients
    logits[:, words:] = 0


def _slices(logits: Tensor) -> Iterator[slice]:
    count = max(1, PLAIN_AT_ONCE // logits.shape[1])
    for start in range(0, len(logits), count):
        yield slice(start, start + count)


def _found(targets: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Targets as an index [n, 1] into the words, and whether they are among them."""
    here = (targets >= 0) & (targets < words)
    return targets.where(here, 0)[:, None], here
