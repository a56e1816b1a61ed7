"""A loss or gradient that is not finite: the step is skipped, counted, reported; too many in a row end the run."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deconattn.checkpoint.format import open_checkpoint, steps_in
from deconattn.errors import UserError
from deconattn.mixers import Decoding, MixerContext, Standard, registry
from deconattn.train.metrics import METRICS
from tests.train.conftest import rows
from tests.train.jobs import run_job


@pytest.mark.parametrize(
    "engine",
    [
        "--zero 0",
        "--zero 1",
        "--zero 3",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("--zero 2", "--precision bf16")),
    ],
)
def test_a_bad_step_changes_no_weight_and_is_counted(small: list[str], tmp_path: Path, engine: str) -> None:
    flags = [*small, *engine.split(), "--save-every", "1", "--keep", "9"]
    run_job(["poison=2", "until=3", *flags, "--save", str(tmp_path / "poisoned")])
    run_job([*flags, "--save", str(tmp_path / "clean")])
    poisoned = tmp_path / "poisoned"
    assert [row["skipped_steps"] for row in rows(poisoned) if "loss" in row] == [0, 0, 1, 1, 1, 1]
    progress = open_checkpoint(poisoned).progress
    assert (progress.step, progress.optimizer_steps, progress.skipped_steps) == (6, 5, 1)
    assert {folder.name for folder in steps_in(poisoned)} == {f"step-{n}" for n in (1, 2, 4, 5, 6)}
    # Step 4's loss is taken on the weights of step 2, untouched by step 3 (a NaN that got in would stay).
    before, after = (open_checkpoint(poisoned / "checkpoints" / name).weights() for name in ("step-2", "step-6"))
    assert all(weight.isfinite().all() for weight in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    same = open_checkpoint(tmp_path / "clean/checkpoints/step-2").weights()
    assert all(torch.equal(before[name], same[name]) for name in before)


def test_too_many_in_a_row_stop_the_run(small: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 steps in a row up to step 5"):
        run_job(["poison=2", *small, "--save", str(tmp_path), "--save-every", "2", "--max-nonfinite", "3"])
    assert [folder.name for folder in steps_in(tmp_path)] == ["step-2"]


def test_an_infinite_loss_with_finite_gradients_is_caught(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deconattn.model.causal_lm import CausalLM, LossSum

    forward = CausalLM.forward

    def with_infinite_loss(self: CausalLM, *arguments: object) -> LossSum:
        loss = forward(self, *arguments)  # type: ignore[arg-type]
        return LossSum(loss.total + float("inf"), loss.labels) if self.training else loss

    monkeypatch.setattr(CausalLM, "forward", with_infinite_loss)
    run_job([*small, "--save", str(tmp_path)])
    progress = open_checkpoint(tmp_path).progress
    assert (progress.optimizer_steps, progress.skipped_steps) == (0, 6)
    assert [row["loss"] for row in rows(tmp_path) if "loss" in row] == ["inf"] * 6


def test_a_model_that_looks_ahead_is_refused_before_its_first_step(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(Standard):
        decoding, map_blocks = Decoding(), Standard.map_blocks

        def forward(self, hidden: Tensor, static: Tensor | None, context: MixerContext) -> Tensor:
            return super().forward(hidden, static, context) + self.o_proj(hidden.roll(-1, dims=1))

    monkeypatch.setattr(registry, "_REGISTRY", registry._REGISTRY | {"ahead": Ahead})
    flags = [*small, "--variant", "ahead", "--pattern", "1:1"]
    for precision in ("fp32", "bf16"):
        run = tmp_path / precision
        with pytest.raises(UserError, match="changes with those that follow it .*: one of ahead, standard looks ahead"):
            run_job([*flags, "--precision", precision, "--save", str(run)])
        assert not (run / METRICS).exists() or not rows(run)
