"""Decoding caches: tokens one by one, in chunks, padded or reordered, give what the whole sequence gives."""

import copy
from collections.abc import Iterable
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.errors import UserError
from deconattn.mixers import Decoding, Mixer, MixerContext, Standard, Workload, mixer_class, register, registry
from deconattn.mixers.standard import KeyValueDecoding
from deconattn.model.causal_lm import CausalLM
from deconattn.model.decoding_cache import BLOCK, DecodingCache
from deconattn.model.padding import Padding
from deconattn.ops import cached_attention, taylor_state
from tests.mixers.models import EVERY, HEADS, MIXED, OURS, PATTERNS, build_model, random_tokens

LENGTH = 150
WHOLE = [LENGTH]
CUTS = {  # how many tokens at a time
    "steps": [1] * LENGTH,
    "prefill_63": [63, *[1] * (LENGTH - 63)],
    "prefill_149": [149, 1],
    "chunks": [1, 70, 1, 1, 5, 64, 8],
}
WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
"""Keys and values of `approximate` take fewer bytes than its sums up to a length between BLOCK and 2 BLOCK."""


@torch.no_grad()
def decoded(model: CausalLM, tokens: Tensor, cuts: Iterable[int], cache: DecodingCache) -> Tensor:
    """Logits [B, L, V] of tokens that enter the cache in pieces."""
    pieces = [tokens[:, stop - count : stop] for count, stop in zip(cuts, accumulate(cuts), strict=True)]
    return torch.cat([model.lm_head(model.model.extend(piece, cache)) for piece in pieces], dim=1)


@torch.no_grad()
def decoded_padded(model: CausalLM, columns: Tensor, mask: Tensor, cuts: Iterable[int], cache: DecodingCache) -> Tensor:
    """The same for columns with padding, false in bool `mask` [B, L]."""
    logits = []
    for count, stop in zip(cuts, accumulate(cuts), strict=True):
        part = slice(stop - count, stop)
        padding = Padding.of(mask[:, part])
        if padding is None:
            hidden = model.model.extend(columns[:, part], cache)
        else:
            hidden = padding.unpack(model.model.extend(padding.pack(columns[:, part]), cache, padding.real))
        logits.append(model.lm_head(hidden))
    return torch.cat(logits, dim=1)


@torch.no_grad()
def assert_rows_are_whole(model: CausalLM, columns: Tensor, mask: Tensor, logits: Tensor, tolerance: float) -> None:
    """Each row's real tokens have the logits that they have alone and unpadded."""
    for row, real in enumerate(mask):
        alone = model.logits(columns[row, real][None])[0]
        assert_close(logits[row, real], alone, rtol=0, atol=tolerance * alone.abs().max().item())


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
def test_steps_from_any_prefill_are_the_whole_pass(variants: tuple[str, ...], static: bool):
    model, tokens = build_model(variants), random_tokens(3, LENGTH)
    with torch.no_grad():
        expected = model.logits(tokens)
    for name, cuts in CUTS.items():
        cache = DecodingCache(model.model, LENGTH, static)
        got = decoded(model, tokens, cuts, cache)
        assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        assert cache.seen == LENGTH


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("variant", EVERY)
def test_steps_in_fp32_are_the_whole_pass_in_fp32(variant: str, heads: str):
    model, tokens = build_model((variant,) * 2, **HEADS[heads]), random_tokens(2, LENGTH)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Some mixers magnify rounding, as the exact pass tells whose weights are moved by as much as one changes them.
        exact = model.logits(tokens)
        moved = copy.deepcopy(model)
        for weight in moved.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.double)
            weight.mul_(1 + torch.finfo(torch.float32).eps * noise)
        change = (moved.logits(tokens) - exact).abs().max().item()
        expected = model.float().logits(tokens)
    for cuts in CUTS.values():
        got = decoded(model, tokens, cuts, DecodingCache(model.model))
        assert_close(got, expected, rtol=0, atol=max(1e-5 * expected.abs().max().item(), 4 * change))


