"""What a variant shares with the source is taken, the rest is as in a fresh run, and the user is told."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from deconattn.checkpoint.format import open_checkpoint
from deconattn.data import TokenCorpus
from deconattn.errors import UserError
from deconattn.hf.export import export
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize
from deconattn.program import command
from tests.convert.conftest import SEQUENCE, MakeModel
from tests.hf.models import load_plugin, small_config, trained

SUMMARY = """\
taken from {source}: 61 tensors
  model.embed_tokens, model.norm, lm_head
  layers 0, 2 (mlp): input_layernorm, post_attention_layernorm, mlp.{{down_proj, gate_proj, up_proj}}
  layer 1 (standard): input_layernorm, post_attention_layernorm, mlp.{{down_proj, gate_proj, up_proj}}, \
self_attn.{{k_proj, o_proj, q_proj, v_proj}}
  layers 3-5 (fixedseq): input_layernorm, post_attention_layernorm, mlp.{{down_proj, gate_proj, up_proj}}, \
self_attn.{{k_proj, o_proj, q_proj, v_proj}}
initialised as by --seed 7: 7 tensors
  model.fixed_ids
  layers 0, 2 (mlp): self_attn.{{down_proj, gate_proj, up_proj}}
left unused in {source}: 14 tensors
  layers 0, 2 (mlp): self_attn.{{k_proj, o_proj, q_proj, v_proj}}
