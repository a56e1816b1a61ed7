"""Runs that begin with trained weights: on every topology, to the bit, with all else as in a fresh run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config

from deconattn.checkpoint.format import open_checkpoint
from deconattn.config.command_line import parse_training_flags
from deconattn.convert.run_flags import model_defaults
from deconattn.data import TokenCorpus
from deconattn.errors import UserError
from deconattn.launch.preflight import check_flags
from deconattn.model.causal_lm import CausalLM
from deconattn.model.init import initialize
from tests.conftest import SMALL
from tests.ranks import Ranks
from tests.train.conftest import losses
from tests.train.jobs import run_job, train, train_and_listen

STILL = ["--lr", "1e-30", "--steps", "1"]
"""A step that moves no weight."""


@pytest.fixture(scope="module")
def origin(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose layers have the fixed text and standard attention."""
    run = tmp_path_factory.mktemp("origin") / "run"
    run_job([*SMALL, "--data", str(corpus), "--pattern", "fixedseq,standard", "--steps", "3", "--save", str(run)])
    return run


def fresh_weights(run: Path, seed: int = 1234) -> dict[str, torch.Tensor]:
    model = CausalLM(open_checkpoint(run).model_config)
    initialize(model, seed, torch.zeros(32, dtype=torch.long))
    return model.state_dict()


