"""Models of Llama's relatives are the same functions here, in training and in a cache, and go back as stock models."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from deconattn.checkpoint.format import open_checkpoint
from deconattn.checkpoint.stored_model import open_model
from deconattn.errors import UserError
from deconattn.hf.configuration_deconattn import DeconAttnConfig
from deconattn.hf.export import export
from deconattn.hf.tokenizer_files import write_tokenizer
from deconattn.layers.rope_scaling import RopeScaling
from tests.convert.conftest import SEQUENCE, MakeModel, edit
from tests.convert.test_models import model_of, tensors_of
from tests.hf.models import small_config

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 16}
DEEPSEEK_YARN = YARN | {"mscale": 1.0, "mscale_all_dim": 0.8, "beta_fast": 16, "beta_slow": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": 24,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({"kind": "llama"}, "LlamaForCausalLM"),
    "llama, all heads have keys": ({"kind": "llama", "num_key_value_heads": 4}, "LlamaForCausalLM"),
    "llama, tied": ({"kind": "llama", "tie_word_embeddings": True}, "LlamaForCausalLM"),
    "llama, wide heads": ({"kind": "llama", "head_dim": 12}, "LlamaForCausalLM"),
    "llama, linear": ({"kind": "llama", "rope_parameters": LINEAR}, "LlamaForCausalLM"),
    "llama, yarn": ({"kind": "llama", "rope_parameters": YARN}, "LlamaForCausalLM"),
    "llama, yarn of other settings": ({"kind": "llama", "rope_parameters": DEEPSEEK_YARN}, "LlamaForCausalLM"),
    "llama, llama3": ({"kind": "llama", "rope_parameters": LLAMA3}, "LlamaForCausalLM"),
    "mistral": ({"kind": "mistral", "sliding_window": None}, "LlamaForCausalLM"),
    "mistral, window without effect": ({"kind": "mistral", "sliding_window": 64, "head_dim": 12}, "LlamaForCausalLM"),
    "smollm3": ({"kind": "smollm3", "no_rope_layers": [1, 0, 1, 0]}, "SmolLM3ForCausalLM"),
    "smollm3, all rotate": ({"kind": "smollm3", "no_rope_layers": [1] * 4}, "LlamaForCausalLM"),
    "qwen2, yarn": ({"kind": "qwen2", "rope_parameters": YARN}, "Qwen2ForCausalLM"),
    "qwen3, llama3": ({"kind": "qwen3", "rope_parameters": LLAMA3}, "Qwen3ForCausalLM"),
}


@pytest.mark.parametrize(("options", "architecture"), FAMILIES.values(), ids=FAMILIES.keys())
def test_logits_before_and_after(
    options: dict[str, Any], architecture: str, make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    source, run, back = make_model(**options), tmp_path / "run", tmp_path / "back"
    tool.main([str(source), str(run), "--data", str(corpus), "--seq-len", str(SEQUENCE), "--precision", "fp32"])
    checkpoint = open_checkpoint(run)
    model = model_of(checkpoint)
    export(
        checkpoint.weights(),
        checkpoint.model_config,
        back,
        dtype=torch.float32,
        tokenizer_folder=None,
        kept=checkpoint.origin["kept"],
    )
    ids = torch.randint(512, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(source)(ids).logits
        returned = AutoModelForCausalLM.from_pretrained(back)(ids).logits
        logits = model.logits(ids)
    assert expected.std() > 0.3
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(returned, expected, atol=1e-5, rtol=0)
    config = json.loads((back / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert "auto_map" not in config
    original, stored = tensors_of(source), tensors_of(back)
    assert all(torch.equal(original[name], stored[name]) for name in original)


@pytest.mark.parametrize("parameters", [LINEAR, YARN, DEEPSEEK_YARN, LLAMA3], ids=["linear", "yarn", "other", "llama3"])
def test_a_run_of_another_variant_exports_its_scaling(
    parameters: dict[str, Any], make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    """What our own class computes of its export, by prefill and by steps of a cache, is what the run computes."""
    source, run, out = make_model("llama", rope_parameters=parameters), tmp_path / "run", tmp_path / "out"
    words = ["--data", str(corpus), "--seq-len", "64", "--precision", "fp32", "--pattern", "standard,3*nonapproximate"]
    tool.main([str(source), str(run), *words])
    checkpoint = open_checkpoint(run)
    export(checkpoint.weights(), checkpoint.model_config, out, dtype=torch.float32, tokenizer_folder=None)
    exported = AutoModelForCausalLM.from_pretrained(out).eval()
    assert exported.config.to_model_config() == checkpoint.model_config
    ids = torch.randint(512, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model_of(checkpoint).logits(ids)
        torch.testing.assert_close(exported(ids).logits, expected, atol=1e-5, rtol=0)
        first = exported(ids[:, :30], use_cache=True)
        cache = first.cache if hasattr(first, "cache") else first.past_key_values
        for place in range(30, 40):
            step = exported(ids[:, place : place + 1], past_key_values=cache).logits
            torch.testing.assert_close(step[:, 0], expected[:, place], atol=2e-5, rtol=0)


def test_analysis_opens_stock_models(make_model: MakeModel, corpus: Path) -> None:
    source = make_model("smollm3", no_rope_layers=[1, 0, 1, 0])
    write_tokenizer(corpus, source, "smollm3", 64)
    decoder = open_model(source).decoder()
    assert decoder.model_config.layer_variants == ("standard", "nope", "standard", "nope")
    ids = torch.randint(512, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(source).model(ids).last_hidden_state
        torch.testing.assert_close(decoder(ids), expected, atol=1e-5, rtol=0)


def test_a_scaling_given_for_longer_sequences(
    make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has what transformers has with that in the model's configuration: from the model's own length."""
    source, run = make_model("llama"), tmp_path / "run"
    flags = ["--data", str(corpus), "--seq-len", "200", "--precision", "fp32", "--rope-scaling", "yarn:4"]
    tool.main([str(source), str(run), *flags])
    assert "rotary scaling: yarn:4.0,original=64," in capsys.readouterr().out
    longer = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 20_000.0, "original_max_position_embeddings": 64}
    edit(source, rope_parameters=longer, max_position_embeddings=256)
    ids = torch.randint(512, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(source)(ids).logits
        torch.testing.assert_close(model_of(open_checkpoint(run)).logits(ids), expected, atol=1e-5, rtol=0)


def test_a_scaling_taken_away_or_static(make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path) -> None:
    source = make_model("llama", rope_parameters=YARN)
    flags = ["--data", str(corpus), "--seq-len", "24", "--precision", "fp32", "--rope-scaling"]
    tool.main([str(source), str(tmp_path / "none"), *flags, "none"])
    config = open_checkpoint(tmp_path / "none").model_config
    assert (config.rope_scaling, config.rope_theta) == (None, 10_000.0)
    tool.main([str(source), str(tmp_path / "ntk"), *flags, "ntk:2"])
    config = open_checkpoint(tmp_path / "ntk").model_config
    assert (config.rope_scaling, config.rope_theta) == (None, 10_000.0 * 2 ** (8 / 6))


def test_two_bases_in_an_export_are_refused() -> None:
    config = DeconAttnConfig.of(small_config("standard", rope_theta=1e4, rope_scaling=RopeScaling("linear", 2.0)))
    config.rope_theta = 2e4
    with pytest.raises(UserError, match="rope_theta is 20000 but 10000 in rope_parameters: give one of them"):
        config.to_model_config()
