"""The base model: embeddings in, hidden states and maps out, hooks, and arguments that contradict one another."""

from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor

from deconattn.hf.cache_deconattn import DeconAttnCache
from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.hf.modeling_deconattn import CACHE, DeconAttnModel
from deconattn.model.causal_lm import CausalLM
from tests.hf.models import MIXED, small_config, tokens, trained
from tests.hf.test_modeling import VARIANTS, build, padded


@torch.no_grad()
def test_the_base_model_is_the_stack_without_the_head() -> None:
    config = small_config(*VARIANTS)
    base = DeconAttnModel(DeconAttnConfig.of(config)).eval()
    state = trained(config).state_dict()
    base.load_state_dict({name.removeprefix("model."): state[name] for name in state if name.startswith("model.")})
    ids = tokens(2, 20)
    expected = build(*VARIANTS).model(ids).last_hidden_state
    torch.testing.assert_close(base(input_ids=ids).last_hidden_state, expected)
    torch.testing.assert_close(base(ids, return_dict=False)[0], expected)
    assert base.get_input_embeddings() is base.embed_tokens


@pytest.mark.parametrize("cached", [False, True])
@torch.no_grad()
def test_embeddings_stand_for_tokens(cached: bool) -> None:
    model = build(*VARIANTS)
    ids, mask = padded([tokens(1, 20, 1), tokens(1, 7, 2)], "left")
    embedded = model.get_input_embeddings()(ids)
    outputs = [
        model(**inputs, attention_mask=mask, use_cache=cached)
        for inputs in ({"input_ids": ids}, {"inputs_embeds": embedded})
    ]
    torch.testing.assert_close(outputs[0].logits[mask.bool()], outputs[1].logits[mask.bool()])
    for arguments in ({}, {"input_ids": ids, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**arguments)


@torch.no_grad()
def test_generation_begins_with_embeddings() -> None:
    model, ids = build(*MIXED), tokens(2, 9)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options)[:, 9:]
    embedded = model.get_input_embeddings()(ids)
    assert model.generate(inputs_embeds=embedded, **options).tolist() == expected.tolist()


def test_gradients_reach_given_embeddings() -> None:
    """Of prompt tuning: those of the embedding's own rows, where each token occurs once."""
    model, ids = build(*VARIANTS), torch.arange(1, 13)[None]
    model.model.fixed_ids.fill_(200)  # the stream's tokens are others
    model(ids, labels=ids).loss.backward()
    expected = model.model.embed_tokens.weight.grad[1:13].clone()
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embedded, labels=ids).loss.backward()
    torch.testing.assert_close(embedded.grad[0], expected)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_hidden_states_are_what_each_layer_receives(side: str) -> None:
    model = build(*VARIANTS)
    ids, mask = padded([tokens(1, 20, 1), tokens(1, 7, 2)], side)
    hidden = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(hidden) == len(VARIANTS) + 1
    assert model(ids).hidden_states is None
    torch.testing.assert_close(hidden[0][mask.bool()], model.model.embed_tokens(ids)[mask.bool()])
    last = model.model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(hidden[-1][mask.bool()], last[mask.bool()])
    alone = _received(model, ids[1:][mask[1:].bool()][None])
    for got, expected in zip(hidden, alone, strict=False):
        torch.testing.assert_close(got[1][mask[1].bool()], expected[0], atol=2e-5, rtol=0)


def _received(model: torch.nn.Module, ids: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for layer in model.model.layers]
    model(ids)
    for hook in hooks:
        hook.remove()
    return [hidden[:1] for hidden in seen]


