"""Statistics and accumulations are not kept in half precision."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor itself in fp32 or fp64; anything narrower in fp32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
