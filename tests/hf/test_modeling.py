"""Hugging Face's calling convention: padding, packing, labels, generation."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deconattn.errors import UserError
from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.hf.modeling_deconattn import DeconAttnForCausalLM
from tests.hf.models import MIXED, small_config, tokens, trained

VARIANTS = (*MIXED, "approximate", "nonapproximate")


def build(*variants: str, **changes: object) -> DeconAttnForCausalLM:
    config = small_config(*variants, **changes)
    model = DeconAttnForCausalLM(DeconAttnConfig.of(config, eos_token_id=0, pad_token_id=0))
    model.load_state_dict(trained(config).state_dict())
    return model.eval()


def padded(prompts: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, L] of prompts [1, n] each."""
    length = max(prompt.shape[1] for prompt in prompts)
    shapes = [(length - p.shape[1], 0) if side == "left" else (0, length - p.shape[1]) for p in prompts]
    pad = torch.nn.functional.pad
    ids = torch.cat([pad(p, shape, value=3) for p, shape in zip(prompts, shapes, strict=True)])
    mask = torch.cat([pad(torch.ones_like(p), shape) for p, shape in zip(prompts, shapes, strict=True)])
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_padding_changes_nothing(variant: str, side: str) -> None:
    model = build(variant, variant)
    prompts = [tokens(1, 70, 1), tokens(1, 9, 2), tokens(1, 1, 3)]
    ids, mask = padded(prompts, side)
    logits = model(ids, attention_mask=mask).logits
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(logits[row, mask[row].bool()], model(prompt).logits[0], atol=2e-5, rtol=0)


@torch.no_grad()
def test_padding_matters_without_a_mask() -> None:
    model = build("standard", "standard")
    ids, mask = padded([tokens(1, 9, 1), tokens(1, 5, 2)], "left")
    assert (model(ids).logits - model(ids, attention_mask=mask).logits)[1, -1].abs().max() > 1e-3


def test_whole_rows_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ones in a mask, nor padding, nor positions that go up by one ask for document masks."""
    model, ids = build("mlp"), tokens(2, 9)
    asked = []
    whole = torch.zeros(2, 9, 32)
    monkeypatch.setattr(model.model, "forward_embedded", lambda _, n, *ids, observe=None: asked.append(ids) or whole)
    left = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
    for mask in (None, torch.ones_like(ids), left):
        for position_ids in (None, torch.arange(9)[None], (left.cumsum(1) - 1).clamp(min=0)):
            if position_ids is None or position_ids.shape[0] == 1 or mask is left:
                model(ids, attention_mask=mask, position_ids=position_ids)
    assert asked
    assert not any(asked)


@torch.no_grad()
def test_positions_that_restart_are_packed_documents() -> None:
    model = build(*VARIANTS)
    first, second = tokens(1, 11, 1), tokens(1, 20, 2)
    positions = torch.cat([torch.arange(11), torch.arange(20)])[None]
    logits = model(torch.cat([first, second], dim=1), position_ids=positions).logits
    expected = torch.cat([model(first).logits, model(second).logits], dim=1)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    offsets = torch.tensor([0, 11, 31], dtype=torch.int32)
    flattened = {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": 20, "max_length_k": 20}
    numbered = {"seq_idx": torch.tensor([[0] * 11 + [1] * 20], dtype=torch.int32)}
    for told in (flattened, numbered):
        logits = model(torch.cat([first, second], dim=1), **told).logits
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


def test_masks_that_cannot_be_are_refused() -> None:
    model, ids = build("mlp"), tokens(1, 4)
    with pytest.raises(ValueError, match="shape"):
        model(ids, attention_mask=torch.ones(1, 1, 4, 4))


@torch.no_grad()
def test_loss_is_the_mean_over_labels_that_count() -> None:
    model, ids = build(*VARIANTS), tokens(2, 30)
    labels = ids.clone()
    labels[0, :12] = -100
    output = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    shared = model(ids, labels=labels, num_items_in_batch=torch.tensor(100)).loss
    torch.testing.assert_close(shared, expected * (18 + 29) / 100)


@torch.no_grad()
def test_logits_to_keep_and_tuples() -> None:
    model, ids = build("staticemb"), tokens(2, 12)
    logits = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, logits[:, -3:])
    torch.testing.assert_close(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, logits[:, [0, 5]])
    torch.testing.assert_close(model(ids, return_dict=False)[0], logits)


@pytest.mark.parametrize("variants", [("standard", "nonapproximate"), MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("use_cache", [None, True])
@torch.no_grad()
def test_greedy_generation_is_the_argmax_loop(variants: tuple[str, ...], use_cache: bool | None) -> None:
    model = build(*variants)
    prompts = [tokens(1, 6, seed) for seed in range(2)] + [tokens(1, 3, 5)]
    ids, mask = padded(prompts, "left")
    options = {} if use_cache is None else {"use_cache": use_cache}
    generated = model.generate(
        ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None, **options
    )
    for row, prompt in enumerate(prompts):
        for _ in range(8):
            prompt = torch.cat([prompt, model(prompt).logits[:, -1:].argmax(dim=-1)], dim=1)
        assert generated[row, -prompt.shape[1] :].tolist() == prompt[0].tolist()
    sampled = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=True, top_k=5, eos_token_id=None)
    assert sampled.shape == (3, 10)


@pytest.mark.parametrize("tied", [False, True])
def test_save_pretrained_round_trip(tied: bool, tmp_path: Path) -> None:
    model = build(*VARIANTS, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = DeconAttnForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert loaded.config.to_model_config() == model.config.to_model_config()
    assert {"model.fixed_embeddings", "model.fixed_ids"} < state.keys()


def test_gradients_are_the_same_with_activation_checkpointing() -> None:
    model, ids = build(*VARIANTS).train(), tokens(2, 10)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.gradient_checkpointing_enable()
    assert model.model.activation_checkpointing
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
    model.gradient_checkpointing_disable()
    assert not model.model.activation_checkpointing


def test_a_new_model_is_initialised() -> None:
    model = DeconAttnForCausalLM(DeconAttnConfig.of(small_config(*MIXED)))
    assert 0.015 < model.model.fixed_embeddings.std() < 0.025
    assert 0.015 < model.lm_head.weight.std() < 0.025
    assert model.model.norm.weight.eq(1).all()


def test_an_unknown_variant_names_the_remedy() -> None:
    with pytest.raises(UserError, match=r"'warp'.*plugin"):
        DeconAttnForCausalLM(DeconAttnConfig(num_hidden_layers=1, layer_variants=["warp"]))
