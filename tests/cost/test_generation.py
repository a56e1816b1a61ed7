"""Bytes of decoding caches by the formulas against those that the caches hold, to the byte."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import pytest
import torch

from deconattn.cost import generation
from deconattn.layers.config import ModelConfig
from deconattn.mixers import register, registry, variant_names
from deconattn.model.causal_lm import CausalLM
from deconattn.model.decoding_cache import DecodingCache
from deconattn.model.flops import stream_flops
from deconattn.model.init import initialize
from deconattn.ops import taylor_state
from tests.mixers.test_contract import ThirdParty

PATTERNS = (
    *((variant, "standard", variant) for variant in (*variant_names(), "thirdparty")),
    ("rndemb", "approximate", "fixedseq", "nonapproximate"),
    ("staticemb", "mlp", "thirdparty", "fixedseq", "standard"),
)
HEADS = {"mha": 2, "gqa": 1}
LONGEST = 700


@dataclass(frozen=True)
class Case:
    """A cache, and the tokens of its passes."""

    limit: int | None
    static: bool
    passes: tuple[int, ...]


TURNS = {size: next(room for room in count(1) if taylor_state.is_smaller(32, size, room)) for size in (2, 4)}
"""Tokens from which `approximate` holds sums, by bytes an element."""
CASES = {
    "growing": Case(None, False, (3, 1, 2)),
    "growing on": Case(None, False, (250, 1, 10)),
    "to the stream's end": Case(None, False, (3, 600, 1, 1)),
    "limited": Case(37, False, (3, 1)),
    "the last that keeps tokens": Case(TURNS[4] - 1, False, (300, 1)),
    "the first that sums": Case(TURNS[4], False, (300, 1)),
    **{f"static, kept in {size} bytes": Case(TURNS[size] - 1, True, (3, 1)) for size in TURNS},
    **{f"static, summed in {size} bytes": Case(TURNS[size], True, (3, 1)) for size in TURNS},
}


@pytest.fixture(scope="module", autouse=True)
def third_party() -> Iterator[None]:
    """A mixer with the contract's own cache, registered for these tests alone."""
    before = dict(registry._REGISTRY)
    register("thirdparty")(ThirdParty)
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


def build_model(variants: tuple[str, ...], key_value_heads: int, dtype: torch.dtype) -> CausalLM:
    config = ModelConfig(
        vocab_size=61,
        hidden_size=40,
        intermediate_size=48,
        num_hidden_layers=len(variants),
        num_attention_heads=2,
        num_key_value_heads=key_value_heads,
        head_dim=32,
        max_position_embeddings=LONGEST,
        layer_variants=variants,
    )
    model = CausalLM(config).eval()
    initialize(model, seed=0, fixed_ids=torch.arange(LONGEST) % 61)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
@torch.no_grad()
def test_caches_hold_what_the_formulas_say(variants: tuple[str, ...], heads: str, dtype: torch.dtype):
    for name, case in CASES.items():
        decoder = build_model(variants, HEADS[heads], dtype).model
        config, size = decoder.model_config, dtype.itemsize
        cache = DecodingCache(decoder, case.limit, case.static)
        for tokens in case.passes:
            decoder.extend(torch.zeros(3, tokens, dtype=torch.long), cache)
            assert cache.nbytes == generation.cache_bytes(config, 3, cache.capacity, size), name
            assert cache.fixed_nbytes == generation.fixed_bytes(config, cache.capacity, size), name
        cache.select_rows(torch.tensor([2, 2, 0, 1, 1]))
        assert cache.nbytes == generation.cache_bytes(config, 5, cache.capacity, size), name


def test_both_forms_of_approximate_are_seen():
    assert 256 < TURNS[4] <= 512 < TURNS[2] < LONGEST


@pytest.mark.parametrize("tokens", [1, 256, 257, 600, LONGEST])
@torch.no_grad()
def test_streams_are_held_as_far_as_they_are_likely_needed(tokens: int):
    model = build_model(("rndemb", "standard"), 2, torch.float32)
    cache = DecodingCache(model.model)
    model.model.prepare(cache.layers, tokens, model.model.norm.weight)
    held = cache.fixed_nbytes
    assert held == generation.fixed_bytes(model.config, tokens, 4)
    assert held == {1: 256, 256: 256, 257: 512, 600: LONGEST, LONGEST: LONGEST}[tokens] * 2 * 64 * 4


def test_models_without_streams_hold_none():
    config = build_model(("standard", "mlp"), 2, torch.float32).config
    assert generation.fixed_bytes(config, 512, 4) == stream_flops(config, 512) == 0
