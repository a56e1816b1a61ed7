"""Flash attention as it is installed: the flash-attn packages (2, 3, 4), or what PyTorch itself carries.

All take queries [.., L, heads, head_dim] and keys and values with their own number of heads.
"""

import importlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from deconattn.ops.compiling import constant_in_graphs
from deconattn.ops.notes import said_of, say

MODULES = {"flash-attn": "flash_attn", "flash-attn-3": "flash_attn_interface", "flash-attn-4": "flash_attn.cute"}
"""Distribution -> the module with its functions. A module tells nothing: flash-attn 2 ships a `flash_attn.cute`, too,
which cannot be imported."""
_PREFERENCE = {
    0: ("flash-attn",),
    8: ("flash-attn",),
    9: ("flash-attn-3", "flash-attn-4", "flash-attn"),
    10: ("flash-attn-4", "flash-attn"),
    11: ("flash-attn-4", "flash-attn"),
}
"""Generation -> distributions, the fastest first."""
_NEWER = ("flash-attn", "flash-attn-4")
_imported: dict[str, Any] = {}
"""Module of each distribution in use. torch.compile follows this to the function, as it follows no import."""


def package(queries: Tensor) -> str | None:
    """The distribution to use for such queries, or None."""
    return _package(queries.device.index or 0) if packs(queries) else None


def packs(queries: Tensor) -> bool:
    """Whether flash attention takes such queries, of documents laid end to end, too."""
    return queries.is_cuda and queries.dtype in (torch.bfloat16, torch.float16)


@constant_in_graphs
def generation(device: int) -> int:
    """The major compute capability of a GPU of NVIDIA's; 0 of AMD's, whose numbers mean something else."""
    return 0 if torch.version.hip else torch.cuda.get_device_capability(device)[0]


@constant_in_graphs
def _package(device: int) -> str | None:
    return _found(generation(device))


@cache
def _found(generation: int) -> str | None:
    """The first package of a generation's that can be imported; says once which it is, and why others are not."""
    failed = []
    for name in _PREFERENCE.get(generation, () if generation < 8 else _NEWER):
        try:
            title = f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
        try:
            module: Any = importlib.import_module(MODULES[name])
            _ = module.flash_attn_func, module.flash_attn_varlen_func
        except (ImportError, OSError, AttributeError) as error:  # OSError: a library that it links is not there
            failed.append(f"; {title} cannot be imported: {said_of(error)}")
            continue
        say(f"note: softmax attention by {title}{''.join(failed)}")
        _imported[name] = module
        return name
    say(f"note: softmax attention by PyTorch's own kernels{''.join(failed)}")
    return None


def attention(package: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of a package, [R, L, heads, head_dim]."""
    return _output(_imported[package].flash_attn_func(queries, keys, values, causal=True))


def packed_attention(
    package: str, queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, longest: int
) -> Tensor:
    """Causal attention of a package within documents laid end to end, [tokens, heads, head_dim].

    Args:
        offsets: int32 [documents + 1], where each begins, and the end.
        longest: at least the longest document's length.
    """
    mixed = _imported[package].flash_attn_varlen_func(
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
