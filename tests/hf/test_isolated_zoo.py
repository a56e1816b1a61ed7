"""Exports of the field's mixers where DeconAttn is not installed: logits, gradients, cached and uncached generation."""

from pathlib import Path

import pytest

from deconattn.mixers import zoo_names
from deconattn.model.causal_lm import CausalLM
from tests.hf.models import exported, small_config, trained
from tests.hf.test_isolated import compare, run_isolated

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models() -> dict[str, CausalLM]:
    return {name: trained(small_config(name, "standard", name, num_key_value_heads=2)) for name in zoo_names()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, models: dict[str, CausalLM]) -> Path:
    folder = tmp_path_factory.mktemp("isolated")
    for name, model in models.items():
        exported(model, folder / name)
    run_isolated(folder, list(models))
    return folder


@pytest.mark.parametrize("name", zoo_names())
def test_loss_and_gradients_and_generation(name: str, folder: Path, models: dict[str, CausalLM]) -> None:
    compare(folder / "out" / name, models[name])
