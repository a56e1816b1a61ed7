"""`training/step.py`, `training/learn.py` and `run_gpu.sh` at toy dimensions: that they measure what they say."""

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from benchmarks.training import learn as train_learn
from benchmarks.training import step as train_step
from benchmarks.training import summary as train_summary
from benchmarks.training.contestants import Contestant, Workload, prepare
from benchmarks.training.process import TrainingProcess
from benchmarks.training.worker import measure
from deconattn.errors import UserError
from deconattn.launch.ranks import VARIABLES
from deconattn.mixers import variant_names
from tests.conftest import ROOT
from tests.train.conftest import environment

TOY = Workload("tiny", 16, 2, 64, layers=2, warmup_steps=1, samples=2, steps_a_sample=2)
REFERENCE = train_step.REFERENCE


def turn(contestant: Contestant, seconds: list[float], **more: Any) -> dict[str, Any]:
    return {
        "library": contestant.library, "variant": contestant.variant, "pattern": contestant.pattern,
        "compile": contestant.compile, "micro_batch_size": 2, "seconds_a_step": seconds, "losses": [2.0, 1.5],
        "skipped_steps": 0, "memory_gib": 3.0, "backend": {"backend": "torch", "reason": "toy"},
    } | more  # fmt: skip


def trained(contestant: Contestant, workload: Workload) -> dict[str, Any]:
    return measure(prepare(contestant, workload), workload)


def trained_alone(contestant: Contestant, workload: Workload) -> dict[str, Any]:
    """In a world of its own, not in the one that earlier tests may have opened in the parent process."""
    for name in VARIABLES:
        os.environ.pop(name, None)
    return trained(contestant, workload)


def trained_apart(workload: Workload, *libraries: str) -> list[dict[str, Any]]:
    """In a process of their own: DeepSpeed remembers process groups that would not outlive the test."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return [pool.submit(trained_alone, Contestant(name, compile=False), workload).result() for name in libraries]


@pytest.mark.slow
def test_ours_and_transformers_do_the_same_work():
    """The same first loss from the same weights, and both learn; bf16 throughout."""
    ours, theirs = trained_apart(TOY, "deconattn", "transformers")
    assert ours["losses"][0] == pytest.approx(theirs["losses"][0], abs=0.02)
    assert ours["losses"][0] == pytest.approx(math.log(64), abs=0.2)
    for result in (ours, theirs):
        assert len(result["seconds_a_step"]) == TOY.samples
        assert len(result["losses"]) == TOY.warmup_steps + TOY.samples
        assert result["skipped_steps"] == 0
        assert result["memory_gib"] > 0
    assert ours["backend"]["backend"] == "torch"


ARGS = """
from dataclasses import dataclass
from torchtitan.config import JobConfig

@dataclass
class TransformerModelArgs:
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    multiple_of: int
    ffn_dim_multiplier: float
    norm_eps: float
    rope_theta: float
    max_seq_len: int

    def update_from_config(self, config: JobConfig): ...
"""
MODEL = """
import torch
from torch import nn
from torchtitan.components.tokenizer import BaseTokenizer
from .args import TransformerModelArgs

class FeedForward(nn.Module):
    def __init__(self, dim, width):
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x):
        return self.w2(self.w1(x))

