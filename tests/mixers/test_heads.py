"""Layers of several mixers by heads: each part against its mixer alone, and what the contract promises."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from deconattn.config.flags import model_config
from deconattn.config.presets import SIZES, size_defaults
from deconattn.cost.parameters import rank_parameters
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.mixers import HeadMixer, Mixer, MixerContext, Workload, mixer_class, register, registry, zoo_names
from deconattn.mixers.costs import attention_parameters
from deconattn.model.block import Block
from deconattn.model.decoding_cache import DecodingCache
from deconattn.model.streams import is_ours
from deconattn.parallel.tensor import cut_tensors
from deconattn.parallel.trial import Trial
from tests.mixers import test_contract, test_decoding
from tests.mixers.models import BASE, HEADS, ThirdParty, build_model, mixes, random_tokens
from tests.mixers.test_contract import build_context, build_inputs, build_mixer, gradients

PAIRS = (
    "standard[0-1]+nonapproximate[2-3]",
    "approximate[0-1]+mlp[2-3]",
    "fixedseq[0-1]+standard[2-3]",
    "staticemb[0-1]+rndemb[2-3]",
    "sliding-window[0-1]+gated-deltanet[2-3]",
)
FOURS = ("standard[0]+rndemb[1]+mlp[2]+approximate[3]", "rndemb[0]+standard[1]+rndemb[2]+staticemb[3]")
"""Parts of one head each, which have no groups."""
LAYOUTS = [(name, heads) for name in PAIRS for heads in ("mha", "gqa")] + [(name, "mha") for name in FOURS]
ZOO = tuple(f"standard[0-1]+{name}[2-3]" for name in zoo_names())
DOCUMENTS = pytest.mark.parametrize("masked", [False, True], ids=["plain", "documents"])
EACH = pytest.mark.parametrize(
    ("variant", "heads"), [*LAYOUTS, *(pytest.param(name, "mha", marks=pytest.mark.slow) for name in ZOO)]
)
MODELS = pytest.mark.parametrize(
    "variants",
    [
        ("standard[0-1]+nonapproximate[2-3]", "approximate[0-1]+rndemb[2-3]", "staticemb[0-1]+mlp[2-3]"),
        ("mlp[0-1]+fixedseq[2-3]", "standard", "sliding-window[0-1]+gated-deltanet[2-3]"),
    ],
    ids=",".join,
)


def each_alone(mixer: Mixer, hidden: Tensor, static: Tensor, context: MixerContext) -> Iterator[Tensor]:
    """Yield what each part gives as the mixer of a layer of its own, with its rows of this layer's very weights."""
    assert isinstance(mixer, HeadMixer)
    whole = {**dict(mixer.named_parameters()), **dict(mixer.named_buffers())}
    size, group = mixer.config.head_dim, mixer.config.num_attention_heads // mixer.config.num_key_value_heads
    first = 0  # of the heads that have rows in the layer's projections
    for number, (kind, own) in enumerate(type(mixer).of(mixer.config)):
        prefix = f"parts.{number}."
        tensors = {name.removeprefix(prefix): one for name, one in whole.items() if name.startswith(prefix)}
        if not tensors:
            rows = slice(first * size, (first + own.num_attention_heads) * size)
            shared = slice(rows.start // group, rows.stop // group)
            first += own.num_attention_heads
            for one, part in (("q_proj", rows), ("k_proj", shared), ("v_proj", shared)):
                tensors |= {name: whole[name][part] for name in (f"{one}.weight", f"{one}.bias") if name in whole}
            tensors |= {name: whole[name] for name in ("q_norm.weight", "k_norm.weight") if name in whole}
            tensors["o_proj.weight"] = whole["o_proj.weight"][:, rows]
        yield functional_call(kind(own).double(), tensors, (hidden, static, context), strict=True)


@DOCUMENTS
@EACH
def test_forward_and_gradients_are_those_of_each_part_alone(variant: str, heads: str, masked: bool):
    check_parts_alone(build_mixer(variant, **HEADS[heads]), masked)


@pytest.mark.parametrize("variant", [*PAIRS[:4], *FOURS])
def test_query_and_key_norms_are_the_layers(variant: str):
    mixer = build_mixer(variant, qk_norm=True, attention_bias=False)
    assert mixer.num_parameters(mixer.config) == sum(parameter.numel() for parameter in mixer.parameters())
    check_parts_alone(mixer, masked=True)


def check_parts_alone(mixer: Mixer, masked: bool) -> None:
    """Compare output and all gradients with those of the parts alone, in float64."""
    for length in (1, 65, 130):
        context = build_context(mixer.config, 2, length, masked, torch.double)
        hidden, static, upstream = build_inputs(4, length)
        output = mixer(hidden, static, context)
        expected = torch.stack([*each_alone(mixer, hidden, static, context)]).sum(dim=0)
        assert_close(output, expected, rtol=1e-10, atol=1e-10)
        got = gradients(output, mixer, hidden, static, upstream)
        wanted = gradients(expected, mixer, hidden, static, upstream)
        names = ["hidden", "static", *(name for name, _ in mixer.named_parameters())]
        for name, ours, theirs in zip(names, got, wanted, strict=True):
            scale = 1e-9 * max(1.0, float(theirs.abs().max()))
            assert_close(ours, theirs, rtol=1e-9, atol=scale, msg=lambda m, n=name, x=length: f"{n}, length {x}: {m}")


@EACH
def test_parameters(variant: str, heads: str):
    test_contract.test_num_parameters_is_the_modules(variant, heads)


@EACH
def test_tensor_parallel_parts_sum_to_the_whole(variant: str, heads: str):
    if variant not in FOURS:  # a part of one head with weights of its own
        test_contract.test_tensor_parallel_parts_sum_to_the_whole(variant, heads, ranks=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@EACH
def test_activation_bytes(variant: str, heads: str, dtype: torch.dtype):
    test_contract.test_activation_bytes_are_what_autograd_keeps(variant, dtype, heads)


@EACH
def test_flops_are_the_parts(variant: str, heads: str):
    config, work = replace(BASE, **HEADS[heads]), Workload(2, 64)
    test_contract.test_forward_flops_grow_by_the_same_amount_with_each_row(variant)
    mixer = mixer_class(variant)
    assert mixer.forward_flops(config, work) == sum(kind.forward_flops(own, work) for kind, own in mixer.of(config))


@DOCUMENTS
@EACH
def test_map_has_the_heads_of_the_parts_that_have_one(variant: str, heads: str, masked: bool):
    mixer = build_mixer(variant, **HEADS[heads])
    context = build_context(mixer.config, 2, 130, masked, torch.double)
    hidden, static, _ = (one.detach() for one in build_inputs(4, 130))
    weights = mixer.attention_map(hidden, static, context)
    maps = [part.attention_map(hidden, static, context) for part in map(mixer.part, range(len(mixer.parts)))]
    present = [one for one in maps if one is not None]
    assert present and torch.equal(weights, torch.cat(present, dim=1))
    assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3], dtype=torch.double), rtol=1e-12, atol=1e-12)
    test_contract.test_blocks_of_the_map_are_its_rows(variant, masked, heads)


