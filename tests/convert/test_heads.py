"""A standard model's layers into layers by heads: each head has its own weights, whichever part it is of."""

from pathlib import Path

import pytest
import torch

from deconattn.checkpoint.hf_weights import HFWeights
from deconattn.convert.graft import Origins, graft
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize
from tests.hf.models import exported, small_config, tokens, trained

HEADS, WIDTH = 8, 8
LAYERS = {"num_attention_heads": HEADS, "num_key_value_heads": 4, "hidden_size": 64}


@pytest.fixture(scope="module")
def source() -> CausalLM:
    return trained(small_config("standard", "standard", **LAYERS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, source: CausalLM) -> Path:
    return exported(source, tmp_path_factory.mktemp("source") / "model")


def grafted(folder: Path, variant: str) -> tuple[CausalLM, Origins]:
    model = CausalLM(small_config(variant, "standard", **LAYERS))
    initialize(model, 1)
    return model, graft(model, HFWeights(folder))


def test_nothing_is_lost_where_all_parts_share_the_projections(folder: Path, source: CausalLM) -> None:
    _, origins = grafted(folder, "standard[0-3]+nonapproximate[4-7]")
    assert not origins.unused and not origins.initialised
    model, _ = grafted(folder, "standard[0-3]+standard[4-7]")
    with torch.no_grad():
        torch.testing.assert_close(model.logits(tokens(2, 20)), source.logits(tokens(2, 20)))


def test_a_part_with_other_weights_leaves_the_other_heads_theirs(folder: Path, source: CausalLM) -> None:
    model, origins = grafted(folder, "standard[0-1]+mlp[2-3]+approximate[4-7]")
    prefix, kept = "model.layers.0.self_attn.", [*range(2 * WIDTH), *range(4 * WIDTH, HEADS * WIDTH)]
    ours, theirs = model.state_dict(), source.state_dict()
    for name in ("q_proj.weight", "q_proj.bias"):
        assert torch.equal(ours[prefix + name], theirs[prefix + name][kept])
    assert torch.equal(ours[f"{prefix}o_proj.weight"], theirs[f"{prefix}o_proj.weight"][:, kept])
    served = [*range(WIDTH), *range(2 * WIDTH, 4 * WIDTH)]
    assert torch.equal(ours[f"{prefix}v_proj.bias"], theirs[f"{prefix}v_proj.bias"][served])
    assert origins.initialised == [f"{prefix}parts.1.{name}_proj.weight" for name in ("gate", "up", "down")]
    assert not origins.unused


def test_a_part_with_weights_of_its_own_takes_those_of_its_heads(folder: Path, source: CausalLM) -> None:
    """`alibi` has attention's projections, and slopes beside them."""
    model, origins = grafted(folder, "standard[0-3]+alibi[4-7]")
    prefix = "model.layers.0.self_attn."
    ours, theirs = model.state_dict(), source.state_dict()
    half = HEADS * WIDTH // 2
    assert torch.equal(ours[f"{prefix}parts.1.q_proj.weight"], theirs[f"{prefix}q_proj.weight"][half:])
    assert torch.equal(ours[f"{prefix}parts.1.o_proj.weight"], theirs[f"{prefix}o_proj.weight"][:, half:])
    assert torch.equal(ours[f"{prefix}q_proj.weight"], theirs[f"{prefix}q_proj.weight"][:half])
    assert not origins.unused and all("slopes" in name for name in origins.initialised)


def test_a_model_by_heads_takes_its_own_weights(tmp_path: Path) -> None:
    model = trained(small_config("standard[0-3]+mlp[4-7]", "standard", **LAYERS))
    other, origins = grafted(exported(model, tmp_path / "model"), "standard[0-3]+mlp[4-7]")
    assert not origins.unused and not origins.initialised
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())
