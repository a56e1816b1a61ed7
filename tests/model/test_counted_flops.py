"""FLOPs by the formulas against those that torch counts while a model runs.

The counter sees matrix products, and nothing else: no norm, bias, softmax, rotation, lookup or feature. The formulas
leave these out too. By how much a pass differs otherwise, the functions `map_differs`, `prefill_differs` and
`step_differs` say, each for one layer.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deconattn.cost import generation
from deconattn.layers.config import ModelConfig
from deconattn.mixers import Workload, mixer_class, variant_names
from deconattn.model.causal_lm import CausalLM
from deconattn.model.decoding_cache import DecodingCache
from deconattn.model.flops import forward_flops, step_flops, stream_flops
from deconattn.model.held_streams import HeldStreams
from deconattn.model.init import initialize
from deconattn.model.streams import Streams, layer_output_rows
from deconattn.ops import taylor_state

ROWS, LENGTH, LONGER = 3, 20, 40
"""Room for LENGTH tokens `approximate` fills with keys and values, for LONGER with sums (head_dim 8, fp32)."""
HEADS = {"mha": 4, "gqa": 2}
MIXED = (("rndemb", "standard", "fixedseq", "mlp"), ("staticemb", "fixedseq", "nonapproximate", "approximate"))
PATTERNS = (*((variant, "standard", variant) for variant in variant_names()), *MIXED)
FIXED = ("rndemb", "fixedseq")


@pytest.fixture(autouse=True)
def countable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything by plain matrix products."""
    monkeypatch.setenv("DECONATTN_BACKEND", "reference")
    with sdpa_kernel(SDPBackend.MATH):
        yield


def build_model(variants: tuple[str, ...], key_value_heads: int) -> CausalLM:
    """Every dimension another number, so that none passes for another."""
    config = ModelConfig(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=len(variants),
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        head_dim=8,
        max_position_embeddings=LONGER,
        layer_variants=variants,
    )
    model = CausalLM(config).eval()
    initialize(model, seed=0, fixed_ids=torch.arange(LONGER))
    return model


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: added_in_place}) as counter:
        call()
    return counter.get_total_flops()


def added_in_place(_: torch.Size, left: torch.Size, right: torch.Size, **others: object) -> int:
    """Of a product that torch does not count by itself."""
    return 2 * left.numel() * right[-1]


def tokens(length: int) -> torch.Tensor:
    return torch.arange(ROWS * length).reshape(ROWS, length) % 61


def map_differs(config: ModelConfig, variant: str, rows: int, length: int) -> int:
    """The reference backend computes whole maps: a causal one needs half, and `nonapproximate` none."""
    half = length**2 * config.query_size  # of a map, or of a map applied
    if variant in FIXED:
        return (1 + rows) * half
    if variant == "nonapproximate":
        return 2 * rows * half - 4 * rows * length * config.query_size  # its scores and averages
    return 0 if variant == "mlp" else 2 * rows * half


def prefill_differs(config: ModelConfig, variant: str, length: int) -> int:
    """Beside its map: what fills the cache."""
    if variant == "nonapproximate":  # the last average again
        return 2 * ROWS * length * config.query_size
    if holds_sums(config, variant, length):
        return -length * denominators(config)
    return 0


def step_differs(config: ModelConfig, variant: str, length: int, static: bool) -> int:
    if variant in FIXED and static:  # rows may be at different positions: each has its row of the map
        return (ROWS - 1) * 2 * length * config.query_size
    if variant == "nonapproximate":  # its score and average are no matrix products
        return -4 * ROWS * config.query_size
    if holds_sums(config, variant, length):
        # The new token is read as it is, and added to the sums at once or, where shapes may change, with later ones.
        new = 4 * ROWS * config.query_size
        return new - denominators(config) * (1 if static else 1 + config.head_dim)
    return 0


def holds_sums(config: ModelConfig, variant: str, capacity: int) -> bool:
    return variant == "approximate" and taylor_state.is_smaller(config.head_dim, 4, capacity)


def denominators(config: ModelConfig) -> int:
    """A token's features are added to the denominator's sums without a matrix product."""
    return 2 * ROWS * config.num_key_value_heads * taylor_state.num_features(config.head_dim)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
