"""Mechanisms against their definitions, in float64, on small models and on maps made by hand."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from deconattn.analysis import mechanism_rows, passes
from deconattn.analysis.ablation import HEAD, MIXER, ablate
from deconattn.analysis.agreement import agreement
from deconattn.analysis.collect import LayerFindings
from deconattn.analysis.findings import ModelFindings
from deconattn.analysis.induction import DiagonalSums, induction, repeated_tokens
from deconattn.analysis.losses import PositionLosses, position_losses
from deconattn.errors import UserError
from deconattn.mixers import MapBlock, Mixer
from deconattn.mixers.map_blocks import cut
from deconattn.model.causal_lm import CausalLM
from tests.mixers.conftest import third_party  # noqa: F401  (a fixture of every test here)
from tests.mixers.models import build_model, mixes, random_tokens

VARIANTS = ("rndemb", "fixedseq", "thirdparty", "staticemb", "mlp", "approximate", "standard", "nonapproximate")
LENGTH = 26


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches, the last a small one, and blocks of a few rows."""
    monkeypatch.setattr(passes, "BATCH", 2)
    monkeypatch.setattr(passes, "BLOCK_ELEMENTS", 2 * 4 * LENGTH * 7)


def model_of(*variants: str, **changes: object) -> CausalLM:
    return build_model(variants, **changes).eval()