class Block(nn.Module):
    def __init__(self, args):
        super().__init__()
        width = int(args.ffn_dim_multiplier * int(8 * args.dim / 3))
        self.feed_forward = FeedForward(args.dim, -(-width // args.multiple_of) * args.multiple_of)

    def forward(self, x):
        return x + self.feed_forward(x)

class Transformer(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleDict({str(n): Block(args) for n in range(args.n_layers)})
        self.norm, self.output = nn.RMSNorm(args.dim), nn.Linear(args.dim, args.vocab_size)

    def init_weights(self):
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, ids):
        x = self.tok_embeddings(ids)
        assert x.dtype == torch.bfloat16
        for layer in self.layers.values():
            x = layer(x)
        return self.output(self.norm(x))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What of torchtitan is used, with a trainer's imports in its llama3 that nobody has installed."""
    llama = tmp_path / "torchtitan" / "models" / "llama3"
    (llama / "model").mkdir(parents=True)
    (llama / "__init__.py").write_text("import nobody_has_this")
    (llama / "model" / "args.py").write_text(ARGS)
    (llama / "model" / "model.py").write_text(MODEL)
    return tmp_path


@pytest.mark.slow
def test_torchtitan_trains_its_model_in_bf16_with_fp32_master_weights(checkout: Path):
    (result,) = trained_apart(replace(TOY, torchtitan=str(checkout)), "torchtitan")
    assert result["losses"][-1] < result["losses"][0] == pytest.approx(math.log(64), abs=0.1)


def test_torchtitan_without_a_checkout(tmp_path: Path):
    with pytest.raises(UserError, match="v0.2.2"):
        trained(Contestant("torchtitan", compile=False), replace(TOY, torchtitan=str(tmp_path)))


def test_contestants_in_order_of_importance(tmp_path: Path):
    contestants = train_step.Arguments(torchtitan=tmp_path).contestants()
    names = [contestant.name for contestant in contestants]
    assert names[:5] == ["standard", "torchtitan", "fixedseq 1:1", "nonapproximate 1:1", "approximate 1:1"]
    assert len(names) == len(set(names))
    assert REFERENCE not in contestants
    assert {contestant.variant for contestant in contestants} == set(variant_names())
    assert "torchtitan" not in [contestant.name for contestant in train_step.Arguments().contestants()]
    only = train_step.Arguments(variants=("mlp",), eager=False).contestants()
    assert [contestant.name for contestant in only if contestant.library == "deconattn"] == ["mlp 1:1", "mlp"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"variants": ("nosuch",)}, "--variants nosuch"),
        ({"sizes": ("9t",)}, "--sizes 9t"),
        ({"samples": 0}, "--samples 0"),
        ({"micro_batch_sizes": ()}, "--micro-batch-sizes"),
        ({"torchtitan": Path("nowhere")}, "--torchtitan nowhere"),
    ],
)
def test_impossible_flags(flags: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        train_step.Arguments(**flags)


def test_summary_of_turns():
    standard = Contestant()
    runs = {
        REFERENCE.name: [turn(REFERENCE, [1.0, 1.0, 9.0]), turn(REFERENCE, [1.0], memory_gib=4.0)],
        standard.name: [turn(standard, [0.5, 0.5, 0.4])],
        "mlp": [{"failure": "Traceback\nRuntimeError: no | luck\nexit code 1"}],
    }
    summary = train_summary.summarize(runs, REFERENCE.name, TOY)
    assert summary["standard"]["tokens_per_second"] == 2 * 16 / 0.5
    assert summary["standard"]["ratio"] == 2
    assert summary[REFERENCE.name]["memory_gib"] == 4
    assert summary[REFERENCE.name]["drift"] == 1
    table = train_summary.markdown({"tiny": summary}, REFERENCE.name)
    assert "| standard | 64 | 2.00 | unknown | 3.0 | 2 | 2.000 | 1.500 | 0 |" in table
    assert "RuntimeError: no / luck" in table
    assert table.index("| standard |") < table.index("| transformers |") < table.index("| mlp |")


def test_mfu_counts_the_formulas(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert train_summary.device_slug() == "nvidia-h100-80gb-hbm3"
    rows = {name: [turn(Contestant(variant=name), [0.1])] for name in ("standard", "mlp")}
    found = train_summary.summarize(rows, "standard", replace(TOY, size="500m", layers=0, seq_len=2048))
    # 6 FLOPs a weight and token, and attention's products in `standard` alone.
    weights = 24 * (4 * 896**2 + 3 * 896 * 4864) + 896 * 64
    rate = 2 * 2048 / 0.1
    assert found["mlp"]["mfu"] == pytest.approx(6 * weights * rate / 989e12, rel=0.01)
    assert 1.02 < found["standard"]["mfu"] / found["mlp"]["mfu"] < 1.4


class FakeProcess:
    """In place of :class:`TrainingProcess`: memory for two sequences, a second a turn."""

    started: ClassVar[list[int]] = []

    def __init__(self, arguments: list[str], *_: Any) -> None:
        self._size = json.loads(arguments[-1])["micro_batch_size"]
        self.started.append(self._size)

    def result(self, seconds: float) -> dict[str, Any]:
        if self._size > 2:
            return {"failure": "no memory", "out_of_memory": True}
        if seconds < 1:
            return {"failure": "cut short", "stopped": True}
        return turn(Contestant(), [1.0], warmup_seconds=0.0)

    def end(self) -> None:
        self.started.append(-self._size)


def test_a_turn_takes_the_largest_micro_batch_that_fits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_step, "TrainingProcess", FakeProcess)
    monkeypatch.setattr(FakeProcess, "started", [])
    turns = train_step.Turns(train_step.Arguments(sizes=("tiny",), micro_batch_sizes=(4, 2, 1)))
    result = turns.take(REFERENCE, "tiny", 0.0, then=Contestant())
    assert result["micro_batch_size"] == 2
    assert FakeProcess.started == [4, 4, 2]  # the second one imports ahead for the contestant that is next
    turns.take(Contestant(), "tiny", 0.0, then=Contestant(compile=False))
    assert FakeProcess.started == [4, 4, 2, 4, 2]
    turns.close()
    assert FakeProcess.started[-1] == -4


def test_turns_end_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_step, "TrainingProcess", FakeProcess)
    turns = train_step.Turns(train_step.Arguments(micro_batch_sizes=(1,), seconds=0.5))
    assert turns.take(REFERENCE, "tiny", 0.0, then=None)["failure"] == train_step.NO_TIME
    assert not turns.time_for_another(reserve=1.0)


