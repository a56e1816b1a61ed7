"""Precision of accumulations, log-sum-exps and normalisers: never half."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Cast anything narrower than fp32 to fp32; fp32 and fp64 stay."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