@pytest.mark.parametrize("parent", [*OURS, "thirdparty"])
@pytest.mark.parametrize("way", ["subclass", "mixin", "mixin of a parent", "grandchild"])
def test_a_forward_of_its_own_is_decoded_by_itself(parent: str, way: str, monkeypatch: pytest.MonkeyPatch):
    """A class that only mixes otherwise, wherever it has that from: its parent's caches and maps are not for it."""

    class Negated:
        def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
            return -super().forward(hidden, static, context)  # type: ignore[misc]

    class Itself(mixer_class(parent)):  # type: ignore[misc]
        def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
            return -super().forward(hidden, static, context)

    class Mixed(Negated, mixer_class(parent)):  # type: ignore[misc]
        pass

    class Intermediate(mixer_class(parent)):  # type: ignore[misc]
        pass

    Backwards = {
        "subclass": Itself,
        "mixin": Mixed,
        "mixin of a parent": type("Late", (Negated, Intermediate), {}),
        "grandchild": type("Grandchild", (Mixed,), {}),
    }[way]
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    faults = r"its map belongs to the forward of \w+: give"
    if parent != "thirdparty":
        faults = r"decoding belongs to the forward of \w+: name .*; and " + faults
    with pytest.raises(TypeError, match=faults):
        register("backwards")(Backwards)
    Backwards.decoding = Decoding()
    Backwards.attention_map, Backwards.map_blocks = mixer_class(parent).attention_map, mixer_class(parent).map_blocks
    register("backwards")(Backwards)
    model, tokens = build_model(("backwards", "standard")), random_tokens(2, 40)
    cache = DecodingCache(model.model)
    with torch.no_grad():
        assert_close(decoded(model, tokens, [20, *[1] * 20], cache), model.logits(tokens), rtol=1e-9, atol=1e-9)
    work = Workload(2, cache.capacity, 8)
    assert cache.layers[0].nbytes == Backwards.decoding.cache_bytes(Backwards, model.config, work)


