"""Precision of operations: accumulations, log-sum-exps and normalisers are never half, and autocast stays outside."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from deconattn.ops.compiling import constant_in_graphs


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Cast anything narrower than fp32 to fp32; fp32 and fp64 stay."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def outside_autocast(*operands: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate an operation to compute under `torch.autocast` as it does for a model in autocast's dtype.

    Its parameters of the names `operands` are cast to that dtype, as PyTorch casts those of its own attention, and
    autocast is off within, where it would undo what is accumulated in fp32. fp64 stays.
    """

    def decorate(operation: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(operation).parameters)

        @wraps(operation)
        def run(*arguments: Any, **keywords: Any) -> Any:
            device = arguments[0].device.type
            if not _has_autocast(device) or not torch.is_autocast_enabled(device):
                return operation(*arguments, **keywords)
            dtype = torch.get_autocast_dtype(device)
            given = dict(zip(names, arguments, strict=False)) | keywords
            for name in operands:
                if given[name].dtype != torch.float64:
                    given[name] = given[name].to(dtype)
            with torch.autocast(device, enabled=False):
                return operation(**given)

        return run

    return decorate


@constant_in_graphs
def _has_autocast(device: str) -> bool:
    """Whether a kind of device has autocast; torch 2.11's compiler cannot trace the question."""
    return torch.amp.is_autocast_available(device)
