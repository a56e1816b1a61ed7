"""Documents laid end to end for flash attention, as a GPU has them, give what documents by number give."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from deconattn.data import Batch
from deconattn.model.causal_lm import CausalLM
from deconattn.ops import flash, reference


def varlen(queries: Tensor, keys: Tensor, values: Tensor, cu_seqlens_q: Tensor, **other: Any) -> Tensor:
    """Each document by itself, [tokens, heads, head_dim]; empty ones are none."""
    offsets = cu_seqlens_q.tolist()
    assert offsets[0] == 0 and offsets[-1] == len(queries) and other["cu_seqlens_k"] is cu_seqlens_q
    mixed = torch.zeros_like(queries)
    for start, stop in pairwise(offsets):
        assert 0 <= stop - start <= other["max_seqlen_q"]
        parts = (tensor[None, start:stop].transpose(1, 2) for tensor in (queries, keys, values))
        mixed[start:stop] = reference.softmax_attention(*parts)[0].transpose(0, 1)
    return mixed


@pytest.mark.parametrize("given", [True, False])
def test_the_same_hidden_states(
    tiny_model: Callable[..., CausalLM], monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    """With the loader's offsets, and with those that are found where there are none."""
    model = tiny_model("standard", "rndemb", "staticemb", "fixedseq", "standard")
    ids = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(0))
    positions = torch.stack([torch.arange(20) % 7, torch.cat([torch.arange(1), torch.arange(19)])])
    numbers = (positions == 0).long().cumsum(1) - 1
    batch = Batch.of(torch.stack([ids, ids, positions, numbers]))
    expected = model.model(ids, positions, numbers)
    monkeypatch.setattr(flash, "packs", lambda queries: True)
    monkeypatch.setattr(flash, "package", lambda queries: "ours")
    monkeypatch.setitem(flash._imported, "ours", SimpleNamespace(flash_attn_varlen_func=varlen))
    found = model.model(ids, positions, numbers, batch.document_offsets if given else None)
    torch.testing.assert_close(found, expected)
