"""The exported model is the trained one, and the folder is whole or not there."""

import json
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from deconattn import durable
from deconattn.durable import WRITTEN, check_replaceable
from deconattn.errors import UserError
from deconattn.hf import export as export_module
from deconattn.hf.model_card import Provenance
from deconattn.hf.modeling_deconattn import DeconAttnForCausalLM
from deconattn.layers.config import ModelConfig
from deconattn.mixers import variant_names
from tests.hf.models import MIXED, exported, small_config, tokens, trained

OURS = {
    **{name: small_config(name, name) for name in variant_names() if name != "standard"},
    "1:1": small_config("nonapproximate", "standard", "nonapproximate", "standard"),
    "1:3": small_config("rndemb", "rndemb", "rndemb", "standard"),
    "mixed": small_config(*MIXED),
    "grouped": small_config(*MIXED, "approximate", "nonapproximate", num_key_value_heads=2),
    "qk_norm": small_config(*MIXED, "approximate", "nonapproximate", qk_norm=True, attention_bias=False),
    "tied": small_config(*MIXED, tie_word_embeddings=True),
    "bias and qk_norm": small_config("standard", qk_norm=True),
    "odd head": small_config("standard", head_dim=12),
}
STOCK = {
    "qwen2": small_config("standard", "standard", num_key_value_heads=2),
    "qwen2 tied": small_config("standard", tie_word_embeddings=True),
    "qwen3": small_config("standard", "standard", head_dim=12, qk_norm=True, attention_bias=False),
    "llama": small_config("standard", "standard", num_key_value_heads=2, attention_bias=False),
    "llama tied": small_config("standard", attention_bias=False, tie_word_embeddings=True),
    "qwen3 tied": small_config("standard", qk_norm=True, attention_bias=False, tie_word_embeddings=True),
}


@pytest.mark.parametrize("config", OURS.values(), ids=OURS.keys())
def test_logits_and_loss_are_the_trained_models(config: ModelConfig, tmp_path: Path) -> None:
    model = trained(config)
    loaded, info = AutoModelForCausalLM.from_pretrained(exported(model, tmp_path / "out"), output_loading_info=True)
    assert type(loaded) is DeconAttnForCausalLM
    assert loaded.dtype == torch.float32
    assert not any(info.values())
    _assert_same(model, loaded)


@pytest.mark.parametrize("name", STOCK)
def test_standard_attention_is_a_stock_model(name: str, tmp_path: Path) -> None:
    model = trained(STOCK[name])
    out = exported(model, tmp_path / "out")
    assert not list(out.glob("*.py"))
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert type(loaded).__module__.startswith(f"transformers.models.{name[:5]}.")
    assert not any(info.values())
    _assert_same(model, loaded)


