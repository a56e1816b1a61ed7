"""Norms by kernels, as on a GPU: a model does not see it."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.layers import norm as layer
from deconattn.ops import backend, rms_norm


def test_loss_and_gradients_are_those_of_the_modules(tiny_model, monkeypatch: pytest.MonkeyPatch):
    """With static embeddings, a fixed stream whose rows are dropped, and activation checkpoints."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend._register_kernels()
    asked, kernels = [], rms_norm.add_rms_norm

    def noted(hidden: Tensor, *others: object) -> tuple[Tensor, Tensor]:
        asked.append(hidden.shape[0])
        return kernels(hidden, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(rms_norm, "add_rms_norm", noted)
    monkeypatch.setattr(rms_norm, "WORTHWHILE", 0)
    model = tiny_model("staticemb", "rndemb", "standard")
    ids = torch.randint(model.config.vocab_size, (2, 4), generator=torch.Generator().manual_seed(0))

    def gradients() -> list[Tensor]:
        loss = model(ids, ids.roll(-1)).total
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    expected = gradients()
    assert not asked
    monkeypatch.setattr(layer, "fused", lambda _: True)
    found = gradients()
    assert asked == [3, 3, 3, 2, 2, 2, 2]
    model.model.activation_checkpointing = True
    for one, other, plain in zip(found, gradients(), expected, strict=True):
        assert_close(one, plain, rtol=1e-4, atol=1e-5)
        assert_close(one, other, rtol=0, atol=0)