def test_maps_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch):
    class Whole(Standard):
        def attention_map(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
            return super().attention_map(hidden, static, context)

    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    with pytest.raises(TypeError, match=r"map_blocks = Mixer.map_blocks`, which follows from the other"):
        register("whole")(Whole)
    Whole.map_blocks = Mixer.map_blocks  # type: ignore[method-assign]
    register("whole")(Whole)


@pytest.mark.parametrize("variant", EVERY)
def test_steps_in_bf16_are_as_exact_as_the_whole_pass(variant: str):
    model, tokens = build_model((variant,) * 2).bfloat16(), random_tokens(2, LENGTH)
    exact = build_model((variant,) * 2)
    exact.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected, whole = exact.logits(tokens), model.logits(tokens)
    error = (decoded(model, tokens, CUTS["prefill_63"], DecodingCache(model.model)) - expected).norm()
    assert error < 1.25 * (whole - expected).norm()


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
def test_padding_counts_for_nothing(variants: tuple[str, ...], static: bool, monkeypatch: pytest.MonkeyPatch):
    """To the left and to the right of a prompt, within it, and in a second prompt that continues the first."""
    monkeypatch.setattr(cached_attention, "CHUNK", 4)
    model, columns = build_model(variants), random_tokens(4, 60)
    mask = torch.ones(4, 60, dtype=torch.bool)
    mask[0, :9] = mask[1, 2:12] = mask[2, 3] = mask[2, 7:12] = False
    mask[0, 30:33] = mask[3, 36:40] = False
    cuts = [12, *[1] * 18, 10, *[1] * 20]
    cache = DecodingCache(model.model, 60, static)
    assert_rows_are_whole(model, columns, mask, decoded_padded(model, columns, mask, cuts, cache), 1e-10)


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("prefill", [40, 250, 300])
def test_keys_and_values_become_sums_where_those_are_smaller(prefill: int, padded: bool):
    """A growing cache on both sides of approximate's switch, and on its way across."""
    model = build_model(("approximate", "standard"), max_position_embeddings=400, **WIDE)
    assert not taylor_state.is_smaller(32, 8, BLOCK)
    assert taylor_state.is_smaller(32, 8, 2 * BLOCK)
    columns, mask = random_tokens(3, 340), torch.ones(3, 340, dtype=torch.bool)
    if padded:
        mask[0, :7] = mask[1, 20:39] = False
    cuts = [prefill, *[1] * 20, 12, *[1] * (308 - prefill)]
    cache = DecodingCache(model.model)
    layer = cache.layers[0]
    decoded_padded(model, columns[:, :20], mask[:, :20], [20], cache)
    assert set(layer.tensors) == {"keys", "values"}
    cache.reset()
    assert_rows_are_whole(model, columns, mask, decoded_padded(model, columns, mask, cuts, cache), 1e-9)
    assert set(layer.tensors) == {"sums", "recent_keys", "recent_values"}


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("variants", MIXED, ids=",".join)
def test_rows_are_reordered_repeated_and_dropped(variants: tuple[str, ...], static: bool):
    model, columns = build_model(variants), random_tokens(6, 40)
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[0, :5] = mask[2, :1] = False
    for rows in ([2, 0, 1], [1, 1, 2], [0, 0, 0, 1, 2, 2], [2]):
        cache = DecodingCache(model.model, 40, static)
        decoded_padded(model, columns[:3, :12], mask, [5, 7], cache)
        cache.select_rows(torch.tensor(rows))
        assert cache.rows == len(rows)
        later = columns[: len(rows), 12:]
        whole = torch.cat([columns[rows, :12], later], dim=1)
        whole_mask = torch.cat([mask[rows], torch.ones_like(later, dtype=torch.bool)], dim=1)
        logits = decoded(model, later, [1] * 20 + [8], cache)
        padded = torch.cat([logits.new_zeros(len(rows), 12, logits.shape[2]), logits], dim=1)
        with torch.no_grad():
            for row, real in enumerate(whole_mask):
                alone = model.logits(whole[row, real][None])[0, -28:]
                assert_close(padded[row, 12:], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
@pytest.mark.parametrize("variants", [("standard", "rndemb"), ("staticemb", "mlp", "fixedseq", "thirdparty")])
def test_tokens_are_taken_back(variants: tuple[str, ...], static: bool):
    model, tokens = build_model(variants), random_tokens(2, 50)
    cache = DecodingCache(model.model, 60, static)
    decoded(model, tokens[:, :30], [10, 20], cache)
    decoded(model, random_tokens(2, 9).flip(1), [4, 1, 4], cache)
    cache.crop(9)
    assert cache.seen == 30
    with torch.no_grad():
        expected = model.logits(tokens)[:, 30:]
    assert_close(decoded(model, tokens[:, 30:], [1, 10, 9], cache), expected, rtol=1e-9, atol=1e-9)


def test_sums_take_nothing_back():
    model = build_model(("standard", "nonapproximate"))
    cache = DecodingCache(model.model)
    decoded(model, random_tokens(1, 9), [9], cache)
    cache.crop(0)
    with pytest.raises(ValueError, match="keeps sums"):
        cache.crop(1)
    assert not cache.croppable


@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
def test_a_cache_is_reset(variants: tuple[str, ...]):
    model, tokens = build_model(variants), random_tokens(2, 30)
    cache = DecodingCache(model.model)
    decoded(model, random_tokens(3, 40), [20, *[1] * 20], cache)
    cache.reset()
    assert cache.is_empty and cache.seen == cache.nbytes == 0
    with torch.no_grad():
        assert_close(decoded(model, tokens, [10, *[1] * 20], cache), model.logits(tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variants", PATTERNS, ids=",".join)
def test_a_static_cache_keeps_its_tensors(variants: tuple[str, ...]):
    model = build_model(variants)
    cache = DecodingCache(model.model, 100, static=True)
    decoded(model, random_tokens(2, 10), [8, 2], cache)

    def places() -> list[tuple[int, torch.Size]]:
        return [(tensor.data_ptr(), tensor.shape) for layer in cache.layers for tensor in layer.tensors.values()]

    before = places()
    decoded(model, random_tokens(2, 40), [1] * 40, cache)
    cache.select_rows(torch.tensor([1, 0]))
    assert places() == before


def test_memory_grows_in_blocks_and_never_beyond_the_limit():
    model = build_model(("standard",), max_position_embeddings=2000)
    growing, limited = DecodingCache(model.model), DecodingCache(model.model, 300)
    capacities = []
    for cut in (1, BLOCK - 1, 1, 43):
        decoded(model, random_tokens(1, cut), [cut], growing)
        decoded(model, random_tokens(1, cut), [cut], limited)
        capacities.append((growing.capacity, limited.capacity))
        for cache in (growing, limited):
            assert cache.nbytes == KeyValueDecoding().cache_bytes(
                Standard, model.config, Workload(1, cache.capacity, 8)
            )
    assert capacities == [(BLOCK, BLOCK), (BLOCK, BLOCK), (2 * BLOCK, 300), (2 * BLOCK, 300)]
    before = limited.layers[0].tensors["keys"].clone()
    with pytest.raises(UserError, match="301 tokens is beyond the cache's 300"):
        decoded(model, random_tokens(1, 1), [1], limited)
    assert limited.seen == 300 and limited.layers[0].tensors["keys"].equal(before)


def test_beyond_the_fixed_stream_is_refused():
    model = build_model(("standard", "rndemb"))  # 200 tokens
    with pytest.raises(UserError, match="201 tokens is beyond the fixed stream of 200"):
        DecodingCache(model.model, 201)
    cache = DecodingCache(model.model)
    decoded(model, random_tokens(1, 200), [199, 1], cache)
    assert cache.capacity == 200
    with pytest.raises(UserError, match="201 tokens is beyond the fixed stream of 200"):
        decoded(model, random_tokens(1, 1), [1], cache)
    with pytest.raises(UserError, match="201 tokens is beyond the cache's 200"):
        decoded(model, random_tokens(1, 201), [201], DecodingCache(model.model, 200, static=True))
    with pytest.raises(ValueError, match="static cache needs a limit"):
        DecodingCache(model.model, static=True)


def test_the_fixed_stream_is_computed_once_for_a_cache(monkeypatch: pytest.MonkeyPatch):
    """And again as it grows; the next cache has its own, in training as in evaluation."""
    model = build_model(("standard", "fixedseq", "thirdparty", "standard"), max_position_embeddings=2000)
    computed, prepare = [], model.model.prepare
    monkeypatch.setattr(model.model, "prepare", lambda *given: computed.append(given[1]) or prepare(*given))
    for mode in (True, False):
        model.train(mode)
        for length in (100, 600):
            tokens = random_tokens(2, length)
            logits = decoded(model, tokens, [60, length - 62, 1, 1], DecodingCache(model.model))
            with torch.no_grad():
                assert_close(logits, model.logits(tokens), rtol=1e-9, atol=1e-9)
    assert computed == [BLOCK, BLOCK, 3 * BLOCK] * 2


def test_what_is_computed_under_inference_mode_serves_passes_with_gradients():
    model, tokens = build_model(("rndemb", "approximate")).eval(), random_tokens(2, 20)
    with torch.inference_mode():
        decoded(model, tokens, [10, 10], DecodingCache(model.model))
    cache = DecodingCache(model.model)
    wanted = [model.lm_head.weight, model.model.layers[1].self_attn.k_proj.weight]
    got = torch.autograd.grad(model.lm_head(model.model.extend(tokens, cache)).sum(), wanted)
    for ours, theirs in zip(got, torch.autograd.grad(model.logits(tokens).sum(), wanted), strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    held = [tensor for layer in cache.layers for tensor in (*layer.tensors.values(), *layer.fixed)]
    assert not any(tensor.requires_grad for tensor in held)


@pytest.mark.parametrize(
    "variants",
    [("standard", "mlp"), ("approximate",), ("nonapproximate",), ("staticemb",), ("rndemb",) * 2, ("mlp", "fixedseq")],
    ids=",".join,
)
def test_the_gradient_of_a_first_pass_is_that_of_the_whole(variants: tuple[str, ...]):
    """And of a later one it ends at the cache."""
    model, tokens = build_model(variants), random_tokens(2, 40)
    cache = DecodingCache(model.model)
    parameters = list(model.parameters())
    got = torch.autograd.grad(model.lm_head(model.model.extend(tokens[:, :39], cache)).sum(), parameters)
    expected = torch.autograd.grad(model.logits(tokens[:, :39]).sum(), parameters)
    for ours, theirs in zip(got, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for piece in (tokens[:, 39:], tokens[:, :3]):
        model.lm_head(model.model.extend(piece, cache)).sum().backward()