def losses_of(model: CausalLM, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model.logits(ids)
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


def whole_maps(model: CausalLM, ids: Tensor) -> list[Tensor | None]:
    maps: list[Tensor | None] = []

    def note(mixer: Mixer, inputs: passes.MixerInputs) -> None:
        whole = mixer.attention_map(*inputs)
        maps.append(None if whole is None else whole[: len(ids)])

    hooks = [block.self_attn.register_forward_pre_hook(note) for block in model.model.blocks]
    with torch.no_grad():
        model.model(ids)
    for hook in hooks:
        hook.remove()
    return maps


def scored(whole: Tensor, period: int, size: int) -> Tensor:
    sums = DiagonalSums(period)
    for block in cut(whole, size):
        sums.add(block)
    scores = sums.scores()
    assert scores is not None
    return scores


@pytest.mark.parametrize("size", [1, 3, 12])
def test_perfect_and_uniform_heads(size: int) -> None:
    period = 6
    length = 2 * period
    perfect, previous = torch.zeros(2, length, length, dtype=torch.double)
    for row in range(length):
        perfect[row, row - period + 1 if row >= period else 0] = 1
        previous[row, max(row - 1, 0)] = 1
    uniform = torch.ones(length, length, dtype=torch.double).tril()
    uniform /= uniform.sum(dim=-1, keepdim=True)
    scores = scored(torch.stack([perfect, previous, uniform])[None], period, size)[0]
    assert scores[0].tolist() == [1.0, 1 / (length - 1)]  # row 1 looks at token 0
    assert scores[1].tolist() == [0.0, 1.0]
    expected = sum(1 / (row + 1) for row in range(period, length)) / period
    assert scores[2].tolist() == pytest.approx([expected, sum(1 / (row + 1) for row in range(1, length)) / 11])


def test_repeated_tokens() -> None:
    ids = repeated_tokens(3, 11, {2, 5, 6, 7, 9, 11, 40})
    assert ids.shape == (3, 10) and torch.equal(ids[:, :5], ids[:, 5:])
    assert all(len(row.unique()) == 5 for row in ids) and set(ids.flatten().tolist()) <= {2, 5, 6, 7, 9, 11, 40}
    assert not torch.equal(ids[0], ids[1]) and torch.equal(ids, repeated_tokens(3, 11, [40, 11, 9, 7, 6, 5, 2]))
    assert repeated_tokens(1, 100, range(4)).shape == (1, 8)  # no more than there are words


def test_induction_is_that_of_the_whole_maps() -> None:
    model = model_of(*VARIANTS)
    ids = repeated_tokens(3, LENGTH, range(61))
    told: list[int] = []
    found = induction(model.model, model.lm_head, ids, "a model", told.append)
    assert told == [2, 1] and found.period == LENGTH // 2
    for variant, scores, whole in zip(VARIANTS, found.layers, whole_maps(model, ids), strict=True):
        assert (scores is None) == (whole is None) == (not mixes(variant))
        if scores is not None and whole is not None:
            second = range(LENGTH // 2, LENGTH)
            expected = torch.stack([whole[..., i, i - LENGTH // 2 + 1] for i in second]).mean(dim=0)
            before = torch.stack([whole[..., i, i - 1] for i in range(1, LENGTH)]).mean(dim=0)
            assert_close(scores, torch.stack([expected, before], dim=-1), rtol=1e-10, atol=1e-14)
    losses = losses_of(model, ids)
    assert_close(found.copies[:, 0], losses[:, : LENGTH // 2 - 1].mean(dim=1))
    assert_close(found.copies[:, 1], losses[:, LENGTH // 2 :].mean(dim=1))
    layer, head = found.best(0) or (-1, -1)
    highest = max(float(scores[..., 0].mean(dim=0).max()) for scores in found.layers if scores is not None)
    assert found.of_head(layer, head)[0].mean == pytest.approx(highest)
    rows = mechanism_rows.induction_rows([replace(named(*VARIANTS), induction=found)])
    assert [row["note"] is None for row in rows if row["layer"] == 5] == [False, False]
    assert len(rows) == 7 * 4 * 2 + 2


def test_loss_by_position_adds_up_to_the_loss() -> None:
    model, ids = model_of("standard", "fixedseq"), random_tokens(5, 37)
    found = position_losses(model.model, model.lm_head, ids, "a model")
    expected = losses_of(model, ids)
    assert_close(found.losses, expected, rtol=1e-10, atol=1e-12)
    bins = found.binned()
    assert [first for first, _, _ in bins] == [2, *(last + 1 for _, last, _ in bins[:-1])] and bins[-1][1] == 37
    total = sum((last - first + 1) * loss.mean for first, last, loss in bins)
    assert total / 36 == pytest.approx(found.loss.mean) == pytest.approx(float(expected.mean()))
    early, late = found.compared
    assert (early, late) == (3, 37)
    difference = expected[:, 35] - expected[:, 1]
    assert found.in_context.mean == pytest.approx(float(difference.mean()))
    assert found.in_context.count == 5 and found.in_context.half is not None


@pytest.mark.parametrize(("length", "compared"), [(4, (2, 4)), (100, (10, 100)), (500, (50, 500)), (4096, (50, 500))])
def test_tokens_compared_are_olssons_where_they_fit(length: int, compared: tuple[int, int]) -> None:
    assert PositionLosses(torch.zeros(1, length - 1)).compared == compared


def named(*variants: str) -> ModelFindings:
    return ModelFindings("a model", "/a", None, None, [LayerFindings(one, None, None, None) for one in variants])


def by_hand(model: CausalLM, ids: Tensor, layer: int, replace_output: Callable[..., Tensor]) -> Tensor:
    """Losses a sequence with a layer's output replaced: all rows at once, with a hook of the test's own."""
    hook = model.model.blocks[layer].self_attn.register_forward_hook(replace_output)
    try:
        return losses_of(model, ids).mean(dim=1)
    finally:
        hook.remove()


def put(model: CausalLM, ids: Tensor, layer: int, instead: Tensor) -> Tensor:
    """Losses with the sequences' rows of a layer's output replaced, those of fixed streams kept."""
    count = len(ids)
    return by_hand(
        model, ids, layer, lambda _, __, old: torch.cat([instead.expand_as(old[:count]).clone(), old[count:]])
    )


def seen(model: CausalLM, ids: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """The hidden states that a layer's mixer reads, and what it gives, of the sequences' rows."""
    kept: list[Tensor] = []
    by_hand(model, ids, layer, lambda _, inputs, old: kept.extend([inputs[0][: len(ids)], old[: len(ids)].clone()]))
    return kept[0], kept[1]


def test_mixers_replaced_are_those_by_hand() -> None:
    model, ids = model_of(*VARIANTS), random_tokens(3, LENGTH)
    told: list[int] = []
    found = ablate(model.model, model.lm_head, ids, "a model", advance=told.append)
    assert told == [2, 1] and len(found.found) == len(VARIANTS) * len(MIXER)
    assert_close(found.whole, losses_of(model, ids).mean(dim=1))
    for layer, variant in enumerate(VARIANTS):
        hidden, output = seen(model, ids, layer)
        own = output
        if mixes(variant):
            mixer = model.model.blocks[layer].self_attn
            own = mixer.output(mixer.per_query_head(mixer.values(hidden))).detach()
        instead = {"zero": torch.zeros(()), "mean": output.mean(dim=(0, 1)), "identity": own}
        for name in MIXER:
            assert_close(found.found[layer, None, name], put(model, ids, layer, instead[name]))
    rows = mechanism_rows.ablation_rows([replace(named(*VARIANTS), ablations=found)])
    assert len(rows) == len(VARIANTS) * len(MIXER)
    assert rows[1]["difference"] == pytest.approx(float((found.found[0, None, "mean"] - found.whole).mean()))
    assert rows[1]["difference low"] < rows[1]["difference"] < rows[1]["difference high"]


def test_heads_replaced_are_those_by_hand() -> None:
    variants = ("fixedseq", "mlp", "thirdparty")
    model, ids = model_of(*variants), random_tokens(3, 12)
    found = ablate(model.model, model.lm_head, ids, "a model", mixers=False, heads=True)
    assert found.without_heads == (1,) and len(found.found) == 2 * 4 * len(HEAD)
    maps = whole_maps(model, ids)
    for layer in (0, 2):
        hidden, output = seen(model, ids, layer)
        mixer, whole = model.model.blocks[layer].self_attn, maps[layer]
        assert whole is not None
        mixed = (whole @ mixer.per_query_head(mixer.values(hidden))).detach().transpose(1, 2)  # [3, L, heads, head_dim]
        assert_close(mixer.o_proj(mixed.flatten(-2)).detach(), output)
        for head in range(4):
            for name in HEAD:
                changed = mixed.clone()
                changed[:, :, head] = 0 if name == "zero" else mixed[:, :, head].mean(dim=(0, 1))
                expected = put(model, ids, layer, mixer.o_proj(changed.flatten(-2)).detach())
                assert_close(found.found[layer, head, name], expected)
    rows = mechanism_rows.head_ablation_rows([replace(named(*variants), ablations=found)])
    assert len(rows) == 2 * 4 * len(HEAD) + 1
    (without,) = [row for row in rows if row["note"]]
    assert (without["layer"], without["loss"]) == (2, None)


def test_a_constant_mixer_is_its_mean() -> None:
    model, ids = model_of("standard", "mlp", "standard"), random_tokens(3, 12)
    with torch.no_grad():
        model.model.blocks[1].self_attn.down_proj.weight.zero_()
        model.model.blocks[2].self_attn.v_proj.weight.zero_()  # its values are the bias, whatever the map
    found = ablate(model.model, model.lm_head, ids, "a model")
    for place in ((1, None, "zero"), (1, None, "mean"), (2, None, "mean"), (2, None, "identity")):
        assert found.difference(place).mean == pytest.approx(0, abs=1e-12)
    assert abs(found.difference((0, None, "mean")).mean) > 1e-4
    assert abs(found.difference((2, None, "zero")).mean) > 1e-4


def cka_by_grams(first: Tensor, second: Tensor) -> float:
    """By Gram matrices of observations (HSIC), maps [heads, L, L] of one sequence."""
    grams = []
    for whole in (first, second):
        visible = torch.ones(whole.shape[1:], dtype=torch.bool).tril()
        uniform = visible / visible.sum(dim=-1, keepdim=True)
        features = (whole - uniform)[:, visible].T  # [pairs, heads]
        centred = features - features.mean(dim=0)
        grams.append(centred @ centred.T)
    (one, other) = grams
    return float((one * other).sum() / (one.square().sum() * other.square().sum()).sqrt())


def test_agreement_is_linear_cka() -> None:
    models = [model_of(*VARIANTS), model_of("standard", "mlp")]
    with torch.no_grad():
        models[1].model.blocks[0].self_attn.q_proj.weight *= 3
    ids = random_tokens(3, LENGTH)
    found = agreement([model.model for model in models], ids)
    assert found.without == [(0, 4), (1, 1)]
    assert found.maps == [*((0, layer) for layer in range(8) if layer != 4), (1, 0)]
    maps = [whole_maps(model, ids) for model in models]
    for one, (model, layer) in enumerate(found.maps):
        assert_close(found.values[:, one, one], torch.ones(3, dtype=torch.double))
        for other, (theirs, their_layer) in enumerate(found.maps):
            expected = [cka_by_grams(maps[model][layer][row], maps[theirs][their_layer][row]) for row in range(3)]
            assert found.values[:, one, other].tolist() == pytest.approx(expected, rel=1e-9)
    value = found.of(0, 7)
    assert value is not None and value.mean == pytest.approx(float(found.values[:, 0, 7].mean()))
    rows = mechanism_rows.agreement_rows([named(*VARIANTS), named("standard", "mlp")], found)
    assert len(rows) == 8 * 9 // 2 + 2


def given(monkeypatch: pytest.MonkeyPatch, model: CausalLM, layer: int, whole: Tensor) -> None:
    """Make a layer show a map, [heads, L, L]."""
    mixer = model.model.blocks[layer].self_attn

    def blocks(hidden: Tensor, static: object, context: object, size: int) -> list[MapBlock]:
        return list(cut(whole.expand(len(hidden), *whole.shape), size))

    monkeypatch.setattr(mixer, "map_blocks", lambda *inputs: iter(blocks(*inputs)))


def test_orthogonal_maps_do_not_agree_and_uniform_ones_have_nothing_to(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("standard", "standard", "standard", "standard")
    uniform = torch.ones(8, 8, dtype=torch.double).tril()
    uniform /= uniform.sum(dim=-1, keepdim=True)
    shifts = torch.zeros(2, 8, 8, dtype=torch.double)
    for place, row in enumerate((5, 7)):  # weight moves between two tokens, of other rows in other maps
        shifts[place, row, :2] = torch.tensor([0.05, -0.05])
    for layer, heads in enumerate(([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1], [None] * 4)):
        maps = [uniform if head is None else uniform + shifts[head] for head in heads]
        given(monkeypatch, model, layer, torch.stack(maps))
    values = agreement([model.model], random_tokens(1, 8)).values[0]
    assert values[0, 0] == pytest.approx(1) and values[0, 1] == pytest.approx(0, abs=1e-12)
    assert float(values[0, 2]) == pytest.approx(1 / math.sqrt(2))
    assert values[3].isnan().all() and values[:, 3].isnan().all()


def test_a_loss_that_is_no_number_names_the_model() -> None:
    model, ids = model_of("standard"), random_tokens(1, 8)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.inf
    for measure in (position_losses, ablate, induction):
        with pytest.raises(UserError, match="^a model: its loss on the sample is no finite number"):
            measure(model.model, model.lm_head, ids, "a model")