WORKER = """
import os, sys, time
from benchmarks.training.process import output_file, wait_for_turn
wait_for_turn()
print("begun", flush=True)
"""


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        ("output_file().write_text('{\"figure\": 1}')", {"figure": 1}),
        ("raise RuntimeError('no luck')", {"stopped": False}),
        ("time.sleep(60)", {"stopped": True}),
    ],
)
def test_a_training_process(then: str, expected: dict[str, Any]):
    found = TrainingProcess(["-c", WORKER + then]).result(60 if "sleep" not in then else 5)
    assert expected.items() <= found.items()
    assert "stopped" not in found or "begun" in found["failure"]


def test_a_process_without_its_turn_ends():
    process = TrainingProcess(["-c", WORKER])
    process.end()
    assert process._process.returncode is not None


@pytest.mark.parametrize(
    ("losses_of_run", "skipped", "expected"),
    [
        ([5.0, 5.0, 4.0, 4.0], 0, "yes"),
        ([5.0, 5.0, 4.9, 4.9], 0, "did not fall"),
        ([5.0, math.nan, 4.0], 0, "not finite"),
        ([5.0, 5.0, 4.0, 4.0], 1, "1 steps skipped"),
    ],
)
def test_verdict_of_a_training(losses_of_run: list[float], skipped: int, expected: str):
    result = {"losses": losses_of_run, "skipped_steps": skipped, "tokens_per_second": 1, "memory_gib": 1}
    assert expected in train_learn.verdict(result)
    assert expected in train_learn.summary({"run": result})


def test_a_failed_training_is_reported():
    assert train_learn.verdict({"failure": "no"}) == "failed"
    assert "failed" in train_learn.summary({"run": {"failure": "no"}})


def test_a_command_that_takes_too_long_is_stopped():
    output = train_learn._finish([sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], 2)
    assert "begun" in output
    assert "stopped after 2 s" in output


def test_run_gpu_names_an_unknown_option():
    ended = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "run_gpu.sh"), "--nosuch"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "--nosuch" in ended.stderr


def test_run_gpu_killed_midway_leaves_what_it_measured(tmp_path: Path):
    """The second benchmark kills the script; what it and the first had written by then is in --out."""
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(
        "#!/usr/bin/env bash\n"
        'case "$*" in\n'
        '    *benchmarks/*) echo measured > "${!#}/$(basename "$1" .py).json" ;;\n'
        "esac\n"
        'case "$*" in *step.py*) kill -9 "$(ps -o ppid= -p "$PPID" | tr -d " ")" ;; esac\n'
    )
    python.chmod(0o755)
    values = environment()
    values |= {"PATH": f"{python.parent}:{values['PATH']}", "TMPDIR": str(tmp_path)}
    script = ["bash", str(ROOT / "benchmarks" / "run_gpu.sh"), "--out", str(tmp_path / "out"), "--wheels", "none"]
    ended = subprocess.run(script, env=values, capture_output=True, timeout=60, check=False)
    assert ended.returncode == -9
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {"operations.json", "step.json"}


@pytest.mark.slow
def test_run_gpu_rehearsal(tmp_path: Path):
    values = environment()
    values["PATH"] = f"{Path(sys.executable).parent}:{values['PATH']}"
    script = ["bash", str(ROOT / "benchmarks" / "run_gpu.sh"), "--rehearse", "--out", str(tmp_path), "--wheels", "none"]
    subprocess.run(script, env=values, check=True, timeout=1500)
    assert len(list(tmp_path.iterdir())) <= 12  # two a benchmark, and two of the whole
    for part in ("kernels", "train_step", "train_learn", "decode", "tune"):
        assert f"| {part} |" in (tmp_path / "gpu.md").read_text()
    assert json.loads((tmp_path / "train_learn-cpu.json").read_text())["runs"]["standard"]["losses"]
    kinds = {case["kind"] for case in json.loads((tmp_path / "decode-tiny-bf16-cpu.json").read_text())["cases"]}
    assert kinds == {"step", "generate", "overhead"}
    summary = json.loads((tmp_path / "train_step-cpu.json").read_text())["summary"]["tiny"]
    assert summary["standard"]["first_loss"] == pytest.approx(summary[REFERENCE.name]["first_loss"], abs=0.02)