def _assert_same(model: torch.nn.Module, loaded: torch.nn.Module) -> None:
    ids = tokens(2, 70)
    with torch.no_grad():
        output = loaded(ids, labels=ids)
        total, count, _ = model(ids[:, :-1], ids[:, 1:])
        expected = model.logits(ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(output.logits, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(output.loss, total / count, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variants", [MIXED, ("standard",)], ids=["mixed", "standard"])
def test_bf16(variants: tuple[str, ...], tmp_path: Path) -> None:
    model = trained(small_config(*variants))
    out = exported(model, tmp_path / "out", dtype=torch.bfloat16)
    stored = load_file(out / "model.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if name != "model.fixed_ids"} == {torch.bfloat16}
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == torch.bfloat16
    ids = tokens(2, 70)
    with torch.no_grad():
        logits = loaded(ids).logits
        expected = model.to(torch.bfloat16).logits(ids)
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.02)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    model, known = trained(small_config(*MIXED)), Provenance(step=3)
    first, second = (exported(model, tmp_path / name, provenance=known) for name in ("a", "b"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert {"model.safetensors", "modeling_deconattn.py", "README.md", "config.json"} < set(names)
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert not [path for path in tmp_path.iterdir() if path not in (first, second)]


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "MAX_SHARD_SIZE", "60KB")
    model = trained(small_config(*MIXED, tie_word_embeddings=True))
    out = exported(model, tmp_path / "out")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(out.glob("model-*-of-*.safetensors"))) > 1
    assert "lm_head.weight" not in index["weight_map"]
    _assert_same(model, AutoModelForCausalLM.from_pretrained(out))


def test_the_card_names_every_layer(tmp_path: Path) -> None:
    model = trained(small_config("rndemb", "rndemb", "standard"))
    card = (exported(model, tmp_path / "out", provenance=Provenance(step=1234)) / "README.md").read_text()
    assert "| 1-2 | `rndemb` |" in card
    assert "| 3 | `standard` |" in card
    assert f"| parameters | {sum(p.numel() for p in model.parameters()):,} |" in card
    assert "| training steps | 1,234 |" in card
    declared = next(one for one in requires("deconattn") if one.startswith("transformers"))
    assert f"It works with `{declared}`." in card and "<" in declared


def test_the_card_says_what_is_known(tmp_path: Path) -> None:
    model = trained(small_config("rndemb", "standard"))
    known = Provenance(7, ('web: "best"', "books"), "Qwen2-0.5B", "apache-2.0", ("en", "cs"))
    metadata = ModelCard.load(exported(model, tmp_path / "known", provenance=known) / "README.md").data.to_dict()
    assert metadata == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["deconattn"],
        "license": "apache-2.0",
        "language": ["en", "cs"],
        "datasets": ['web: "best"', "books"],
        "base_model": "Qwen2-0.5B",
    }
    bare = ModelCard.load(exported(model, tmp_path / "bare") / "README.md")
    assert not {"license", "language", "datasets", "base_model"} & set(bare.data.to_dict())
    assert f"transformers {transformers.__version__}" in bare.text and "all-linear" in bare.text
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    assert config["transformers_version"] == transformers.__version__


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    model, out = trained(small_config("mlp")), tmp_path / "out"
    out.mkdir()
    exported(model, out)  # empty is free
    with pytest.raises(UserError, match="--overwrite"):
        exported(model, out)
    other = trained(small_config("standard"))
    exported(other, out, overwrite=True)
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen2"
    assert not (out / "modeling_deconattn.py").exists()
    assert list(tmp_path.iterdir()) == [out]


def test_overwrite_spares_what_is_no_export(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no folder that export wrote"):
        exported(trained(small_config("mlp")), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "stranger", ["optimizer.pt", ".git/HEAD", "notes/today.md", "empty/", "evaluation/results.json"]
)
def test_overwrite_spares_what_was_put_into_an_export(tmp_path: Path, stranger: str) -> None:
    model = trained(small_config("mlp"))
    out = exported(model, tmp_path / "out")
    path = out / stranger
    path.parent.mkdir(exist_ok=True)
    if stranger.endswith("/"):
        path.mkdir()
    else:
        path.write_text("mine")
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match=rf"{stranger.split('/')[0]}.*, which export did not write"):
        exported(model, out, overwrite=True)
    assert sorted(out.rglob("*")) == before


def test_overwrite_spares_what_another_command_wrote(tmp_path: Path) -> None:
    model = trained(small_config("mlp"))
    out = exported(model, tmp_path / "out")
    with pytest.raises(UserError, match="no folder that evaluate wrote"):
        check_replaceable(out, "evaluate", overwrite=True)
    for damaged in ("[]", '{"command": "export", "files": [1]}', '{"command": "export", "files": 3}', "[" * 100_000):
        (out / WRITTEN).write_text(damaged)
        with pytest.raises(UserError, match="no folder that export wrote"):
            exported(model, out, overwrite=True)


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = trained(small_config("mlp")), tmp_path / "out"
    before = {path.name: path.read_bytes() for path in exported(model, out).iterdir()}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "save_file", full)
    for target in (out, tmp_path / "new"):
        with pytest.raises(UserError, match="no space left"):
            exported(model, target, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_an_export_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = trained(small_config("mlp")), tmp_path / "out"
    before = (exported(model, out) / "README.md").read_bytes()
    replace = Path.replace

    def failing(source: Path, target: Path) -> Path:
        if target == out and ".partial-" in source.name:
            raise OSError("Stale file handle")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", failing)
    monkeypatch.setattr(durable, "exchange", lambda one, other: False)  # a system that cannot
    with pytest.raises(UserError, match="Stale"):
        exported(model, out, overwrite=True, provenance=Provenance(step=5))
    assert (out / "README.md").read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    weights = trained(small_config("mlp")).state_dict()
    options = {"dtype": torch.float32, "tokenizer_folder": None}
    with pytest.raises(UserError, match="lack"):
        export_module.export(weights, small_config("standard"), tmp_path / "out", **options)
    with pytest.raises(UserError, match="shape"):
        export_module.export(weights, small_config("mlp", vocab_size=301), tmp_path / "out", **options)
    surplus = weights | {"model.layers.0.self_attn.q_proj.weight": torch.zeros(1)}
    with pytest.raises(UserError, match="q_proj"):
        export_module.export(surplus, small_config("mlp"), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())
