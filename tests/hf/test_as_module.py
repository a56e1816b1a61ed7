"""The model is a module like any other: what is done to it, and what hangs on it, counts in every pass that follows."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from deconattn.errors import UserError
from deconattn.hf.cache_deconattn import DeconAttnCache
from deconattn.hf.modeling_deconattn import CACHE, DeconAttnForCausalLM
from tests.hf.models import tokens, trained
from tests.hf.test_modeling import VARIANTS, build, small_config

GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
IDS = tokens(2, 12)
MASK = torch.tensor([[0] * 3 + [1] * 9, [1] * 12])
FIXED = ("rndemb", "fixedseq", "standard", "rndemb", "fixedseq")


def assert_cached(model: DeconAttnForCausalLM) -> Tensor:
    """Passes with a new cache are those without one; returns their logits."""
    with torch.no_grad():
        expected = model(IDS).logits
        cache = DeconAttnCache(model.model)
        pieces = [model(part, **{CACHE: cache}).logits for part in IDS.split([8, 3, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=5e-5, rtol=0)
    return expected


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _forward_of(module: nn.Module) -> None:
    before = module.forward
    module.forward = lambda *given, **named: 2 * before(*given, **named)


def _scaled(tensor: Tensor) -> Tensor:
    return 1.1 * tensor if tensor.is_floating_point() else tensor


def _swap(model: DeconAttnForCausalLM) -> None:
    other = copy.deepcopy(model.model.layers[0].self_attn.k_proj)
    other.weight.data.mul_(2)
    model.set_submodule("model.layers.0.self_attn.k_proj", other)


CHANGES: dict[str, Callable[[list[Any], DeconAttnForCausalLM], object]] = {
    "data, another": lambda of, m: setattr(of[0].mlp.up_proj.weight, "data", of[1].mlp.up_proj.weight),
    "data, in place": lambda of, m: of[0].self_attn.q_proj.weight.data.mul_(2),
    "a buffer": lambda of, m: m.model.fixed_embeddings.mul_(9),
    "the fixed text": lambda of, m: m.model.fixed_ids.copy_(tokens(1, 80, 9)[0]),
    "a state dict": lambda of, m: m.load_state_dict({name: _scaled(one) for name, one in m.state_dict().items()}),
    "a hook": lambda of, m: of[0].register_forward_hook(lambda _, given, out: out + 1),
    "a hook before the mixer": lambda of, m: of[-1].self_attn.register_forward_pre_hook(
        lambda _, given: (2 * given[0] + 1, *given[1:])
    ),
    "a hook before the last layer": lambda of, m: of[-1].register_forward_pre_hook(
        lambda _, given: (given[0] * torch.arange(32), *given[1:])
    ),
    "a hook on a norm": lambda of, m: of[1].input_layernorm.register_forward_hook(lambda _, given, out: out.flip(-1)),
    "another forward of a linear layer": lambda of, m: _forward_of(of[0].mlp.down_proj),
    "another forward of a mixer": lambda of, m: _forward_of(of[0].self_attn),
    "a parametrisation": lambda of, m: parametrize.register_parametrization(of[0].self_attn.k_proj, "weight", Double()),
    "another module": lambda of, m: _swap(m),
    "tied layers": lambda of, m: setattr(of[1], "mlp", of[0].mlp),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_change_reaches_the_next_cache(change: str) -> None:
    model = build(*FIXED)
    before = assert_cached(model)
    CHANGES[change](list(model.model.layers), model)
    assert not torch.allclose(assert_cached(model), before, atol=1e-3)


def test_what_is_for_all_modules_and_ends_again() -> None:
    model = build(*FIXED)
    before = assert_cached(model)
    hook = register_module_forward_hook(lambda module, _, out: 1.5 * out if isinstance(module, nn.Linear) else None)
    try:
        assert not torch.allclose(assert_cached(model), before, atol=1e-3)
    finally:
        hook.remove()
    torch.testing.assert_close(assert_cached(model), before)
    assert_cached(model.train())
    torch.testing.assert_close(assert_cached(model.double().float().eval()), before)


def test_a_cache_that_is_reset_begins_anew() -> None:
    model = build("rndemb", "fixedseq")
    cache = DeconAttnCache(model.model)
    with torch.no_grad():
        model(IDS, **{CACHE: cache})
        cache.reset()
        model.model.layers[0].self_attn.q_proj.weight.data.mul_(2)
        torch.testing.assert_close(model(IDS, **{CACHE: cache}).logits, model(IDS).logits, atol=5e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_module_is_called_for_every_token(variant: str) -> None:
    """Eight tokens are eight calls; of a fixed stream, which runs ahead, one more in the layers that it passes."""
    model, calls = build(variant, "standard"), dict[str, int]()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    model.generate(IDS, **GREEDY)
    mixer, norm = "model.layers.0.self_attn", "model.layers.0.input_layernorm"
    expected = {name: 8 for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}
    if variant == "staticemb":
        expected[norm] = 16  # of the embeddings, too
    if model.model.streams:
        expected |= {"model.layers.0": 9, mixer: 9, norm: 9, f"{mixer}.q_proj": 1, f"{mixer}.k_proj": 1}
        expected["model.embed_tokens"] = 8 + (variant == "fixedseq")
    assert calls == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_with_a_cache_are_those_without(variant: str) -> None:
    model, gradients = build(variant, variant), []
    for use_cache in (False, True):
        model.zero_grad()
        model(IDS, labels=IDS, use_cache=use_cache).loss.backward()
        gradients.append({name: one.grad.clone() for name, one in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [12, 70])
def test_autocast_is_bf16_forward_and_backward(variant: str, length: int) -> None:
    """Within a few per cent of fp32, wherever the backward pass is called; of training's own model, too."""
    ids, ours = tokens(2, length), trained(small_config(variant, variant, qk_norm=True))
    for model, loss_of in (
        (build(variant, variant, num_key_value_heads=2), lambda m: m(ids, labels=ids).loss),
        (ours, lambda m: m(ids[:, :-1], ids[:, 1:]).total),
    ):
        gradients = []
        for enabled, inside in ((False, False), (True, False), (True, True)):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = loss_of(model)
                if inside:
                    loss.backward()
            if not inside:
                loss.backward()
            gradients.append(torch.cat([one.grad.flatten() for one in model.parameters()]))
        for gradient in gradients[1:]:
            assert (gradient - gradients[0]).norm() < 0.06 * gradients[0].norm()
            assert not gradient.equal(gradients[0])


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_autocast_with_a_cache(variant: str) -> None:
    model = build(variant, variant)
    exact = model(IDS).logits
    with torch.autocast("cpu", torch.bfloat16):
        cache = DeconAttnCache(model.model)
        pieces = [model(part, **{CACHE: cache}).logits.float() for part in IDS.split([7, 4, 1], dim=1)]
    assert (torch.cat(pieces, dim=1) - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_layers_on_two_devices(variant: str) -> None:
    """The second and third layer are on the meta device, which computes shapes and refuses tensors of another."""
    hooks = pytest.importorskip("accelerate.hooks")
    model = build(variant, variant, variant)
    for module in (*model.model.layers[1:], model.model.norm, model.lm_head):
        place = hooks.AlignDevicesHook(execution_device="meta", io_same_device=False)
        hooks.add_hook_to_module(module.to("meta"), place)
    documents = torch.cat([torch.arange(5), torch.arange(7)])[None]
    for given in ({"labels": IDS}, {"attention_mask": MASK, "output_hidden_states": True}, {"position_ids": documents}):
        assert model(IDS, **given).logits.device.type == "meta"
    for mask in (None, MASK):
        cache = model(IDS, attention_mask=mask, use_cache=True)[CACHE]
        for more in (1, 3):
            assert model(IDS[:, :more], **{CACHE: cache}).logits.shape == (2, more, 300)


def test_a_model_is_placed_by_itself(tmp_path: Any) -> None:
    """Some layers in memory, the rest on the disk, by `device_map="auto"`."""
    pytest.importorskip("accelerate")
    model = build(*VARIANTS, "rndemb")
    model.save_pretrained(tmp_path / "model")
    placed = DeconAttnForCausalLM.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": 260_000}, offload_folder=tmp_path / "offload"
    )
    assert {"cpu", "disk"} == set(placed.hf_device_map.values())
    torch.testing.assert_close(assert_cached(placed), assert_cached(model))


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_are_resized(tied: bool) -> None:
    model = build(*VARIANTS, tie_word_embeddings=tied)
    before = assert_cached(model)
    model.resize_token_embeddings(320)
    torch.testing.assert_close(assert_cached(model)[..., :300], before)
    assert model.config.vocab_size == model.model.model_config.vocab_size == 320
    longest = int(model.model.fixed_ids.max())
    with pytest.raises(UserError, match=f"fixed text has token {longest}: keep {longest + 1} embeddings"):
        model.resize_token_embeddings(longest)


def test_a_length_that_nobody_asked_for_ends_with_the_stream() -> None:
    model, ids = build("rndemb", "standard"), tokens(1, 70)
    for inputs in ({"input_ids": ids}, {"inputs_embeds": model.get_input_embeddings()(ids)}):
        with pytest.warns(UserWarning, match="model-agnostic default `max_length`"):
            generated = model.generate(**inputs, do_sample=False, eos_token_id=None)
        assert generated.shape[1] == (80 if "input_ids" in inputs else 10)
