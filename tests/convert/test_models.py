"""A converted Qwen is the same function, and goes back as it came."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from deconattn.checkpoint.format import Checkpoint, open_checkpoint
from deconattn.convert.run_flags import nearest_size
from deconattn.hf.export import export
from deconattn.model.causal_lm import CausalLM
from tests.convert.conftest import SEQUENCE, MakeModel, edit
from tests.hf.models import small_config

MODELS = {
    "qwen2": {"kind": "qwen2"},
    "qwen2, tied, shards": {"kind": "qwen2", "tie_word_embeddings": True, "shard": "60KB"},
    "qwen3, shards": {"kind": "qwen3", "shard": "60KB"},
    "qwen3, tied": {"kind": "qwen3", "tie_word_embeddings": True},
}


def model_of(checkpoint: Checkpoint) -> CausalLM:
    model = CausalLM(checkpoint.model_config)
    model.load_state_dict(checkpoint.weights(), strict=not checkpoint.model_config.tie_word_embeddings)
    return model.eval()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_logits_are_transformers_and_the_way_back_gives_the_source(
    options: dict[str, object], make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    source, run, back = make_model(**options), tmp_path / "run", tmp_path / "back"
    assert len(list(source.glob("*.safetensors"))) > 1 or "shard" not in options
    tool.main([str(source), str(run), "--data", str(corpus), "--seq-len", str(SEQUENCE), "--precision", "fp32"])
    checkpoint = open_checkpoint(run)
    assert checkpoint.step == 0
    assert set(checkpoint.model_config.layer_variants) == {"standard"}
    ids = torch.randint(512, (2, SEQUENCE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(source)(ids).logits
        logits = model_of(checkpoint).logits(ids)
    assert expected.std() > 0.3
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)

    export(checkpoint.weights(), checkpoint.model_config, back, dtype=torch.float32, tokenizer_folder=None)
    original, returned = tensors_of(source), tensors_of(back)
    assert original.keys() == returned.keys()
    assert all(torch.equal(original[name], returned[name]) for name in original)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (source, back)]
    for name in ("model_type", "rms_norm_eps", "initializer_range", "rope_parameters", "num_key_value_heads"):
        assert configs[0][name] == configs[1][name]


def test_bf16_weights_become_fp32_of_the_same_value(
    make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    source = make_model(dtype="bfloat16")
    tool.main([str(source), str(tmp_path / "run"), "--data", str(corpus)])
    weights, stored = open_checkpoint(tmp_path / "run").weights(), tensors_of(source)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[name], stored[name].float()) for name in stored)


def test_a_configuration_as_transformers_4_writes_it(
    make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = edit(make_model(), rope_parameters=None, layer_types=None, rope_theta=30_000.0, dtype=None)
    edit(source, torch_dtype="float32", sliding_window=4096, use_sliding_window=False, max_window_layers=2)
    tool.main([str(source), str(tmp_path / "run"), "--data", str(corpus), "--seq-len", "100"])
    assert "note: --seq-len 100 is beyond the 64 positions of the model" in capsys.readouterr().out
    config = open_checkpoint(tmp_path / "run").model_config
    assert config.rope_theta == 30_000.0
    assert (config.max_position_embeddings, config.num_key_value_heads) == (100, 2)


def test_a_head_that_repeats_the_tied_embedding_is_left_unused(
    make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    source = make_model(tie_word_embeddings=True)
    tensors = tensors_of(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    tool.main([str(source), str(tmp_path / "run"), "--data", str(corpus)])
    assert f"left unused in {source}: 1 tensor\n  lm_head\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("width", "depth", "size"),
    [(64, 2, "tiny"), (512, 8, "70m"), (896, 24, "500m"), (2048, 28, "1.7b"), (3584, 28, "7b")],
)
def test_training_defaults_are_those_of_the_nearest_size(width: int, depth: int, size: str) -> None:
    assert nearest_size(small_config(*["standard"] * depth, hidden_size=width)) == size