def test_each_activation_is_shown_once():
    """One a token of `nonapproximate` beside one a pair of `standard`."""
    mixer = build_mixer("standard[0-1]+nonapproximate[2-3]")
    context = build_context(mixer.config, 2, 50, False, torch.double)
    hidden, static, _ = build_inputs(4, 50)
    found = [block.scores for block in mixer.map_blocks(hidden, static, context, 20)]
    assert [one.shape[2] for one in found] == [20, 20, 10]
    counts = sum(one.isfinite().sum(dim=(0, 2, 3)) for one in found)
    assert counts.tolist() == [4 * 50 * 51 // 2] * 2 + [4 * 50] * 2


@DOCUMENTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", PAIRS)
def test_low_precision(variant: str, dtype: torch.dtype, masked: bool):
    test_contract.test_low_precision_is_close_to_float64(variant, dtype, masked)


@MODELS
def test_models_keep_the_contract(variants: tuple[str, ...]):
    test_contract.test_changing_a_token_changes_nothing_before_it(variants)
    test_contract.test_rows_of_a_batch_do_not_meet(variants)
    test_contract.test_packed_documents_get_what_each_gets_alone(variants)


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@MODELS
def test_decoding_is_the_whole_pass(variants: tuple[str, ...], static: bool):
    test_decoding.test_steps_from_any_prefill_are_the_whole_pass(variants, static)


@MODELS
def test_caches_are_padded_reordered_and_reset(variants: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    test_decoding.test_padding_counts_for_nothing(variants, False, monkeypatch)
    test_decoding.test_rows_are_reordered_repeated_and_dropped(variants, False)
    test_decoding.test_a_cache_is_reset(variants)
    test_decoding.test_the_gradient_of_a_first_pass_is_that_of_the_whole(variants)


def test_tokens_are_taken_back_where_every_part_can():
    test_decoding.test_tokens_are_taken_back(("standard[0-1]+rndemb[2-3]", "staticemb[0-1]+mlp[2-3]"), False)
    assert not DecodingCache(build_model((PAIRS[0],)).model).croppable
    assert DecodingCache(build_model((PAIRS[1],)).model).croppable


@pytest.mark.parametrize("variant", PAIRS)
def test_cache_bytes_are_the_caches(variant: str):
    model, mixer = build_model((variant,)), mixer_class(variant)
    cache = DecodingCache(model.model)
    test_decoding.decoded(model, random_tokens(2, 40), [39, 1], cache)
    work = Workload(2, cache.capacity, 8)
    assert cache.nbytes == mixer.decoding.cache_bytes(mixer, model.config, work)
    assert cache.fixed_nbytes == mixer.decoding.fixed_bytes(mixer, model.config, cache.capacity, 8)


@pytest.mark.parametrize("variant", [*PAIRS, *(pytest.param(name, marks=pytest.mark.slow) for name in ZOO)])
def test_it_is_tried_as_a_plugin_is(variant: str):
    config = replace(BASE, num_key_value_heads=2)
    assert "parts of 2 tensor-parallel ranks" in Trial(variant, config, tp_size=2, doc_mask=True).run()


def test_an_all_standard_layers_weights_are_its_own():
    """Names, shapes and initial values: parts of attention's shape read rows of them."""
    whole = build_model(("standard",) * 2).state_dict()
    variant = "rndemb[0-1]+approximate[2-3]"
    mixed = build_model((variant, "standard")).state_dict()
    assert mixed.keys() - whole.keys() == {"model.fixed_embeddings"}
    assert all(mixed[name].shape == tensor.shape for name, tensor in whole.items())


@pytest.mark.parametrize("size", SIZES)
def test_parameters_match_standard_attention(size: str):
    config = model_config(size_defaults(size).model, 50_304, 2048)
    group = config.num_attention_heads // config.num_key_value_heads
    allowed = (attention_parameters(config) + 3 * config.hidden_size * config.intermediate_size) / 1000
    first = config.num_key_value_heads // 2 * group
    for name in ("nonapproximate", "rndemb", "mlp", "gla", "mamba2", "shift", "average", "gated-attention"):
        mixer = mixer_class(f"standard[0-{first - 1}]+{name}[{first}-{config.num_attention_heads - 1}]")
        missed = abs(mixer.num_parameters(config) - attention_parameters(config))
        assert missed <= (0 if name in ("nonapproximate", "rndemb") else allowed), name


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("standard[0-1]+mlp[3]", "head 2 is in no part: give each of the 4 heads to one part"),
        ("standard[1-3]", "head 0 is in no part"),
        ("standard[0-2]+mlp[2-3]", "head 2 is twice"),
        ("standard[0-1]", "head 2 is in no part"),
        ("standard[0-1]+mlp[2-4]", "mlp[2-4] is beyond the layer's 4 heads, 0 to 3"),
        ("standard[0]+mlp[1-3]", "mlp[1-3] cuts heads 0 to 1, which share a key/value head: keep groups of 2 heads"),
        ("standard[0-1]+mlp", "cannot read 'mlp'; write NAME[FIRST-LAST]"),
        ("standard[1-0]+mlp[2-3]", "'standard[1-0]' ends before it begins"),
    ],
)
def test_heads_that_make_no_layer_are_refused(variant: str, message: str):
    with pytest.raises(UserError) as raised:
        mixer_class(variant)(replace(BASE, num_key_value_heads=2))
    assert message in str(raised.value)