@pytest.mark.parametrize(
    ("world", "flags"),
    [
        (1, "--zero 0"),
        (1, "--zero 1 --precision bf16"),
        (2, "--tp 2"),
        pytest.param(2, "--zero 3", marks=pytest.mark.slow),
        pytest.param(2, "--zero 2", marks=pytest.mark.slow),
        pytest.param(2, "--pp 2 --zero 1", marks=pytest.mark.slow),
        pytest.param(2, "--tp 2 --zero 3 --precision bf16", marks=pytest.mark.slow),
        pytest.param(2, "--zero 0", marks=pytest.mark.slow),
    ],
)
def test_what_is_shared_is_the_origins_to_the_bit(
    origin: Path, corpus: Path, tmp_path: Path, ranks: Callable[[int], Ranks], world: int, flags: str
) -> None:
    run = tmp_path / "run"
    arguments = [*SMALL, "--data", str(corpus), "--pattern", "rndemb,mlp", *flags.split(), *STILL]
    arguments += ["--init-from", str(origin), "--save", str(run)]
    if world == 1:
        run_job(arguments).engine.destroy()
    else:
        assert ranks(world)(train, arguments=arguments) is None
    before, after, fresh = open_checkpoint(origin).weights(), open_checkpoint(run).weights(), fresh_weights(run)
    taken = json.loads((run / "config.json").read_text())["taken"]
    new = {f"model.layers.1.self_attn.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert set(after) - set(taken) == new | {"model.fixed_embeddings"}
    rounded = torch.bfloat16 if "bf16" in flags else torch.float32
    for name, value in after.items():
        if name in taken:
            assert torch.equal(value, before[name]), name
        else:
            of_parameter = torch.float32 if name == "model.fixed_embeddings" else rounded
            assert torch.equal(value, fresh[name].to(of_parameter).float()), name


def test_it_says_what_is_taken_and_resumes_without_the_origin(
    origin: Path, corpus: Path, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    moved, run = tmp_path / "origin", tmp_path / "run"
    (tmp_path / "origin").symlink_to(origin)
    arguments = [*SMALL, "--data", str(corpus), "--pattern", "rndemb,mlp", "--init-from", str(moved)]
    said = ranks(1)(train_and_listen, arguments=[*arguments, "--steps", "2", "--save", str(run)])
    text = "\n".join(said)
    assert f"taken from {moved}/checkpoints/step-3: 20 tensors" in text
    assert "initialised as by --seed 1234: 4 tensors\n  model.fixed_embeddings\n  layer 1 (mlp): self_attn." in text
    assert "left unused" in text and "  model.fixed_ids\n" in text
    moved.unlink()
    said = ranks(1)(train_and_listen, arguments=["--save", str(run), "--resume", "--steps", "4"])
    assert not any("taken from" in line for line in said)
    assert sorted(losses(run)) == [1, 2, 3, 4]
    assert len(json.loads((run / "config.json").read_text())["taken"]) == 20
    with pytest.raises(UserError, match="--resume: the run has --init-from"):
        parse_training_flags(["--save", str(run), "--resume", "--init-from", str(tmp_path)])


@pytest.mark.parametrize("split", ["", pytest.param("--tp 2 --zero 3", marks=pytest.mark.slow)])
def test_a_hugging_face_folder_gives_dimensions_weights_and_its_name(
    corpus: Path, tmp_path: Path, ranks: Callable[[int], Ranks], split: str
) -> None:
    source, run = tmp_path / "some-model", tmp_path / "run"
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(source)
    words = f"--variant staticemb --pattern 1:1 --seq-len 32 --global-batch-size 2 --micro-batch-size 2 --data {corpus}"
    given = [*words.split(), *STILL, "--eval-sequences", "2", "--init-from", str(source), "--save", str(run)]
    flags = parse_training_flags(given, model_defaults)
    assert (flags.model.size, flags.model.hidden_size, flags.model.head_dim) == ("tiny", 32, 12)
    assert flags.model.qk_norm and flags.model.tie_embeddings and flags.model.pattern == "1:1"
    notes = check_flags(flags).notes
    assert any("whether the corpus has its token ids was not checked" in note for note in notes)
    every = [f"--{name}={getattr(flags.model, name)}" for name in ("hidden_size", "intermediate_size", "head_dim")]
    every += [f"--{name}={getattr(flags.model, name)}" for name in ("num_hidden_layers", "num_attention_heads")]
    every += ["--num_key_value_heads=2", "--vocab_size=512", "--qk_norm", "--no_attention_bias", "--tie_embeddings"]
    every += [f"--rope_theta={flags.model.rope_theta}", f"--rms_norm_eps={flags.model.rms_norm_eps}"]
    assert ranks(2 if split else 1)(train, arguments=[*given, *every, *split.split()]) is None
    after, stored = open_checkpoint(run).weights(), load_file(source / "model.safetensors")
    assert after.keys() == stored.keys() - {"lm_head.weight"}
    assert all(torch.equal(value, stored[name].float()) for name, value in after.items())
    assert open_checkpoint(run).origin["base_model"] == "some-model"


@pytest.mark.parametrize("split", ["", pytest.param("--tp 2", marks=pytest.mark.slow)])
def test_longer_sequences_with_another_scaling(
    origin: Path, corpus: Path, tmp_path: Path, ranks: Callable[[int], Ranks], split: str
) -> None:
    run = tmp_path / "run"
    words = ["--seq-len", "64", "--rope-scaling", "yarn:2", "--pattern", "rndemb,fixedseq", *split.split()]
    given = [*SMALL, "--data", str(corpus), *words, *STILL, "--init-from", str(origin), "--save", str(run)]
    flags = parse_training_flags(given, model_defaults)
    assert flags.model.rope_scaling.startswith("yarn:2.0,original=32,")
    check_flags(flags)
    every = [*given, "--rope-scaling", flags.model.rope_scaling]
    said = ranks(2 if split else 1)(train_and_listen, arguments=every)
    text, step = "\n".join(said), origin / "checkpoints/step-3"
    assert f"rotary scaling: {flags.model.rope_scaling} in the place of the model's none" in text
    first = f"model.fixed_ids goes on: its first 32 positions are those of {step}, the other 32 follow in the corpus"
    assert first in text and "model.fixed_embeddings goes on" not in text
    config, weights = open_checkpoint(run).model_config, open_checkpoint(run).weights()
    assert config.rope_scaling is not None and config.rope_scaling.original_max_position_embeddings == 32
    ids = torch.from_numpy(TokenCorpus(corpus).read(0, 64))
    assert torch.equal(weights["model.fixed_ids"], ids)
    assert torch.equal(weights["model.fixed_ids"][:32], open_checkpoint(origin).weights()["model.fixed_ids"])
    scaled = parse_training_flags([*SMALL, "--data", str(corpus), "--init-from", str(run)], model_defaults)
    assert scaled.model.rope_scaling == flags.model.rope_scaling  # a model's own scaling comes along


def test_refusals_before_anything_is_written(origin: Path, corpus: Path, tmp_path: Path) -> None:
    def refused(*words: str, pattern: str) -> None:
        given = ["--data", str(corpus), "--save", str(tmp_path / "run"), "--init-from", *words]
        with pytest.raises(UserError, match=pattern):
            check_flags(parse_training_flags(given, model_defaults))

    refused(str(origin), "--seq-len", "32", "--hidden-size", "64", pattern="has hidden_size 32 but the flags say 64")
    refused(str(origin), "--seq-len", "32", "--tie-embeddings", pattern="leave --tie-embeddings out")
    refused(
        str(origin), "--seq-len", "32", "--rope-theta", "5", pattern="has rope_theta 1000000.0 but the flags say 5.0"
    )
    text = tmp_path / "text.txt"
    text.write_text("Another text than the corpus begins with, and long enough for the sequences. " * 9)
    longer = ["--seq-len", "64", "--fixed-text", str(text)]
    refused(
        str(origin), *longer, pattern="does not begin with the 32 tokens of .*, which --seq-len 64 goes beyond: give"
    )
    text.write_text("Too short.")
    refused(str(origin), *longer, pattern="tokens, fewer than the 64 of a sequence")
    refused(str(tmp_path / "none"), pattern="--init-from .*none: no such folder")
    with pytest.raises(UserError, match="--init-from needs --data"):
        parse_training_flags(["--init-from", str(origin), "--seq-len", "32"], model_defaults)
    assert not (tmp_path / "run").exists()
