"""What softmax attention asks PyTorch's kernels for on a GPU, which none need be for."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from deconattn.ops import flash, softmax_attention


@pytest.mark.parametrize(("dtype", "key_heads"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("generation", [8, 9])
def test_fp32_has_no_groups(dtype: torch.dtype, key_heads: int, generation: int, monkeypatch: pytest.MonkeyPatch):
    """With groups no fused kernel takes fp32, and SDPA holds a map [R, heads, L, L]."""
    asked: dict[str, Any] = {}

    def sdpa(queries: Tensor, keys: Tensor, values: Tensor, is_causal: bool, enable_gqa: bool) -> Tensor:
        asked.update(heads=keys.shape[1], values=values.shape[1], grouped=enable_gqa)
        return torch.empty_like(queries)

    monkeypatch.delenv("DECONATTN_BACKEND", raising=False)
    monkeypatch.setattr(softmax_attention, "scaled_dot_product_attention", sdpa)
    monkeypatch.setattr(flash, "package", lambda queries: None)
    monkeypatch.setattr(flash, "generation", lambda device: generation)
    with FakeTensorMode():
        queries, keys = (torch.empty(1, heads, 8, 16, dtype=dtype, device="cuda") for heads in (4, 2))
        softmax_attention.causal_attention(queries, keys, keys)
    assert asked == {"heads": key_heads, "values": key_heads, "grouped": key_heads == 2}
