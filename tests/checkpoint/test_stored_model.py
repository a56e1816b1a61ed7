"""Every kind of MODEL, opened."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from deconattn.checkpoint.stored_model import open_model
from deconattn.commands import export as export_command
from deconattn.data.tokenizing.tokenizer import load_tokenizer
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.mixers import registry
from deconattn.mixers.plugins import load_plugins
from tests.generation.conftest import write_run
from tests.hf.models import LONGEST, MIXED, exported, load_plugin, small_config, tokens, trained

CONFIGS = {
    "ours": small_config(*MIXED, "approximate", "nonapproximate"),
    "ours, tied": small_config("fixedseq", "mlp", tie_word_embeddings=True),
    "stock": small_config("standard", "standard", num_key_value_heads=2),
    "stock, tied": small_config("standard", "standard", tie_word_embeddings=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_run_a_checkpoint_and_an_export_are_the_model(config: ModelConfig, byte_level: Path, tmp_path: Path) -> None:
    model, ids, read = trained(config), tokens(2, 20), []
    run = write_run(model, byte_level, tmp_path / "run", "--precision fp32")
    export = exported(model, tmp_path / "export", tokenizer_folder=byte_level)
    with torch.no_grad():
        expected = model.logits(ids)
        for path in (run, run / "checkpoints/step-7", export):
            stored = open_model(path)
            loaded = stored.load()
            assert not loaded.training and loaded.dtype == torch.float32
            torch.testing.assert_close(loaded(ids.to(loaded.device)).logits.cpu(), expected, atol=1e-5, rtol=0)
            assert stored.tokenizer.eos_token_id == loaded.generation_config.eos_token_id == 0
            read.append(stored.tokenizer("Où? ё\n\n 東 don't").input_ids)
            assert stored.longest == (LONGEST if {"rndemb", "fixedseq"} & set(config.layer_variants) else None)
    assert read == [load_tokenizer(byte_level).encode_batch(["Où? ё\n\n 東 don't"])[0].tolist()] * 3


def test_precision_is_the_runs_or_the_exports_unless_told(byte_level: Path, tmp_path: Path) -> None:
    model = trained(CONFIGS["ours"])
    run = write_run(model, byte_level, tmp_path / "run", "--precision bf16")
    export = exported(model, tmp_path / "export", tokenizer_folder=byte_level, dtype=torch.bfloat16)
    states = []
    for path in (run, export):
        states.append(open_model(path).load().state_dict())
        wide = open_model(path).load("fp32").state_dict()
        assert {tensor.dtype for tensor in states[-1].values()} == {torch.bfloat16, torch.int64}
        assert {tensor.dtype for tensor in wide.values()} == {torch.float32, torch.int64}
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_reading_one_says_nothing(
    kind: str, byte_level: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither transformers' bar nor its words, which come back as they were."""
    export = exported(trained(CONFIGS[kind]), tmp_path / "export", tokenizer_folder=byte_level)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    open_model(export).load()
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_an_exports_own_code_is_not_run(byte_level: Path, tmp_path: Path) -> None:
    export = exported(trained(CONFIGS["ours"]), tmp_path / "export", tokenizer_folder=byte_level)
    for path in export.glob("*.py"):
        path.write_text("raise SystemExit('run')")
    assert type(open_model(export).load()).__module__ == "deconattn.hf.modeling_deconattn"