def test_parts_that_make_no_layer_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register("uncut")
    class Uncut(ThirdParty):
        splits = None

    with pytest.raises(UserError, match="uncut declares no splits, so it cannot be cut by heads: use it whole"):
        mixer_class("standard[0-1]+uncut[2-3]").check_parts(BASE, 1)
    with pytest.raises(UserError, match="rndemb and fixedseq read fixed streams, and a layer reads one"):
        mixer_class("rndemb[0-1]+fixedseq[2-3]")
    assert not is_ours(mixer_class("standard[0-1]+thirdparty[2-3]")) and is_ours(mixer_class(PAIRS[0]))


@pytest.mark.parametrize(
    ("variant", "changes", "ranks", "message"),
    [
        ("standard[0-2]+mlp[3]", {}, 2, "divide the 3 heads of the parts that share attention's projections"),
        (
            "standard[0-1]+gla[2-3]",
            {},
            4,
            "does not divide the 2 heads of the parts that share attention's projections",
        ),
        ("mlp[0-2]+gla[3]", {}, 2, "--tp 2 does not divide the 1 heads of gla[3] in"),
        ("mlp[0-1]+standard[2-3]", {"num_key_value_heads": 2}, 2, "2 heads over 1 key/value heads of the parts that"),
        ("standard[0-1]+nope[2-3]", {}, 2, "order them so that each 2 heads that share projections have the same, or"),
        ("standard[0]+nope[1]+nope[2]+standard[3]", {}, 2, "ranks 0 and 1 would have different parts"),
    ],
)
def test_ranks_that_cannot_cut_the_parts_are_refused(variant: str, changes: dict[str, int], ranks: int, message: str):
    config: ModelConfig = replace(BASE, **changes)
    mixer_class(variant).check_parts(config, 1)
    with pytest.raises(UserError) as raised:
        mixer_class(variant).check_parts(config, ranks)
    assert message in str(raised.value)


