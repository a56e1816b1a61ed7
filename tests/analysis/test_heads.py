"""Layers of several mixers by heads, looked into: each head has the map and the worth that it has in a layer alone."""

import torch
from torch.testing import assert_close

from deconattn.analysis.ablation import ablate
from deconattn.analysis.collect import collect
from tests.hf.models import small_config, tokens, trained

MIXED = "standard[0-1]+nonapproximate[2-3]"


def test_each_heads_indicators_are_those_of_its_mixer():
    mixed = trained(small_config(MIXED)).eval()
    found = collect(mixed.model, tokens(2, 24), "mixed", pictured=[0])[0]
    assert found.variant == MIXED and found.indicators is not None and found.picture is not None
    for variant, heads in (("standard", slice(0, 2)), ("nonapproximate", slice(2, 4))):
        alone = trained(small_config(variant)).eval()
        alone.load_state_dict(mixed.state_dict())
        other = collect(alone.model, tokens(2, 24), variant, pictured=[0])[0]
        assert other.indicators is not None and other.picture is not None
        assert_close(found.indicators.entropy[heads], other.indicators.entropy[heads])
        assert_close(found.picture[heads], other.picture[heads], equal_nan=True)


def test_heads_without_a_map_are_left_out():
    [found] = collect(trained(small_config("mlp[0-1]+standard[2-3]")).model, tokens(2, 24), "mixed")
    assert found.indicators is not None and len(found.indicators.entropy) == 2


def test_a_head_is_replaced_whichever_part_it_is_of():
    model = trained(small_config(MIXED, "standard"))
    ids = tokens(2, 24)
    found = ablate(model.model, model.lm_head, ids, "mixed", mixers=False, heads=True)
    assert not found.without_heads
    for head in (1, 2):
        without = trained(small_config(MIXED, "standard"))
        with torch.no_grad():
            without.model.layers[0].self_attn.o_proj.weight[:, head * 8 : head * 8 + 8] = 0
        expected = ablate(without.model, without.lm_head, ids, "without", mixers=False).whole
        assert_close(found.found[0, head, "zero"], expected)
