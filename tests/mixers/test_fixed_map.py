"""rndemb and fixedseq: maps that the input does not touch, and fixed streams that are sequences like any other."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.layers.config import ModelConfig
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize

WORDS, LENGTH = 61, 150
TEXT = torch.randint(WORDS, (LENGTH,), generator=torch.Generator().manual_seed(5))
RANDOM = torch.arange(WORDS, WORDS + LENGTH)
"""Token ids whose embeddings are, by construction of the models below, the random stream's rows."""


def build_model(*variants: str) -> CausalLM:
    """float64, same weights for the same names; the embedding table goes on with the random stream."""
    config = ModelConfig(WORDS + LENGTH, 32, 48, len(variants), 4, 2, 8, LENGTH, variants)
    model = CausalLM(config).double()
    initialize(model, seed=0, fixed_ids=TEXT)
    donor = CausalLM(ModelConfig(WORDS + LENGTH, 32, 48, 1, 4, 2, 8, LENGTH, ("rndemb",))).double()
    initialize(donor, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(10)
        model.model.embed_tokens.weight[WORDS:] = donor.model.fixed_embeddings
    return model


def hidden_states(model: CausalLM, tokens: Tensor) -> list[Tensor]:
    """Of every row, the fixed streams' too, after each layer."""
    model.model.last_fixed_layer = len(model.model.layers)  # keep the streams to the end
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in model.model.layers]
    with torch.no_grad():
        model.model(tokens)
    for hook in hooks:
        hook.remove()
    return outputs


def attention_maps(model: CausalLM, tokens: Tensor) -> list[Tensor]:
    maps: list[Tensor] = []
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda mixer, args: maps.append(mixer.attention_map(*args)))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model.model(tokens)
    for hook in hooks:
        hook.remove()
    return maps