def test_ranks_with_the_same_parts_can_cut_them():
    for variant in ("standard[0]+nope[1]+standard[2]+nope[3]", "standard[0-1]+mlp[2-3]", "gla[0-1]+mlp[2-3]"):
        mixer_class(variant).check_parts(BASE, 2)
    mixer_class("rndemb[0-7]+standard[8-15]+rndemb[16-23]+standard[24-31]").check_parts(
        replace(BASE, num_attention_heads=32, num_key_value_heads=4), 2
    )


@pytest.mark.parametrize("variant", ["standard[0]+nope[1]+standard[2]+nope[3]", "alibi[0-1]+mlp[2-3]"])
def test_a_ranks_parameters_are_counted(variant: str):
    config = replace(BASE, layer_variants=(variant,))
    block = Block(config, variant)
    for module in (block.self_attn, block.mlp):
        cut_tensors(module, config, rank=0, ranks=2)
    held = sum(parameter.numel() for parameter in block.parameters())
    assert rank_parameters(config, range(1), tp_size=2).layers == (held,)


def test_an_adapter_on_a_shared_projection_counts():
    """It is another module than ours: its outputs are taken whole, and each part reads its own of them."""
    mixer = build_mixer(PAIRS[0])
    context = build_context(mixer.config, 2, 20, False, torch.double)
    hidden, static, _ = build_inputs(4, 20)

    class Adapted(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base, self.delta = base, nn.Linear(BASE.hidden_size, base.out_features, bias=False).double()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.base(inputs) + self.delta(inputs)

    adapted = Adapted(mixer.q_proj)
    merged = build_mixer(PAIRS[0])
    with torch.no_grad():
        merged.q_proj.weight += adapted.delta.weight
    mixer.q_proj = adapted
    assert_close(mixer(hidden, static, context), merged(hidden, static, context), rtol=1e-12, atol=1e-12)


def test_principles_are_those_of_the_heads_that_mix():
    assert mixer_class("standard[0-1]+mlp[2-3]").principles == mixer_class("standard").principles
    assert mixer_class("rndemb[0-1]+approximate[2-3]").principles.group == "mathematical form and sequence dependency"
    assert all(map(mixes, PAIRS))