@torch.no_grad()
def test_hidden_states_of_a_cached_pass() -> None:
    model, ids = build(*VARIANTS), tokens(2, 12)
    expected = model(ids, output_hidden_states=True).hidden_states
    cache = DeconAttnCache(model.model)
    parts = [model(part, cache=cache, output_hidden_states=True).hidden_states for part in ids.split([5, 6, 1], dim=1)]
    for whole, pieces in zip(expected, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_maps_are_those_that_mix(side: str) -> None:
    model = build("standard", "mlp", "staticemb", "fixedseq", "rndemb", "approximate", "nonapproximate", "standard")
    ids, mask = padded([tokens(1, 12, 1), tokens(1, 7, 2)], side)
    maps = model(ids, attention_mask=mask, output_attentions=True).attentions
    assert maps[1] is None
    alone = model(ids[1:][mask[1:].bool()][None], output_attentions=True).attentions
    real = mask[1].bool()
    for whole, single in zip(maps, alone, strict=True):
        if whole is not None:
            assert whole.shape == (2, 4, 12, 12)
            torch.testing.assert_close(whole[1][:, real][:, :, real], single[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(single.sum(dim=-1), torch.ones(1, 4, 7))
            assert not whole[1][:, ~real].any()
            assert not whole[1][:, :, ~real].any()
    # The first layer's map, applied to its values, is what the layer adds.
    layer, states = model.model.layers[0], model(ids[:1], output_hidden_states=True).hidden_states
    values = layer.self_attn.values(layer.input_layernorm(states[0]))
    mixed = model(ids[:1], output_attentions=True).attentions[0] @ values
    added = layer.self_attn.output(mixed)
    hidden = states[0] + added
    torch.testing.assert_close(hidden + layer.mlp(layer.post_attention_layernorm(hidden)), states[1])
    with pytest.raises(ValueError, match="use_cache=False"):
        model(ids, output_attentions=True, use_cache=True)


@pytest.mark.parametrize("place", ["block", "mixer", "feed-forward"])
@torch.no_grad()
def test_hooks_run_with_a_cache_as_without(place: str) -> None:
    """A vector that steers the second layer, in every variant."""
    for variant in VARIANTS:
        model, ids = build(variant, variant), tokens(2, 9)
        layer = model.model.layers[1]
        module = {"block": layer, "mixer": layer.self_attn, "feed-forward": layer.mlp}[place]
        plain = model(ids).logits
        module.register_forward_hook(lambda _, inputs, output: output + 0.5)
        steered = model(ids).logits
        assert not torch.allclose(plain, steered, atol=1e-3)
        cache = DeconAttnCache(model.model)
        cached = torch.cat([model(part, cache=cache).logits for part in ids.split([4, 4, 1], dim=1)], dim=1)
        torch.testing.assert_close(cached, steered, atol=2e-5, rtol=0)


@torch.no_grad()
def test_an_adapter_that_is_switched_reaches_the_fixed_stream() -> None:
    """The fixed stream's part is kept in the cache of one text and nowhere else."""

    class Adapter(torch.nn.Module):
        enabled = True

        def __init__(self, base: torch.nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, inputs: Tensor) -> Tensor:
            return self.base(inputs) + self.enabled * inputs.sum(dim=-1, keepdim=True)

    model, ids = build("rndemb", "fixedseq"), tokens(1, 9)
    model(ids, use_cache=True)
    for layer in model.model.layers:
        adapter = Adapter(layer.self_attn.q_proj)
        adapter.out_features = layer.self_attn.q_proj.out_features
        layer.self_attn.q_proj = adapter
    for enabled in (True, False, True):
        Adapter.enabled = enabled
        torch.testing.assert_close(model(ids, use_cache=True).logits, model(ids).logits, atol=2e-5, rtol=0)


def test_a_cache_has_two_names_and_no_third() -> None:
    model, ids = build("standard"), tokens(1, 4)
    cache = DeconAttnCache(model.model)
    with pytest.raises(ValueError, match="two names"):
        model(ids, cache=cache, past_key_values=cache)
    for name in ("past_key_value", "cache_params", "kv_cache", "state"):
        with pytest.raises(TypeError, match=name):
            model(ids, **{name: cache})
        with pytest.raises(TypeError, match=name):
            model.model(ids, **{name: cache})
    assert model(ids, use_cache=True)[CACHE].get_seq_length() == 4


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@torch.no_grad()
def test_generate_takes_a_cache_under_either_name(name: str) -> None:
    model, ids = build(*MIXED), tokens(1, 12)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, use_cache=False, **options)
    cache = DeconAttnCache(model.model)
    model(ids[:, :6], cache=cache)
    assert model.generate(ids, **{name: cache}, **options).tolist() == expected.tolist()
    assert cache.get_seq_length() == 16


def test_an_empty_cache_after_the_first_token_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a version of transformers hands the cache on under a name that we do not know."""
    model = build("standard")
    prepare = model.prepare_inputs_for_generation

    @wraps(prepare)  # its signature is read
    def losing(*arguments: Any, **options: Any) -> dict[str, Any]:
        inputs = prepare(*arguments, **options)
        return {name: value for name, value in inputs.items() if name != CACHE}

    monkeypatch.setattr(model, "prepare_inputs_for_generation", losing)
    for prompts in ([tokens(1, 6)], [tokens(1, 6, 1), tokens(1, 3, 2)]):
        ids, mask = padded(prompts, "left")
        with pytest.raises(ValueError, match=r"tokens were lost|attention_mask has shape"):
            model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)


def test_the_loss_is_the_trained_models_loss_to_the_gradient() -> None:
    config = small_config(*VARIANTS)
    trained_model: CausalLM = trained(config).double()
    model = build(*VARIANTS).double()
    ids = tokens(2, 30)
    total, count, _ = trained_model(ids[:, :-1], ids[:, 1:])
    (total / count).backward()
    model(ids, labels=ids).loss.backward()
    expected = dict(trained_model.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-9, rtol=1e-9)
