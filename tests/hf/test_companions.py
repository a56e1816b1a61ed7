"""What users do with a model of Hugging Face, done with ours: peft, TRL, torchao, ONNX, mergekit, Trainer.

The libraries are the extra `companions`; a test whose library is missing is skipped.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from deconattn.checkpoint.stored_model import open_model
from deconattn.convert.new_run import write_run
from deconattn.data.packing.pack import PackConfig, pack
from deconattn.hf.modeling_deconattn import CACHE, DeconAttnForCausalLM
from tests.hf.models import exported, small_config, tokens, trained
from tests.hf.test_modeling import VARIANTS, build

GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


class Logits(torch.nn.Module):
    """Token ids to logits and nothing else."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids).logits


LENGTHS = {"ids": {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=80)}}


@pytest.mark.parametrize(
    "variant", ["approximate", *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS if v != "approximate")]
)
@torch.no_grad()
def test_torch_export_leaves_the_length_open(variant: str) -> None:
    model = build(variant, "standard", variant, num_key_value_heads=2)
    program = torch.export.export(Logits(model), (tokens(2, 17),), dynamic_shapes=LENGTHS, strict=False)
    for length in (2, 33, 80):
        ids = tokens(3, length, length)
        torch.testing.assert_close(program.module()(ids), model(ids).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_onnx_leaves_the_length_open(variant: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, out = build(variant, "standard"), tmp_path / "model.onnx"
    torch.onnx.export(Logits(model), (tokens(2, 17),), out, dynamic_shapes=LENGTHS, dynamo=True)
    session = runtime.InferenceSession(out)
    for length in (2, 33, 80):
        ids = tokens(3, length, length)
        [logits] = session.run(None, {"ids": ids.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "v_proj", "up_proj", "lm_head", "embed_tokens"]])
def test_lora(target: Any, tmp_path: Path) -> None:
    """Trains, is switched off and on, is merged and saved; generation with a cache follows every step."""
    peft = pytest.importorskip("peft")
    base, ids = build(*VARIANTS), tokens(2, 12)
    before = base(ids).logits.detach()
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=target, r=2, init_lora_weights=False)
    model = peft.get_peft_model(base, config)
    adapted = model(input_ids=ids).logits.detach()
    assert (adapted - before).abs().max() > 1e-3
    model.train()(input_ids=ids, labels=ids).loss.backward()
    unused = [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None]
    assert not unused
    model.eval()
    _assert_cached(model)
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=ids).logits, before)
        _assert_cached(model)
    _assert_cached(model)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(build(*VARIANTS), tmp_path / "adapter")
    torch.testing.assert_close(again(input_ids=ids).logits, adapted)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, adapted, atol=1e-4, rtol=0)
    _assert_cached(merged)


def _assert_cached(model: Any) -> None:
    ids = tokens(2, 9, 4)
    expected = model.generate(input_ids=ids, use_cache=False, **GREEDY)
    assert model.generate(input_ids=ids, **GREEDY).tolist() == expected.tolist()


def test_prompt_tuning() -> None:
    model, ids = _with_a_prompt(), tokens(2, 12)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    assert model.prompt_encoder["default"].embedding.weight.grad.abs().min() > 0


