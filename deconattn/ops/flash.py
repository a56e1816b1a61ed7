"""Flash attention as it is installed: the flash-attn packages (2, 3, 4), or what PyTorch itself carries.

All take queries [.., L, heads, head_dim] and keys and values with their own number of heads.
"""

import importlib
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from deconattn.ops.backend import installed
from deconattn.ops.compiling import constant_in_graphs

PACKAGES = {
    "flash-attn 2": ("flash_attn_2_cuda", "flash_attn", 8),
    "flash-attn 3": ("flash_attn_interface", "flash_attn_interface", 9),
    "flash-attn 4": ("flash_attn.cute", "flash_attn.cute", 9),
}
"""Name -> the module that is there if it is installed, the module with its functions, the least compute capability."""
_PREFERENCE = {8: ("flash-attn 2",), 9: ("flash-attn 3", "flash-attn 4", "flash-attn 2")}
_NEWER = ("flash-attn 4", "flash-attn 2")


def package(queries: Tensor) -> str | None:
    """The package to use for such queries, or None."""
    if not queries.is_cuda or queries.dtype not in (torch.bfloat16, torch.float16):
        return None
    return _package(queries.device.index or 0)


@constant_in_graphs
def generation(device: int) -> int:
    """The major compute capability of a GPU."""
    return torch.cuda.get_device_capability(device)[0]


@constant_in_graphs
def _package(device: int) -> str | None:
    major = generation(device)
    for name in _PREFERENCE.get(major, _NEWER):
        if installed(PACKAGES[name][0]) and major >= PACKAGES[name][2]:
            return name
    return None


def attention(name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of a package, [R, L, heads, head_dim]."""
    return _output(_function(name, "flash_attn_func")(queries, keys, values, causal=True))


def packed_attention(name: str, queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """Causal attention of a package within documents laid end to end, [tokens, heads, head_dim].

    Args:
        offsets: int32 [documents + 1], where each begins, and the end.
        longest: at least the longest document's length.
    """
    mixed = _function(name, "flash_attn_varlen_func")(
        queries,
        keys,
        values,
        cu_seqlens_q=offsets,
        cu_seqlens_k=offsets,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        causal=True,
    )
    return _output(mixed)


def pytorch_packed_attention(queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, longest: int) -> Tensor:
    """Causal attention within documents by PyTorch's own flash attention: bf16 and fp16 on CUDA."""
    from torch.nn.attention.varlen import varlen_attn

    group = queries.shape[1] // keys.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    mixed = varlen_attn(queries, keys, values, offsets, offsets, longest, longest, window_size=(-1, 0))
    assert isinstance(mixed, Tensor)
    return mixed


def _output(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the output alone: some versions return the log-sum-exp too."""
    return result[0] if isinstance(result, tuple) else result


@cache
def _function(name: str, function: str) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    try:
        return getattr(importlib.import_module(PACKAGES[name][1]), function)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"{name} is installed but cannot be used ({error}): reinstall or remove it") from error
