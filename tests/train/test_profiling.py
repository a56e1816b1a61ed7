"""Profiles of chosen steps and ranks."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deconattn.config.command_line import parse_training_flags
from deconattn.errors import UserError
from deconattn.launch.preflight import check_flags
from tests.ranks import Ranks
from tests.train.conftest import losses, rows
from tests.train.jobs import run_job, train_and_listen


def steps_of(trace: Path) -> list[str]:
    """The steps that a trace holds."""
    events: list[dict[str, Any]] = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any(event.get("name", "").startswith("aten::") for event in events)
    return sorted({event["name"] for event in events if event.get("name", "").startswith("step ")})


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "profile").iterdir())


def test_a_profile_is_written_of_the_chosen_steps_and_changes_no_number(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    run_job([*small, "--save", str(plain)])
    capfd.readouterr()
    run_job([*small, "--save", str(run), "--profile", "3:4"])
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("profile: ")]
    assert told == [f"profile: steps 3 to 4 of rank 0 to {run}/profile, without (there is no GPU) a history of memory"]
    assert files(run) == ["rank-0-steps-3-4.json.gz"]
    assert steps_of(run / "profile" / "rank-0-steps-3-4.json.gz") == ["step 3", "step 4"]
    found = [row for row in rows(run) if "loss" in row]
    assert [row["step"] for row in found if row.get("profiled")] == [3, 4]
    assert [row["step"] for row in found if "tokens_per_second" in row] == [2, 5, 6]
    assert losses(run) == losses(plain)
    assert json.loads((run / "config.json").read_text())["flags"]["run"]["profile"] is None, "an act, not a property"


def test_a_stop_writes_what_there_is_and_a_resumed_run_profiles_what_is_left(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = ["--save", str(tmp_path), "--profile", "2:5"]
    run_job(["stop=3", *small, *run])
    assert files(tmp_path) == ["rank-0-steps-2-3.json.gz"]
    run_job(["stop=5", *run, "--resume"])
    assert files(tmp_path) == ["rank-0-steps-2-3.json.gz", "rank-0-steps-4-5.json.gz"]
    capfd.readouterr()
    run_job([*run, "--resume"])
    assert "profile: steps 2 to 5 are behind step 5, where this training begins: none" in capfd.readouterr().err
    assert len(files(tmp_path)) == 2


@pytest.mark.slow
def test_chosen_ranks_of_a_pipeline(small: list[str], tmp_path: Path, ranks: Callable[[int], Ranks]) -> None:
    flags = [*small, "--pp", "2", "--save", str(tmp_path), "--profile", "2:2", "--profile-ranks", "0", "1"]
    said = ranks(2)(train_and_listen, arguments=flags)
    assert [line for line in said if line.startswith("profile: steps 2 to 2 of rank 0, 1 to")]
    assert files(tmp_path) == ["rank-0-steps-2-2.json.gz", "rank-1-steps-2-2.json.gz"]
    assert steps_of(tmp_path / "profile" / "rank-1-steps-2-2.json.gz") == ["step 2"]


def test_a_folder_that_cannot_be_written_costs_the_profile_alone(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("in the way")
    run_job([*small, "--steps", "3", "--save", str(tmp_path), "--profile", "2:3"])
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: rank 0: no profile in")]
    assert len(told) == 1
    assert list(losses(tmp_path)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--profile 3", "--profile 3: give the first and the last step, counted from 1, such as --profile 10:12"),
        ("--profile 0:3", "--profile 0:3: give the first"),
        ("--profile 4:3", "--profile 4:3: give the first"),
        ("--profile 2:x", "--profile 2:x: give the first"),
        ("--profile 5:7", "--profile 5:7: the run has 6 steps: end at 6 or before"),
        ("--profile 1:2 --profile-ranks 2", "--profile-ranks 2: no such rank: there are 0 to 1"),
        ("--profile 1:2 --profile-ranks -1", "--profile-ranks -1: no such rank"),
        ("--profile-ranks 1", "--profile-ranks is of --profile"),
    ],
)
def test_what_cannot_be_profiled_is_refused_before_a_process_starts(small: list[str], words: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_flags(parse_training_flags([*small, *words.split()]), 2)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