@pytest.mark.skipif(CACHE == "cache", reason="peft 0.21 puts the prompt before every token of any model since 5.24")
def test_generation_after_a_prompt_that_was_tuned() -> None:
    model, ids = _with_a_prompt(), tokens(2, 12)
    expected = ids  # peft's own generation without a cache leaves the prompt out after the first token
    for _ in range(6):
        expected = torch.cat([expected, model(input_ids=expected).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert model.generate(input_ids=ids, **GREEDY).tolist() == expected.tolist()


def _with_a_prompt() -> Any:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return peft.get_peft_model(build(*VARIANTS), config).eval()


@pytest.mark.parametrize("hidden_size", [32, 512], ids=["small", "of a size for which products go to oneDNN"])
@torch.no_grad()
def test_int8_weights(hidden_size: int) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    sizes = {"hidden_size": hidden_size, "head_dim": hidden_size // 4, "intermediate_size": 4 * hidden_size}
    model, plain, ids = build(*VARIANTS, **sizes), build(*VARIANTS, **sizes), tokens(2, 40)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    for module, quantized in zip(plain.modules(), model.modules(), strict=True):
        if isinstance(module, torch.nn.Linear):
            assert not torch.equal(module.weight, quantized.weight.dequantize())
            module.weight.copy_(quantized.weight.dequantize())
    expected = plain(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    _assert_cached(model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with its tokenizer: single characters."""
    root = tmp_path_factory.mktemp("companions")
    vocabulary = {chr(32 + number): number for number in range(95)} | {"<|endoftext|>": 95}
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 95, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<|endoftext|>"},
    }
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text(json.dumps(content))
    Tokenizer.from_file(str(root / "tokenizer" / "tokenizer.json"))
    config = small_config("rndemb", "standard", "nonapproximate", vocab_size=128, max_position_embeddings=256)
    return exported(trained(config), root / "out", tokenizer_folder=root / "tokenizer")


@pytest.fixture(params=["package", "remote code"])
def loading(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"trust_remote_code": request.param == "remote code"}


@pytest.mark.slow
def test_trainer_checkpoints_load_again_where_the_package_is_not(folder: Path, tmp_path: Path) -> None:
    """Two steps, a checkpoint, and its text in an interpreter without the package."""
    pytest.importorskip("accelerate", minversion="1.1")  # which the Trainer needs, and nothing of ours
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is DeconAttnForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = [{"input_ids": row, "labels": row} for row in tokens(8, 20).remainder(90)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trained"),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=2,
        gradient_checkpointing=True,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    saved = tmp_path / "trained" / "checkpoint-2"
    ids = tokens(1, 9).remainder(90)
    expected = trainer.model.eval()(ids).logits
    program = f"""
import sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "deconattn":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
where = {str(saved)!r}
AutoTokenizer.from_pretrained(where)
AutoConfig.from_pretrained(where, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(where, trust_remote_code=True).eval()
save_file({{"logits": model(torch.tensor({ids.tolist()})).logits.detach()}}, {str(tmp_path / "logits.safetensors")!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.testing.assert_close(load_file(tmp_path / "logits.safetensors")["logits"], expected, atol=2e-5, rtol=0)


def test_what_lora_has_merged_goes_on_as_a_run(folder: Path, tmp_path: Path) -> None:
    """The last lines of docs/healing.md: an export, adapted by peft, merged and saved, begins a run."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora).merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "merged")
    text, packed, run = tmp_path / "text.jsonl", tmp_path / "packed", tmp_path / "run"
    text.write_text('{"text": "As it was, so it is."}\n' * 20)
    pack(PackConfig(inputs=(str(text),), tokenizer=str(folder), out=packed, workers=1, val_fraction=0.1))
    write_run(tmp_path / "merged", run, ["--data", str(packed), "--seq-len", "16"])
    ids = tokens(2, 16).remainder(90)
    torch.testing.assert_close(open_model(run).load()(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_supervised_fine_tuning_packs(folder: Path, loading: dict[str, Any], tmp_path: Path) -> None:
    """TRL packs by positions that restart: the loss of a packed row is that of its documents alone."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    texts = datasets.Dataset.from_dict(
        {"text": ["Once upon a time", "A whale!", "Call me Ishmael, some years ago"] * 4}
    )
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), packing=True, max_length=64, max_steps=2, report_to=[], use_cpu=True, bf16=False,
        per_device_train_batch_size=2, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, **loading)
    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=texts, processing_class=AutoTokenizer.from_pretrained(folder)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert "position_ids" in batch
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) > 1
    with torch.no_grad():
        model.eval()
        packed = model(input_ids=batch["input_ids"][:1], position_ids=batch["position_ids"][:1]).logits[0]
        for start, stop in zip(starts, [*starts[1:], packed.shape[0]], strict=True):
            alone = model(batch["input_ids"][:1, start:stop]).logits[0]
            torch.testing.assert_close(packed[start:stop], alone, atol=2e-5, rtol=0)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in trainer.state.log_history if "loss" in row)


def test_preference_optimisation(folder: Path, loading: dict[str, Any], tmp_path: Path) -> None:
    """DPO with LoRA: the reference is the model with its adapter off."""
    trl, peft = pytest.importorskip("trl"), pytest.importorskip("peft")
    datasets = pytest.importorskip("datasets")
    pairs = {"prompt": ["Why? "] * 8, "chosen": ["Because."] * 8, "rejected": ["No!"] * 8}
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True, bf16=False, learning_rate=1e-2,
        per_device_train_batch_size=2, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, **loading),
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(pairs),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2),
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[1] < losses[0]


def test_group_relative_optimisation(folder: Path, loading: dict[str, Any], tmp_path: Path) -> None:
    """GRPO: generation and log-probabilities are of one model."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True, bf16=False, num_generations=2,
        per_device_train_batch_size=2, max_completion_length=6, disable_tqdm=True, logging_steps=1, beta=0.1,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, **loading),
        args=arguments,
        reward_funcs=lambda completions, **_: [float(text.count("e")) for text in completions],
        train_dataset=datasets.Dataset.from_dict({"prompt": ["Once upon ", "A"] * 4}),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    assert trainer.state.global_step == 2


def test_merging(folder: Path, tmp_path: Path) -> None:
    """mergekit averages two exports weight by weight, and what it writes loads."""
    pytest.importorskip("mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    second = tmp_path / "second"
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02
    model.save_pretrained(second)
    AutoTokenizer.from_pretrained(folder).save_pretrained(second)
    recipe = {
        "models": [{"model": str(path), "parameters": {"weight": 0.5}} for path in (folder, second)],
        "merge_method": "linear",
        "dtype": "float32",
    }
    options = MergeOptions(trust_remote_code=True, copy_tokenizer=True, cuda=False)
    run_merge(MergeConfiguration.model_validate(recipe), str(tmp_path / "merged"), options)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for name, tensor in AutoModelForCausalLM.from_pretrained(folder).state_dict().items():
        shift = 0.01 if tensor.is_floating_point() and "fixed_" not in name else 0
        torch.testing.assert_close(merged.state_dict()[name], tensor + shift, atol=1e-6, rtol=0)
