"""What cannot be converted: one line that names it, and nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deconattn.errors import UserError
from tests.convert.conftest import MakeModel, edit


def refused(tool: ModuleType, out: Path, words: list[str], message: str) -> None:
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        tool.main(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--hidden-size 64", "--hidden-size 64 contradicts {source}/config.json, which has 32"),
        ("--num-key-value-heads 4", "--num-key-value-heads 4 contradicts"),
        ("--vocab-size 0", "--vocab-size 0 contradicts {source}/config.json, which has 512"),
        ("--no-attention-bias", "--attention-bias False contradicts"),
        ("--rope-theta 1e4", "--rope-theta 10000.0 contradicts"),
        ("--tie-embeddings", "--tie-embeddings True contradicts"),
        ("--variant fixdseq", "did you mean 'fixedseq'"),
        ("--pattern 5*mlp", "names 5 layers but the model has 4"),
        ("--size 80m", "unknown size '80m'"),
        ("--save elsewhere", "--save has no place here"),
        ("--resume", "--resume has no place here"),
        ("--optimizer", "--optimizer: a Hugging Face folder holds no moments"),
        ("--optimise", "--optimise"),
        ("--data", "--data"),
        ("--data /nowhere", "/nowhere: no such folder"),
        ("--global-batch-size 3", "--global-batch-size 3 is not a multiple"),
        ("--seq-len 10000000", "shorten the sequence"),
        ("--fixed-text /nowhere.txt", "no such file: /nowhere.txt"),
    ],
)
def test_flags(flags: str, message: str, make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path) -> None:
    source, out = make_model(), tmp_path / "out"
    words = [str(source), str(out), "--data", str(corpus), *flags.split()]
    refused(tool, out, words, message.format(source=source))


def test_no_data_and_flags_first(make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path) -> None:
    source, out = make_model(), tmp_path / "out"
    refused(tool, out, [str(source), str(out), "--steps", "3"], "--data is missing")
    refused(tool, out, ["--steps", "3", str(source), str(out)], "SOURCE and OUT come first")
    refused(tool, out, [str(source)], "OUT")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": None, "max_window_layers": 2},
            "sliding window",
        ),
        ("qwen2", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "sliding window"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rope scaling of type 'dynamic' (rope_parameters), whose base changes with the length",
        ),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type 'dynamic'"),
        (
            "llama",
            {"rope_theta": 1e4, "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
            "one rotary embedding for all layers, and rope_parameters one for 'full_attention'",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "truncate": False}},
            "without rounded bounds",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 0.5, "rope_theta": 1e4}},
            "factor is 0.5: it must be a number >= 1",
        ),
        ("llama", {"attention_bias": True}, "bias on the attention's output projection"),
        ("llama", {"mlp_bias": True}, "bias in the feed-forward (mlp_bias)"),
        ("llama", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial rotary embedding"),
        ("mistral", {"sliding_window": 32}, "sliding window (sliding_window 32, below max_position_embeddings 64)"),
        (
            "smollm3",
            {"layer_types": ["full_attention"] * 3 + ["sliding_attention"], "sliding_window": 8},
            "sliding window (layer_types or use_sliding_window)",
        ),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers says 2 of 4 layers"),
        ("llama", {"model_type": "gemma"}, "scales its embeddings by sqrt(hidden_size)"),
        ("llama", {"model_type": "gemma2"}, "caps scores and logits"),
        ("llama", {"model_type": "gemma3_text"}, "two rotary bases"),
        ("llama", {"model_type": "olmo2"}, "normalises what attention and feed-forward give"),
        ("qwen2", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("qwen3", {"attention_bias": True}, "bias on the attention's output projection"),
        ("qwen2", {"model_type": "qwen2_moe"}, "model_type 'qwen2_moe' cannot be converted (it has experts)"),
        ("qwen2", {"model_type": "gpt2"}, "give one of llama, mistral, smollm3, qwen2, qwen3, deconattn"),
        ("qwen2", {"quantization_config": {"quant_method": "awq"}}, "quantized"),
        ("qwen2", {"hidden_size": "wide"}, "is no configuration of qwen2"),
        ("qwen2", {"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide"),
        ("qwen2", {"intermediate_size": 64}, "is (32, 48), by config.json (32, 64)"),
        (
            "qwen2",
            {"num_hidden_layers": 3, "layer_types": None},
            "beside what its config.json describes, model.layers.3.",
        ),
        ("qwen2", {"model_type": "qwen3"}, "k_norm.weight"),
        ("qwen2", {"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens.weight"),
        ("qwen2", {"vocab_size": 256}, "by config.json (256, 32)"),
    ],
)
def test_models_that_ours_cannot_be(
    kind: str,
    changes: dict[str, Any],
    message: str,
    make_model: MakeModel,
    tool: ModuleType,
    corpus: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    refused(tool, out, [str(edit(make_model(kind), **changes)), str(out), "--data", str(corpus)], message)


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)


def _lose(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _drop_a_bias(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.bias"]
    save_file(tensors, folder / "model.safetensors")


def _quantize(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(16, 32, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors")


def _garble_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _no_model_type(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_pickle, "pickles (pytorch_model.bin)"),
        (_garble, "model.safetensors cannot be read"),
        (_lose, "has no model.safetensors or model.safetensors.index.json"),
        (_lose_a_shard, "model-00002-of-00002.safetensors is missing"),
        (_drop_a_bias, "lacks model.layers.1.self_attn.k_proj.bias"),
        (_quantize, "k_proj.weight is quantized (I8)"),
        (_garble_config, "config.json cannot be read"),
        (_no_model_type, "neither a run folder"),
    ],
)
def test_folders_that_are_not_whole(
    damage: Callable[[Path], None], message: str, make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    source, out = make_model(), tmp_path / "out"
    damage(source)
    refused(tool, out, [str(source), str(out), "--data", str(corpus)], message)


def test_sources_that_are_none(make_model: MakeModel, tool: ModuleType, tmp_path: Path) -> None:
    out, file, run = tmp_path / "out", tmp_path / "file.safetensors", tmp_path / "run"
    file.write_text("")
    run.mkdir()
    (run / "config.json").write_text('{"flags": {}}')
    refused(tool, out, [str(tmp_path / "nowhere"), str(out)], "nowhere is not there")
    refused(tool, out, [str(file), str(out)], "is a file: give the folder")
    refused(tool, out, [str(tmp_path), str(out)], "neither a run folder (checkpoints/), nor a checkpoint")
    refused(tool, out, [str(run), str(out)], "is a run without a checkpoint yet")


def test_a_place_in_use(make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path) -> None:
    source, out = make_model(), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for place in (out, out / "thesis.txt"):
        refused(tool, out, [str(source), str(place), "--data", str(corpus)], "is not an empty folder")
    (out / "thesis.txt").unlink()
    tool.main([str(source), str(out), "--data", str(corpus)])
    assert (out / "checkpoints/step-0/checkpoint.json").is_file()
