"""Benchmarks at a training's checkpoints."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from deconattn.errors import UserError
from deconattn.evaluation import harness_model
from deconattn.evaluation.in_loop import InLoopEvaluation
from deconattn.launch.preflight import checked_flags
from deconattn.parallel.process_group import start_distributed
from tests.conftest import SMALL
from tests.evaluation.conftest import Evaluate
from tests.ranks import Ranks
from tests.train.conftest import rows
from tests.train.jobs import run_job, train

TASKS = "copa,lambada_openai"
LONG_ENOUGH = ["--seq-len", "128"]


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    """A world of one, unless another test's is still there."""
    ours = not torch.distributed.is_initialized()
    if ours:
        start_distributed()
    yield
    if ours:
        torch.distributed.destroy_process_group()


@pytest.fixture
def flags(corpus: Path, documents: Path, tmp_path: Path) -> list[str]:
    """Six steps, checkpoints after three and six."""
    more = ["--save-every", "3", "--eval-tasks", TASKS, "--eval-datasets", str(documents), "--eval-limit", "3"]
    return ["--data", str(corpus), *SMALL, *LONG_ENOUGH, *more, "--save", str(tmp_path / "run")]


def scored(run: Path) -> dict[int, dict[str, float]]:
    """By step, the figures of metrics.jsonl."""
    found = {}
    for row in rows(run):
        if figures := {name.removeprefix("eval/"): row[name] for name in row if name.startswith("eval/")}:
            found[row["step"]] = figures
    return found


def test_every_checkpoint_is_scored_as_the_tool_scores_it(
    flags: list[str], documents: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    run_job(flags)
    found = scored(tmp_path / "run")
    assert list(found) == [3, 6]
    out = tmp_path / "scores"
    step = tmp_path / "run" / "checkpoints" / "step-3"
    code, _, error = evaluate(
        str(step), "--tasks", TASKS, "--datasets", str(documents), "--limit", "3", "--out", str(out)
    )
    assert code == 0, error
    [model] = json.loads((out / "results.json").read_text())["models"]
    assert model["scores"] == pytest.approx(found[3])
    assert {"COPA", "COPA stderr", "LAMBADA ppl", "LAMBADA acc"} <= set(found[3])


@pytest.mark.slow
def test_the_other_ranks_wait(flags: list[str], ranks: Callable[[int], Ranks], tmp_path: Path) -> None:
    assert ranks(2)(train, arguments=[*flags, "--zero", "0"]) is None
    assert list(scored(tmp_path / "run")) == [3, 6]


def test_a_failure_does_not_end_the_training(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> dict[str, float]:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(InLoopEvaluation, "score", fail)
    assert run_job(flags).progress.step == 6
    assert "step 3: not scored, RuntimeError: out of memory\n" in capsys.readouterr().err
    assert not scored(tmp_path / "run")


def test_a_wish_to_stop_is_heard_between_batches(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness_model, "TOKENS_A_BATCH", 1)
    run = tmp_path / "run"
    run_job(["stop=2", *flags])  # before step 3: nothing is scored, and a checkpoint is written
    assert not scored(run)
    evaluation = InLoopEvaluation(checked_flags([*flags, "--save", str(tmp_path / "other")]).evaluation)
    [checkpoint] = (run / "checkpoints").iterdir()
    looks: list[bool] = []

    def stop(after: int) -> bool:
        looks.append(len(looks) == after)
        return looks[-1]

    assert set(evaluation.score(checkpoint, lambda: stop(-1)) or ()) > {"COPA", "LAMBADA ppl"}
    assert len(looks) == 2 * 3 + 3, "each of COPA's two answers, and LAMBADA's one"
    for last in (0, len(looks) - 1):
        looks.clear()
        assert evaluation.score(checkpoint, lambda last=last: stop(last)) is None  # type: ignore[misc]
        assert len(looks) == last + 1


@pytest.mark.parametrize("step", [3, 6])
def test_scores_that_a_stop_skipped_are_made_up_once(step: int, flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_job([f"stop_scores={step}", *flags])
    assert step not in scored(run)
    assert (run / "checkpoints" / f"step-{step}").is_dir()
    for _ in range(2):
        run_job(["--save", str(run), "--resume"])
        found = [row for row in rows(run) if any(name.startswith("eval/") for name in row)]
        assert [row["step"] for row in found] == [3, 6]
    run_job([*flags, "--save", str(tmp_path / "whole")])
    assert scored(run) == scored(tmp_path / "whole")


@pytest.mark.slow
def test_one_ranks_wish_ends_the_scores_of_rank_0(
    flags: list[str], ranks: Callable[[int], Ranks], tmp_path: Path
) -> None:
    assert ranks(2)(train, arguments=["stop_scores=3", *flags, "--zero", "0"]) is None
    assert not scored(tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--eval-tasks", "copa,arc"], "there is no task 'arc' here"),
        (["--eval-datasets", "nowhere"], "nowhere is not there"),
        (["--eval-limit", "0"], "--eval-limit is 0"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(flags: list[str], more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked_flags([*flags, *more])
