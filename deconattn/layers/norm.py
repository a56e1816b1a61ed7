"""Norms of the residual stream: a module's own pass, or the same numbers with the sums around it in one kernel."""

import torch
from torch import Tensor, nn

from deconattn.layers.untouched import is_untouched
from deconattn.ops import rms_norm
from deconattn.ops.backend import fused


def residual_norm(norm: nn.RMSNorm, hidden: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return hidden + branch, [.., width] as both are (or `hidden` alone), and its norm.

    What follows reads the first result, not `hidden`: the gradients of both meet in the norm's backward pass. A module
    that is more than PyTorch's (:mod:`.untouched`) is called as it is, and torch.compile fuses the plain operations
    itself.
    """
    if torch.compiler.is_compiling() or not _by_kernels(norm, hidden, branch):
        return plain_residual_norm(norm, hidden, branch)
    assert norm.eps is not None
    return rms_norm.add_rms_norm(hidden, branch, norm.weight, norm.eps)


def plain_residual_norm(norm: nn.RMSNorm, hidden: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the same, the module called."""
    if branch is not None:
        hidden = hidden + branch
    return hidden, norm(hidden)


def _by_kernels(norm: nn.RMSNorm, hidden: Tensor, branch: Tensor | None) -> bool:
    return (
        hidden.numel() >= rms_norm.WORTHWHILE
        and fused(hidden)
        and hidden.shape[-1] <= rms_norm.WIDEST
        and (branch is None or (branch.dtype == hidden.dtype and branch.shape == hidden.shape))
        and is_untouched(norm, nn.RMSNorm)
        and norm.weight is not None
        and norm.weight.dtype == hidden.dtype
        and norm.weight.shape == hidden.shape[-1:]
        and norm.eps is not None
    )
