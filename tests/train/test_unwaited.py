"""DeepSpeed's optimisers without their waits: the same numbers, and the code that was replaced is what it was."""

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime import bf16_optimizer, utils
from deepspeed.runtime.zero import partition_parameters, stage3, stage_1_and_2

from deconattn.checkpoint.format import open_checkpoint
from deconattn.train import engine as engine_module
from tests.train.conftest import rows
from tests.train.jobs import run_job

ENGINES = ["--zero 1", "--zero 2", "--zero 3", "--precision bf16", "--precision bf16 --zero 2"]
QUICK = "--precision bf16"


def numbers(flags: list[str], run: Path) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Losses, norms and skipped steps, and the last weights."""
    run_job([*flags, "--save", str(run)])
    steps = [(row["loss"], row["grad_norm"], row["skipped_steps"]) for row in rows(run) if "loss" in row]
    return steps, open_checkpoint(run).weights()


@pytest.mark.parametrize(
    "engine", [engine if engine == QUICK else pytest.param(engine, marks=pytest.mark.slow) for engine in ENGINES]
)
def test_numbers_are_those_of_deepspeeds_own_norms(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    flags = ["poison=2", "until=3", *small, *engine.split(), "--clip-grad", "0.5"]
    ours, our_weights = numbers(flags, tmp_path / "ours")
    monkeypatch.setattr(engine_module, "without_waits", lambda wrapped: lambda: wrapped._global_grad_norm)
    theirs, their_weights = numbers(flags, tmp_path / "theirs")
    assert ours == theirs
    assert [skipped for *_, skipped in ours] == [0, 0, 1, 1, 1, 1]
    assert all(norm == "inf" or norm > 0.5 for _, norm, _ in ours), "nothing was clipped"
    assert all(torch.equal(weight, their_weights[name]) for name, weight in our_weights.items())


READ: list[tuple[Callable[..., Any], str]] = [
    (bf16_optimizer.BF16_Optimizer.step, "9b21d4a28f8714d9"),
    (bf16_optimizer.BF16_Optimizer.get_grads_for_norm, "81ed7f0b119f7ad8"),
    (bf16_optimizer.BF16_Optimizer._update_hp_grad, "026f6bb3edea2557"),
    (bf16_optimizer.BF16_Optimizer.accumulate_hp_grads_and_remove_lp, "4792e4da4c695a7e"),
    (utils.get_global_norm_of_tensors, "2345c9e02feadf4c"),
    (utils.combine_grad_norm_groups, "37a114f1037dc520"),
    (stage_1_and_2.DeepSpeedZeroOptimizer.step, "9520884fd916d178"),
    (stage_1_and_2.DeepSpeedZeroOptimizer.scaled_global_norm, "63c6a6fe100c4e49"),
    (stage_1_and_2.DeepSpeedZeroOptimizer.get_grad_norm_direct, "72af0993ad8cde2c"),
    (stage_1_and_2.DeepSpeedZeroOptimizer.unscale_and_clip_grads, "6bf2ce6f97eafcc2"),
    (stage3.DeepSpeedZeroOptimizer_Stage3.step, "c751b3209f83d3b9"),
    (stage3.DeepSpeedZeroOptimizer_Stage3._get_norm_groups, "6a068faa3149b1f4"),
    (stage3.DeepSpeedZeroOptimizer_Stage3.get_grad_norm_direct, "5ba2252d5f16b541"),
    (stage3.DeepSpeedZeroOptimizer_Stage3.unscale_and_clip_grads, "3f0d9e8e7861fd44"),
    (stage3.DeepSpeedZeroOptimizer_Stage3.independent_gradient_partition_epilogue, "f1575b87b3d6c083"),
    (partition_parameters.Init._partition_param_sec, "962ba1ded0ca5df6"),
    (partition_parameters.NoGatherHandle.__init__, "401cee9c0bdb6b96"),
    (partition_parameters.NoGatherCoalescedHandle.__init__, "81c2cdda2e7d898a"),
]
"""What deconattn/train/unwaited.py replaces or counts on, and a digest of its source."""


@pytest.mark.slow
def test_no_bf16_gradient_outlives_its_sum(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """6 bytes a parameter: weights in bf16 and sums in fp32."""
    counted, held = engine_module.Engine._counted, []

    def noted(engine: Any, *arguments: Any) -> torch.Tensor:
        held.append(sum(parameter.grad is not None for parameter in engine.model.parameters()))
        return counted(engine, *arguments)

    monkeypatch.setattr(engine_module.Engine, "_counted", noted)
    run_job(["until=1", *small, "--precision", "bf16", "--micro-batch-size", "1", "--save", str(tmp_path)])
    assert len(held) > 1 and not any(held)


def source(function: Callable[..., Any]) -> str:
    """Of a function, or of what DeepSpeed has wrapped to measure it."""
    inner = inspect.getclosurevars(function).nonlocals.get("func", function)
    return inspect.getsource(inner)


@pytest.mark.parametrize(("function", "digest"), READ, ids=[digest for _, digest in READ])
def test_what_was_replaced_is_what_was_read(function: Callable[..., Any], digest: str) -> None:
    """Where it is not: read it again, mend deconattn/train/unwaited.py, and write the new digest here."""
    assert hashlib.sha256(source(function).encode()).hexdigest()[:16] == digest, function
