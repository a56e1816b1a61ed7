"""Flags from a file."""

import json
import re
from pathlib import Path

import pytest

from deconattn.config.command_line import parse_training_flags, to_json
from deconattn.convert.run_flags import run_flags
from deconattn.errors import UserError
from deconattn.launch import launcher
from deconattn.layers.config import ModelConfig
from deconattn.train.run_folder import resolved_config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "flags.yaml"


FLAT = """
size: 70m
variant: fixedseq
pattern: 1:3
seq-len: 512        # by either spelling
doc_mask: true
data: /data/web:3
lr: 1e-4
zero: 1
tokens: 15_000_000
"""
NESTED = """
model: {size: 70m, variant: fixedseq, pattern: 1:3}
data:
  seq_len: 512
  doc-mask: yes
  data: [/data/web:3]
optimization:
  lr: 0.0001
  tokens: 15000000
engine: {zero: 1}
"""


@pytest.mark.parametrize("text", [FLAT, NESTED])
def test_flags_by_name_flat_or_nested(text: str, file: Path) -> None:
    file.write_text(text)
    words = "--size 70m --variant fixedseq --pattern 1:3 --seq-len 512 --doc-mask --lr 1e-4 --zero 1".split()
    expected = parse_training_flags([*words, "--tokens", "15000000", "--data", "/data/web:3"])
    assert to_json(parse_training_flags(["--config", str(file)])) == to_json(expected)


def test_the_command_line_comes_first_and_the_size_last(file: Path) -> None:
    file.write_text("size: 70m\nsteps: 7\nlr: 0.5")
    flags = parse_training_flags(["--config", str(file), "--steps", "9"])
    assert (flags.optimization.steps, flags.optimization.lr) == (9, 0.5)
    assert (flags.model.hidden_size, flags.data.seq_len) == (512, 2048)
    flags = parse_training_flags(["--size", "160m", "--config", str(file)])
    assert (flags.model.size, flags.model.hidden_size, flags.optimization.steps) == ("160m", 768, 7)


def test_a_runs_config_is_one(tmp_path: Path) -> None:
    model = ModelConfig(128, 32, 64, 2, 2, 2, 16, 32, ("standard",) * 2)
    words = "--steps 11 --tp 2 --pattern 3*mlp,standard --precision bf16 --warmup-steps 3 --data /a /b:2".split()
    flags = parse_training_flags(words)
    for name, content in (("config.json", resolved_config(flags, model, [])), ("flags.json", to_json(flags))):
        (tmp_path / name).write_text(json.dumps(content, indent=2))
        again = parse_training_flags(["--config", str(tmp_path / name), "--lr", "0.5"])
        assert again.optimization.lr == 0.5
        expected = to_json(flags)
        expected["optimization"]["lr"] = 0.5
        assert to_json(again) == expected
    assert to_json(again)["run"]["config"] is None
    with pytest.raises(UserError, match="--size 70m: .* has the dimensions of size tiny one by one"):
        parse_training_flags(["--config", str(tmp_path / "config.json"), "--size", "70m"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seqlen: 3", ": seqlen is no flag (did you mean 'seq_len'?)"),
        ("model: {seq_len: 3}", ": model.seq_len is no flag (did you mean 'data.seq_len'?)"),
        ("flags: {seq_len: 3}\nsteps: 3", ": flags is no flag"),
        ("steps: many", ": steps is 'many': input should be a valid integer"),
        ("steps: 1.5", ": steps is '1.5': input should be a valid integer"),
        ("steps: true", ": steps is true: it is no switch"),
        ("doc_mask: perhaps", ": doc_mask is 'perhaps': input should be a valid boolean"),
        ("precision: fp8", ": precision is 'fp8': input should be 'bf16' or 'fp32'"),
        ('save: "a\\0b"', ": a text in it has a null character"),
        ("steps: 3\nsteps: 4", ", line 2: steps is there twice"),
        ("steps: 3\noptimization: {steps: 4}", ": steps is there twice"),
        ("resume: true", ": resume has no place in a file"),
        ("config: other.yaml", ": config has no place in a file"),
        ("- 1", ": it must hold flags by their names"),
        ("steps: [", ", line 1: "),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_name(text: str, said: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"--config {file}{said}")) as caught:
        parse_training_flags(["--config", str(file)])
    assert "\n" not in str(caught.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nope.yaml: No such file"):
        parse_training_flags(["--config", str(tmp_path / "nope.yaml")])


def test_on_resume_a_file_is_held_against_the_run_like_flags(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    flags = parse_training_flags(["--seq-len", "64", "--lr", "0.5"])
    model = ModelConfig(128, 32, 64, 2, 2, 2, 16, 64, ("standard",) * 2)
    (run / "config.json").write_text(json.dumps(resolved_config(flags, model, [])))
    file.write_text(f"seq_len: 64\nsteps: 9\nsave: {run}")
    resumed = parse_training_flags(["--resume", "--config", str(file)])
    assert (resumed.run.save, resumed.optimization.steps, resumed.optimization.lr) == (run, 9, 0.5)
    file.write_text("seq_len: 32")
    with pytest.raises(UserError, match="the run has --seq-len 64 but .*flags.yaml and the flags say 32"):
        parse_training_flags(["--resume", "--save", str(run), "--config", str(file)])
    assert parse_training_flags(["--resume", "--save", str(run), "--config", str(file), "--seq-len", "64"])


@pytest.mark.usefixtures("no_rank")
def test_restarts_of_a_file_do_not_reach_the_workers(
    small: list[str], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    class Job(launcher.LauncherProcess):
        def run(self, program: list[str], options: list[str]) -> int:
            given.append(program)
            return 0

    monkeypatch.setattr(launcher, "LauncherProcess", Job)
    file.write_text(f"max_restarts: 2\nsave: {tmp_path / 'run'}")
    assert launcher.launch([*small, "--config", str(file)], ["script"]) == 0
    assert parse_training_flags(given[0][1:]).run.max_restarts == 0


def test_a_converted_model_takes_no_file(file: Path, tmp_path: Path) -> None:
    model = ModelConfig(128, 32, 64, 2, 2, 2, 16, 32, ("standard",) * 2)
    with pytest.raises(UserError, match="--config has no place here"):
        run_flags(["--config", str(file)], tmp_path, model)