def random_tokens(rows: int, length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randint(WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", ["rndemb", "fixedseq"])
def test_map_does_not_depend_on_the_input(variant: str):
    model = build_model(*[variant] * 3)
    one, other = attention_maps(model, random_tokens(2, seed=1)), attention_maps(model, random_tokens(2, seed=2))
    for ours, theirs in zip(one, other, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert torch.equal(ours[0], ours[1])
    assert (one[0] - one[1]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["rndemb", "fixedseq"])
def test_a_shorter_batch_sees_the_prefix_of_the_map(variant: str):
    model = build_model(*[variant] * 3)
    whole, prefix = attention_maps(model, random_tokens(1)), attention_maps(model, random_tokens(1, length=70))
    for ours, theirs in zip(prefix, whole, strict=True):
        assert_close(ours, theirs[..., :70, :70], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("variant", "ids"), [("rndemb", RANDOM), ("fixedseq", TEXT)])
def test_uniform_stream_is_a_plain_forward_pass(variant: str, ids: Tensor):
    """Fed its own stream as data, a model sees in row 0 what it sees in row X; so does `standard`, same weights."""
    fixed = hidden_states(build_model(*[variant] * 3), ids[None])
    plain = hidden_states(build_model(*["standard"] * 3), ids[None])
    for ours, theirs in zip(fixed, plain, strict=True):
        assert len(ours) == 2
        assert len(theirs) == 1
        assert_close(ours[0], ours[1], rtol=1e-10, atol=1e-10)
        assert_close(ours[1], theirs[0], rtol=1e-10, atol=1e-10)
    maps = attention_maps(build_model(*[variant] * 3), random_tokens(1))
    for ours, theirs in zip(maps, attention_maps(build_model(*["standard"] * 3), ids[None]), strict=True):
        assert_close(ours[0], theirs[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("variants", "plain"),
    [
        (("standard", "rndemb", "mlp", "rndemb"), ("standard", "standard", "mlp", "standard")),
        (("approximate", "fixedseq", "staticemb", "fixedseq"), ("approximate", "standard", "staticemb", "standard")),
    ],
)
def test_hybrid_stream_passes_the_other_layers_like_data(variants: tuple[str, ...], plain: tuple[str, ...]):
    ids = RANDOM if "rndemb" in variants else TEXT
    fixed, data = hidden_states(build_model(*variants), random_tokens(2)), hidden_states(build_model(*plain), ids[None])
    for ours, theirs in zip(fixed, data, strict=True):
        assert_close(ours[-1], theirs[0], rtol=1e-10, atol=1e-10)


def test_two_streams_keep_their_own_maps():
    variants = ("rndemb", "standard", "fixedseq", "nonapproximate", "rndemb", "fixedseq")
    model = build_model(*variants)
    # Both streams again as data: each must be carried as that data is, in the order random, text.
    tokens = torch.cat([RANDOM[None], TEXT[None], random_tokens(1)])
    for state in hidden_states(model, tokens):
        assert len(state) == 5
        assert_close(state[3:], state[:2], rtol=1e-10, atol=1e-10)
        assert (state[3] - state[4]).abs().max() > 1e-2
    # The map of a fixed layer is the plain map of its own stream at that layer, whoever asks.
    own = attention_maps(model, random_tokens(1))
    states = hidden_states(model, random_tokens(1))
    for layer, variant in enumerate(variants):
        if variant not in ("rndemb", "fixedseq"):
            continue
        row = -2 if variant == "rndemb" else -1
        ids = RANDOM if variant == "rndemb" else TEXT
        entering = model.model.embed_tokens(ids)[None] if layer == 0 else states[layer - 1][row].unsqueeze(0)
        standard = build_model(*["standard"] * len(variants)).model.layers[layer]
        context = model.model.context(entering.shape[1], entering)
        expected = standard.self_attn.attention_map(standard.input_layernorm(entering), None, context)
        assert_close(own[layer][0], expected[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", ["rndemb", "fixedseq"])
def test_gradients_flow_through_the_stream(variant: str):
    """Into the layers before, and where the stream is text into rows of the table that the data never reads."""
    model = build_model("mlp", variant)
    if variant == "fixedseq":
        model.model.fixed_ids = torch.arange(WORDS - 20, WORDS).repeat(8)[:LENGTH]
    tokens = random_tokens(1) % 30
    weight = model.model.embed_tokens.weight
    gate = model.model.layers[0].self_attn.gate_proj.weight
    grad_table, grad_gate = torch.autograd.grad(model.logits(tokens).square().sum(), [weight, gate])
    assert grad_gate.abs().max() > 0
    unseen = grad_table[WORDS - 20 : WORDS]
    assert bool(unseen.abs().max() > 1e-6) == (variant == "fixedseq")


def test_first_layer_of_staticemb_is_standard():
    ids = random_tokens(2)
    static, plain = (
        hidden_states(build_model(*["staticemb"] * 2), ids),
        hidden_states(build_model(*["standard"] * 2), ids),
    )
    assert_close(static[0], plain[0], rtol=1e-12, atol=1e-12)
    assert (static[1] - plain[1]).abs().max() > 1e-2
    maps = attention_maps(build_model(*["staticemb"] * 2), ids), attention_maps(build_model(*["standard"] * 2), ids)
    assert_close(maps[0][0], maps[1][0], rtol=1e-12, atol=1e-12)
    assert (maps[0][1] - maps[1][1]).abs().max() > 1e-3


def test_second_layer_of_staticemb_maps_the_embeddings():
    """Its map is the one that a first layer with the second's weights would have."""
    ids = random_tokens(2)
    model = build_model("mlp", "staticemb")
    layer = model.model.layers[1]
    embedded = layer.input_layernorm(model.model.embed_tokens(ids))
    expected = (
        build_model("mlp", "standard")
        .model.layers[1]
        .self_attn.attention_map(embedded, None, model.model.context(embedded.shape[1], embedded))
    )
    assert_close(attention_maps(model, ids)[1], expected, rtol=1e-12, atol=1e-12)