def test_training(variants: tuple[str, ...], heads: str):
    model = build_model(variants, HEADS[heads])
    config = model.config
    more = 0
    for variant, rows in zip(variants, layer_output_rows(config, ROWS), strict=True):
        more += map_differs(config, variant, rows, LENGTH)

    def step() -> None:
        model.logits(tokens(LENGTH)).sum().backward()

    with torch.no_grad():
        forward = counted(lambda: model.logits(tokens(LENGTH)))
    assert forward == forward_flops(config, ROWS, LENGTH) + more
    assert counted(step) == 3 * forward


@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
def test_a_step_that_holds_the_fixed_streams(variants: tuple[str, ...]):
    model = build_model(variants, 2)
    config, found = model.config, Streams.of(variants)
    if not found.fixed:
        return
    streams, ids = HeldStreams(), tokens(LENGTH)

    def step() -> None:
        for number in range(3):
            streams.last = number == 2
            model.lm_head(streams(model.model, ids)).sum().backward()

    count = counted(step)
    more = 3 * 3 * sum(map_differs(config, variant, ROWS, LENGTH) for variant in variants)
    passed = variants[: found.last_fixed_layer]
    more += 4 * sum(map_differs(config, variant, len(found.fixed), LENGTH) for variant in passed)
    assert count == step_flops(config, ROWS, LENGTH, 3) + more


@pytest.mark.parametrize("length", [LENGTH, LONGER])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
@torch.no_grad()
def test_prefill(variants: tuple[str, ...], heads: str, length: int):
    model = build_model(variants, HEADS[heads])
    config = model.config
    cache = DecodingCache(model.model, limit=length)
    count = counted(lambda: model.lm_head(model.model.extend(tokens(length), cache)[:, -1:]))
    more = counted(lambda: model.model.prepare(cache.layers, cache.capacity, model.model.norm.weight))
    for variant in variants:
        more += map_differs(config, variant, ROWS, length) + prefill_differs(config, variant, length)
    assert count == generation.prefill_flops(config, ROWS, length, 4) + more


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("length", [LENGTH, LONGER])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
@torch.no_grad()
def test_a_decoded_token(variants: tuple[str, ...], heads: str, length: int, static: bool):
    model = build_model(variants, HEADS[heads])
    cache = DecodingCache(model.model, length, static)
    model.model.extend(tokens(length - 1), cache)
    count = counted(lambda: model.lm_head(model.model.extend(tokens(1), cache)))
    more = sum(step_differs(model.config, variant, length, static) for variant in variants)
    assert count == generation.decode_flops(model.config, ROWS, length, 4) + more


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
@torch.no_grad()
def test_the_fixed_streams(variants: tuple[str, ...], heads: str):
    model = build_model(variants, HEADS[heads])
    config = model.config
    found = Streams.of(config.layer_variants)
    streams, last = len(found.fixed), found.last_fixed_layer
    cache = DecodingCache(model.model)
    count = counted(lambda: model.model.prepare(cache.layers, LONGER, model.model.norm.weight))
    more = 0
    for variant in variants[: max(last, 0)]:
        more += map_differs(config, variant, streams, LONGER)
    assert count == stream_flops(config, LONGER) + more
    assert (count > 0) == any(variant in FIXED for variant in variants)


def test_long_sequences_of_approximate_take_the_sums():
    mixer, short = mixer_class("approximate"), build_model(("approximate",), 2).config
    a_step = mixer.decoding.decode_flops(mixer, short, Workload(1, 10_000))
    assert a_step == mixer.decoding.decode_flops(mixer, short, Workload(1, 20_000))
    assert (
        mixer.forward_flops(short, Workload(ROWS, 10_000))
        == mixer.decoding.prefill_flops(mixer, short, Workload(ROWS, 10_000))
        == (10_000 * ROWS * a_step)
    )
    standard = mixer_class("standard")
    assert mixer.forward_flops(short, Workload(1, 40)) == standard.forward_flops(short, Workload(1, 40))
    wide, work = replace(short, head_dim=128), Workload(1, 10_000)
    assert mixer.forward_flops(wide, work) == standard.forward_flops(wide, work)
