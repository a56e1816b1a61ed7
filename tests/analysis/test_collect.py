"""A model over a sample, in batches and blocks, against its whole maps."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from deconattn.analysis import passes
from deconattn.analysis.collect import CELLS, collect
from deconattn.analysis.indicators import Indicators, define
from deconattn.errors import UserError
from deconattn.mixers import mixer_class
from deconattn.model.decoder import Decoder
from tests.mixers.conftest import third_party  # noqa: F401  (a fixture of every test here)
from tests.mixers.models import HEADS, OURS, build_model, mixes, random_tokens

VARIANTS = ("rndemb", "fixedseq", "thirdparty", "staticemb", "mlp", "approximate", "standard", "nonapproximate")


def captured(decoder: Decoder, ids: Tensor) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Of each layer the whole map and all scores, [N, heads, ..], hidden ones left out."""
    maps: list[Tensor | None] = []
    scores: list[Tensor | None] = []

    def note(mixer, inputs):
        whole = mixer.attention_map(*inputs)
        maps.append(None if whole is None else whole[: len(ids)])
        blocks = list(mixer.map_blocks(*inputs, 1000))
        shown = blocks[0].scores if blocks else None
        scores.append(None if shown is None else shown[: len(ids)][shown[: len(ids)] > -torch.inf])

    hooks = [block.self_attn.register_forward_pre_hook(note) for block in decoder.blocks]
    with torch.no_grad():
        decoder(ids)
    for hook in hooks:
        hook.remove()
    return maps, scores


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches, the last a small one, and blocks of a few rows."""
    monkeypatch.setattr(passes, "BATCH", 2)
    monkeypatch.setattr(passes, "BLOCK_ELEMENTS", 2 * 4 * 70 * 9)


def test_every_variant_is_here():
    assert {*OURS, "thirdparty"} == set(VARIANTS)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.usefixtures("small_blocks")
def test_findings_are_those_of_the_whole_maps(heads: str):
    decoder = build_model(VARIANTS, **HEADS[heads]).model.eval()
    ids = random_tokens(5, 70)
    told: list[int] = []
    found = collect(decoder, ids, "a model", pictured=range(2, 5), advance=told.append)
    assert told == [2, 2, 1]
    maps, scores = captured(decoder, ids)
    for number, (variant, layer, whole, shown) in enumerate(zip(VARIANTS, found, maps, scores, strict=True)):
        assert layer.variant == variant
        if whole is None:
            assert (layer.indicators, layer.activations, layer.picture) == (None, None, None)
            assert not mixes(variant)
            continue
        expected = define(whole)
        for field in fields(Indicators):
            ours, theirs = getattr(layer.indicators, field.name), getattr(expected, field.name).mean(dim=0)
            assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        if number in range(2, 5):
            assert CELLS >= 70
            assert_close(layer.picture.nan_to_num(), whole[0], rtol=1e-10, atol=1e-14)
        else:
            assert layer.picture is None
        if shown is None:
            assert layer.activations is None and variant == "thirdparty"
            continue
        pairs = 70 if variant == "nonapproximate" else 70 * 71 // 2
        assert layer.activations.count == shown.numel() == 5 * 4 * pairs
        assert layer.activations.mean == pytest.approx(float(shown.mean()), rel=1e-10)
        assert layer.activations.std == pytest.approx(float(shown.std(correction=0)), rel=1e-10)
        assert layer.activations.minimum == pytest.approx(float(shown.min()), rel=1e-10)
        assert layer.activations.maximum == pytest.approx(float(shown.max()), rel=1e-10)


@pytest.mark.usefixtures("small_blocks")
def test_no_whole_map_is_made(monkeypatch: pytest.MonkeyPatch):
    variants = [variant for variant in OURS if mixes(variant)]
    decoder = build_model(tuple(variants)).model.eval()
    for variant in variants:
        monkeypatch.setattr(mixer_class(variant), "attention_map", lambda *_: pytest.fail("a whole map was made"))
    assert all(layer.indicators is not None for layer in collect(decoder, random_tokens(1, 70), "a model"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_names_model_and_layer(value: float):
    decoder = build_model(("standard", "nonapproximate", "standard")).model.eval()
    with torch.no_grad():
        decoder.blocks[1].self_attn.k_proj.weight[0, 0] = value
    with pytest.raises(UserError, match="^a model: layer 2 has activations that are no finite numbers"):
        collect(decoder, random_tokens(1, 8), "a model")