def test_third_parties_variants_come_from_their_file(
    byte_level: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = load_plugin(tmp_path)
    model, ids = trained(small_config("runningmean", "standard")), tokens(1, 9)
    run = write_run(model, byte_level, tmp_path / "run", f"--plugin {plugin}")
    export = exported(model, tmp_path / "export", tokenizer_folder=byte_level, plugins=[plugin])
    monkeypatch.delitem(registry._REGISTRY, "runningmean")  # as in another process
    monkeypatch.delitem(sys.modules, "deconattn_plugin_running-mean")
    moved = plugin.rename(tmp_path / "moved.py")
    with pytest.raises(UserError, match="layers of variant 'runningmean': give its file with --plugin"):
        open_model(export)
    with pytest.raises(UserError, match="--plugin .*running-mean.py"):
        open_model(run)
    export_command.main([str(run), str(tmp_path / "again"), "--plugin", str(moved)])
    with torch.no_grad():
        for path in (run, export, tmp_path / "again"):
            loaded = open_model(path, [moved]).load("fp32")
            torch.testing.assert_close(loaded(ids.to(loaded.device)).logits.cpu(), model.logits(ids), atol=1e-5, rtol=0)


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _foreign(folder: Path) -> None:
    auto_map = {"AutoConfig": "configuration_deconattn.C", "AutoModelForCausalLM": "modeling_deconattn.M"}
    (folder / "config.json").write_text(json.dumps({"model_type": "house", "auto_map": auto_map}))


def _unknown(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "house"}))


def _another_task(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))


def _impossible(folder: Path) -> None:
    _edit(folder, hidden_size="wide")


def _lacking(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if name != "model.norm.weight"}, folder / "model.safetensors")


def _shallow(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    _edit(folder, num_hidden_layers=1, layer_variants=config.get("layer_variants", ["standard"])[:1])


def _narrow(folder: Path) -> None:
    _edit(folder, intermediate_size=32)


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", ["ours", "stock"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_tokenizer, "has no tokenizer: copy its tokenizer there, or export with --tokenizer"),
        (_broken_tokenizer, "its tokenizer cannot be read"),
        (_pickle, "pickles (pytorch_model.bin)"),
        (_foreign, "code that lies beside a model is not run"),
        (_unknown, "transformers has no model_type 'house'"),
        (_another_task, "a t5 is no causal language model"),
        (_impossible, "config.json is no configuration of"),
        (_lacking, "lacks model.norm.weight"),
        (_shallow, "has, beside what its config.json describes, model."),
        (_narrow, "is (32, 48), by config.json (32, 32)"),
    ],
)
def test_folders_that_are_not_whole(
    kind: str, damage: Callable[[Path], None], message: str, byte_level: Path, tmp_path: Path
) -> None:
    folder = exported(trained(CONFIGS[kind]), tmp_path / "export", tokenizer_folder=byte_level)
    damage(folder)
    with pytest.raises(UserError) as caught:
        open_model(folder).load()
    assert str(folder) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path) -> None:
    run = write_run(trained(CONFIGS["stock"]), None, tmp_path / "run")
    with pytest.raises(UserError, match="step-7 has no tokenizer/"):
        open_model(run)


FACTOR = """
from deconattn.mixers import Decoding, Standard, register


@register("scaled")
class Scaled(Standard):
    decoding, map_blocks = Decoding(), Standard.map_blocks

    def forward(self, hidden, static, context):
        return {factor} * super().forward(hidden, static, context)
"""


def test_runs_with_plugins_of_one_name_are_each_their_own(
    byte_level: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, runs = tokens(2, 20), []
    for factor in (2, -3):
        with monkeypatch.context() as patch:  # as a process of its own
            patch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
            file = tmp_path / f"factor{factor}" / "scaled.py"
            file.parent.mkdir()
            file.write_text(FACTOR.format(factor=factor))
            load_plugins([file])
            model = trained(small_config("scaled", "standard"))
            with torch.no_grad():
                expected = model.logits(ids)
            runs.append(
                (write_run(model, byte_level, file.parent / "run", f"--precision fp32 --plugin {file}"), expected)
            )
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    for run, expected in (*runs, runs[0]):
        loaded = open_model(run).load()
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids.to(loaded.device)).logits.cpu(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [{}, "long", [3]], ids=str)
def test_a_tokenizers_settings_of_a_wrong_type_are_told(value: object, byte_level: Path, tmp_path: Path) -> None:
    export = exported(trained(small_config("mlp")), tmp_path / "export", tokenizer_folder=byte_level)
    path = export / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": value}))
    with pytest.raises(UserError, match=f"{export}: its tokenizer cannot be read"):
        open_model(export)