training, as of --size tiny where no flag was given: 9 steps of 16 x 24 tokens, lr 0.001, fp32
"""


@pytest.mark.parametrize("variant", ["mlp", "rndemb", "fixedseq", "staticemb", "approximate", "nonapproximate"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_shared_tensors_are_the_sources_and_the_others_a_fresh_runs(
    kind: str, variant: str, make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    source = make_model(kind)
    flags = f"--data {corpus} --seq-len {SEQUENCE} --seed 11 --variant {variant} --pattern 1:1"
    tool.main([str(source), str(tmp_path / "run"), *flags.split()])
    checkpoint = open_checkpoint(tmp_path / "run")
    assert checkpoint.model_config.layer_variants == (variant, "standard") * 2
    weights, stored = checkpoint.weights(), load_file(source / "model.safetensors")
    fresh = CausalLM(checkpoint.model_config)
    initialize(fresh, 11, torch.from_numpy(TokenCorpus(corpus).read(0, SEQUENCE)))
    expected = fresh.state_dict()
    assert weights.keys() == expected.keys()
    initialised = {name for name in weights if name not in stored}
    projections = {
        f"model.layers.{layer}.self_attn.{p}_proj.weight" for layer in (0, 2) for p in ("gate", "up", "down")
    }
    rest = {"mlp": projections, "rndemb": {"model.fixed_embeddings"}, "fixedseq": {"model.fixed_ids"}}
    assert initialised == rest.get(variant, set())
    for name, tensor in weights.items():
        assert torch.equal(tensor, (expected if name in initialised else stored)[name]), name
    for moment in ("exp_avg", "exp_avg_sq"):
        moments = dict(checkpoint.tensors(moment))
        assert moments.keys() == {name for name, _ in fresh.named_parameters()}
        assert not any(tensor.any() for tensor in moments.values())


def test_the_summary(
    make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_model(num_hidden_layers=6)
    flags = f"--data {corpus} --seq-len {SEQUENCE} --seed 7 --steps 9 --lr 1e-3 --precision fp32"
    pattern = "mlp,standard,mlp,3*fixedseq"
    tool.main([str(source), str(tmp_path / "run"), *flags.split(), "--pattern", pattern])
    said = capsys.readouterr().out
    assert said.startswith(SUMMARY.format(source=source))
    assert f"note: {source} has no tokenizer.json or tokenizer.model" in said
    assert said.endswith(f"train: {command('train')} --save {tmp_path / 'run'} --resume\n")


def test_an_export_of_ours_keeps_its_layers_and_its_stream(tool: ModuleType, corpus: Path, tmp_path: Path) -> None:
    variants = ("rndemb", "fixedseq", "mlp", "standard")
    model, source = trained(small_config(*variants, vocab_size=512)), tmp_path / "hf"
    export(model.state_dict(), model.config, source, dtype=torch.float32, tokenizer_folder=corpus)
    before = model.state_dict()

    tool.main([str(source), str(tmp_path / "same"), "--data", str(corpus), "--seq-len", "80"])
    checkpoint = open_checkpoint(tmp_path / "same")
    assert checkpoint.model_config == model.config
    assert all(torch.equal(tensor, before[name]) for name, tensor in checkpoint.weights().items())

    tool.main([str(source), str(tmp_path / "short"), "--data", str(corpus), "--seq-len", "16"])
    weights = open_checkpoint(tmp_path / "short").weights()
    assert torch.equal(weights["model.fixed_ids"], before["model.fixed_ids"][:16])
    assert torch.equal(weights["model.fixed_embeddings"], before["model.fixed_embeddings"][:16])

    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question. " * 9)
    fixed_text = ["--data", str(corpus), "--fixed-text", str(text), "--seq-len"]
    flags = [*fixed_text, "16", "--pattern", "fixedseq,3*standard"]
    tool.main([str(source), str(tmp_path / "other"), *flags])
    checkpoint = open_checkpoint(tmp_path / "other")
    assert checkpoint.model_config.layer_variants == ("fixedseq", "standard", "standard", "standard")
    assert not torch.equal(checkpoint.weights()["model.fixed_ids"], before["model.fixed_ids"][:16])

    with pytest.raises(UserError, match=f"{text} does not begin with the 80 tokens of the fixed stream of {source}"):
        tool.main([str(source), str(tmp_path / "longer"), *fixed_text, "96"])
    assert not (tmp_path / "longer").exists()


def test_a_longer_run_has_the_exports_streams_and_goes_on(
    tool: ModuleType, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, source = trained(small_config("rndemb", "fixedseq", vocab_size=512)), tmp_path / "hf"
    export(model.state_dict(), model.config, source, dtype=torch.float32, tokenizer_folder=corpus)
    before = model.state_dict()
    tool.main([str(source), str(tmp_path / "run"), "--data", str(corpus), "--seq-len", "200", "--seed", "7"])
    said = capsys.readouterr().out
    weights = open_checkpoint(tmp_path / "run").weights()
    fresh = CausalLM(replace(model.config, max_position_embeddings=200))
    initialize(fresh, 7, torch.from_numpy(TokenCorpus(corpus).read(0, 200)))
    for name, way in (("fixed_ids", "follow in the corpus"), ("fixed_embeddings", "are drawn on by --seed 7")):
        line = f"model.{name} goes on: its first 80 positions are those of {source}, the other 120 {way}\n"
        assert said.count(line) == 1
        stream = weights[f"model.{name}"]
        assert torch.equal(stream[:80], before[f"model.{name}"])
        assert torch.equal(stream[80:], fresh.state_dict()[f"model.{name}"][80:])
    assert "note: --seq-len 200 is beyond the 80 positions of the model" in said


def test_a_variant_of_a_third_party(make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path) -> None:
    plugin, source = load_plugin(tmp_path), make_model()
    flags = f"--data {corpus} --plugin {plugin} --variant runningmean --pattern 1:1"
    tool.main([str(source), str(tmp_path / "run"), *flags.split()])
    checkpoint = open_checkpoint(tmp_path / "run")
    assert checkpoint.plugins == (plugin,)
    stored = load_file(source / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in checkpoint.weights().items())


def test_a_run_with_muon_begins_with_its_moments(
    make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path
) -> None:
    flags = f"--data {corpus} --seq-len {SEQUENCE} --optimizer muon"
    tool.main([str(make_model()), str(tmp_path / "run"), *flags.split()])
    checkpoint = open_checkpoint(tmp_path / "run")
    kinds = ("exp_avg", "exp_avg_sq", "momentum_buffer")
    checkpoint.check("weights", *kinds)
    adamws, _, muons = (dict(checkpoint.tensors(kind)) for kind in kinds)
    weights = checkpoint.weights()
    assert adamws.keys() | muons.keys() == weights.keys() and not adamws.keys() & muons.keys()
    assert all(weights[name].ndim == 2 and "proj" in name for name in muons)
    tool.main([str(checkpoint.folder), str(tmp_path / "full.safetensors"), "--optimizer"])
    full = load_file(tmp_path / "full.safetensors")
    assert {name for name in full if "momentum_buffer" in name} == {f"optimizer.momentum_buffer.{n}" for n in muons}
