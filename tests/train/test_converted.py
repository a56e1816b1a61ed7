"""A run that begins with a Hugging Face model trains on from that model."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config

from deconattn.checkpoint.format import open_checkpoint
from deconattn.convert.new_run import write_run
from deconattn.convert.state_dict import write_state_dict
from deconattn.errors import UserError
from deconattn.model.causal_lm import CausalLM
from deconattn.train.inputs import TrainingData
from tests.train.conftest import losses
from tests.train.jobs import run_job

DIMENSIONS = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
}
FLAGS = (
    "--variant fixedseq --pattern 1:1 --seq-len 32 --global-batch-size 4 --micro-batch-size 2 --steps 2 --lr 1e-3 "
    "--eval-sequences 8 --precision fp32"
)


@pytest.mark.parametrize("tied", [False, True])
def test_training_goes_on_from_the_converted_weights(corpus: Path, tmp_path: Path, tied: bool) -> None:
    source, run = tmp_path / "hf", tmp_path / "run"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen3Config(**DIMENSIONS, tie_word_embeddings=tied)).save_pretrained(source)
    write_run(source, run, ["--data", str(corpus), *FLAGS.split()])
    start = open_checkpoint(run)
    written = json.loads((run / "config.json").read_text())
    model = CausalLM(start.model_config)
    model.load_state_dict(start.weights(), strict=not tied)
    data = TrainingData(start.flags.data.data, start.flags)
    with torch.no_grad(), closing(data.loader(0, 0, 1, pin=False)) as loader:
        first_step = loader.take(start.flags.accumulation_steps(1))
        sums = [model(batch.input_ids, batch.labels) for batch in first_step]
    expected = sum(loss.total for loss in sums) / sum(loss.labels for loss in sums)

    with pytest.raises(UserError, match="--hidden-size 32 .* 64"):
        run_job(["--save", str(run), "--resume", "--hidden-size", "64"])
    run_job(["--save", str(run), "--resume"])
    assert sorted(losses(run)) == [1, 2]
    assert losses(run)[1] == pytest.approx(float(expected), abs=1e-5)
    assert json.loads((run / "config.json").read_text()) == written
    end = open_checkpoint(run)
    assert (end.progress.step, end.progress.optimizer_steps) == (2, 2)

    write_state_dict(end, tmp_path / "end.safetensors", optimizer=True)
    file = load_file(tmp_path / "end.safetensors")
    assert file.pop("optimizer.step") == 2
    of_kind = {"weights": "", "exp_avg": "optimizer.exp_avg.", "exp_avg_sq": "optimizer.exp_avg_sq."}
    stored = {prefix + name: tensor for kind, prefix in of_kind.items() for name, tensor in end.tensors(kind)}
    assert file.keys() == stored.keys()
    assert all(torch.equal(file[name], tensor) for name, tensor in stored.items())
    assert file["optimizer.exp_avg.model.layers.0.self_attn.q_proj.weight"].any()


def test_a_fresh_run_of_the_same_flags_writes_the_same_configuration(corpus: Path, tmp_path: Path) -> None:
    source, run, fresh = tmp_path / "hf", tmp_path / "run", tmp_path / "fresh"
    AutoModelForCausalLM.from_config(Qwen3Config(**DIMENSIONS)).save_pretrained(source)
    write_run(source, run, ["--data", str(corpus), *FLAGS.split()])
    written = json.loads((run / "config.json").read_text())
    dimensions = [f"--{name.replace('_', '-')}={value}" for name, value in DIMENSIONS.items()]
    qwen3 = ["--no-attention-bias", "--qk-norm", "--rope-theta", str(written["model"]["rope_theta"])]
    run_job(["--data", str(corpus), *dimensions, *qwen3, *FLAGS.split(), "--save", str(fresh)])
    assert json.loads((fresh / "config.json").read_text()) == {
        k: v for k, v in written.items() if k not in ("base_model", "kept", "taken", "taken_layers")
    }
    inside = json.loads((run / "checkpoints/step-0/config.json").read_text())
    assert inside == written
