"""Exports of layers by heads where DeconAttn is not installed: logits, gradients, cached and uncached generation."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from deconattn.checkpoint.hf_weights import HFWeights
from deconattn.config.pattern import layer_variants
from deconattn.errors import UserError
from deconattn.hf.modeling_deconattn import DeconAttnForCausalLM
from deconattn.hf.source import modeling_source
from deconattn.mixers import known_names
from deconattn.model.causal_lm import CausalLM
from tests.hf.models import exported, load_plugin, small_config, tokens, trained
from tests.hf.test_isolated import compare, run_isolated

MODELS = {
    "shared": ("standard[0-1]+nonapproximate[2-3]", "fixedseq[0-1]+approximate[2-3]", "staticemb[0-1]+standard[2-3]"),
    "own": ("rndemb[0-1]+mlp[2-3]", "gla[0-1]+standard[2-3]", "approximate"),
}


@pytest.fixture(scope="module")
def models() -> dict[str, CausalLM]:
    return {name: trained(small_config(*variants, num_key_value_heads=2)) for name, variants in MODELS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, models: dict[str, CausalLM]) -> Path:
    folder = tmp_path_factory.mktemp("isolated")
    for name, model in models.items():
        exported(model, folder / name)
    run_isolated(folder, list(models), ["own"])
    return folder


@pytest.mark.parametrize("name", ["shared", "own", "own-again"])
def test_loss_and_gradients_and_generation(name: str, folder: Path, models: dict[str, CausalLM]) -> None:
    compare(folder / "out" / name, models[name.removesuffix("-again")])


def test_an_export_is_read_again_with_its_layers(folder: Path, models: dict[str, CausalLM]) -> None:
    HFWeights(folder / "own").check(models["own"].config)
    model = AutoModelForCausalLM.from_pretrained(folder / "own")
    assert type(model) is DeconAttnForCausalLM and tuple(model.config.layer_variants) == MODELS["own"]
    ids = tokens(2, 30)
    with torch.no_grad():
        logits = model(ids).logits
        torch.testing.assert_close(logits, models["own"].logits(ids), rtol=1e-5, atol=1e-5)


def test_the_code_is_the_parts_and_no_others() -> None:
    source = modeling_source(["standard[0-1]+nonapproximate[2-3]"])
    assert "class Standard(" in source and "class NonApproximate(" in source and "class HeadMixer(" in source
    assert not any(name in source for name in ("class Approximate(", "class MLP(", "column(", "check_parts"))
    assert "class HeadMixer(" not in modeling_source(["standard", "nonapproximate"])


def test_a_part_may_be_a_plugins(tmp_path: Path) -> None:
    file = load_plugin(tmp_path)
    [variant] = layer_variants("runningmean[0-1] + standard[2-3]", "mlp", 1, known_names())
    model = trained(small_config(variant))
    exported(model, tmp_path / "model", plugins=[file])
    source = (tmp_path / "model" / "modeling_deconattn.py").read_text()
    assert "class RunningMean(" in source and "class Standard(" in source
    with pytest.raises(UserError, match="'runningmean' is of .*running-mean.py: give that file as a plugin"):
        modeling_source([variant])
