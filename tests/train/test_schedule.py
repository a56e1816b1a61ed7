"""The learning rate of every step, and what a resume that changes it says."""

from itertools import pairwise
from pathlib import Path

import pytest

from deconattn.config.command_line import parse_training_flags
from deconattn.errors import UserError
from deconattn.launch.preflight import checked_flags
from deconattn.train.schedule import Schedule, schedule_change
from tests.train.conftest import losses, rows
from tests.train.jobs import run_job


def rates(*words: str) -> list[float]:
    """Every step's rate, and that of the step after the last."""
    flags = parse_training_flags(["--lr", "1", *words])
    schedule = Schedule.of(flags)
    return [schedule.rate(step) for step in range(flags.total_steps + 1)]


def test_half_a_cosine_is_the_default() -> None:
    found = rates("--steps", "110", "--warmup-steps", "10")
    assert found[:10] == [(step + 1) / 10 for step in range(10)]
    assert found[10] == 1.0
    assert found[60] == pytest.approx(0.5)
    assert found[110] == pytest.approx(0.0, abs=1e-12)
    assert all(later <= earlier for earlier, later in pairwise(found[10:]))


def test_a_cosine_ends_at_the_floor() -> None:
    found, to_zero = (rates("--steps", "110", "--warmup-steps", "10", "--lr-min-ratio", low) for low in ("0.1", "0"))
    assert found[:10] == to_zero[:10]
    assert found[10:] == pytest.approx([0.1 + 0.9 * rate for rate in to_zero[10:]], rel=1e-12)
    assert found[110] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--lr-schedule linear --warmup-steps 2", [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]),
        ("--lr-schedule linear --warmup-steps 0", [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]),
        ("--lr-schedule constant --warmup-steps 4", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("--lr-schedule wsd --lr-decay-fraction 0.4", [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]),
        ("--lr-schedule wsd", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]),
        (
            "--lr-schedule wsd --lr-decay-fraction 0.9 --warmup-steps 5",
            [0.2, 0.4, 0.6, 0.8, 1, 1, 0.8, 0.6, 0.4, 0.2, 0],
        ),
        (
            "--lr-schedule linear --warmup-steps 0 --lr-min-ratio 0.5",
            [1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5],
        ),
        ("--lr-schedule wsd --lr-decay-fraction 0.4 --lr-min-ratio 0.2", [1, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        (
            "--lr-schedule constant --warmup-steps 0 --phase 4 lr=0.5 --phase 7 lr=2",
            [1, 1, 1, 1, 0.5, 0.5, 0.5, 2, 2, 2, 2],
        ),
        (
            "--lr-schedule linear --warmup-steps 0 --phase 4 lr=0.5",
            [1, 0.9, 0.8, 0.7, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0],
        ),
        ("--lr-schedule wsd --lr-decay-fraction 1 --warmup-steps 10", [*(n / 10 for n in range(1, 11)), 0]),
    ],
)
def test_the_others(words: str, expected: list[float]) -> None:
    assert rates("--steps", "10", *words.split()) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lr-schedule step", "invalid choice"),
        ("--lr-decay-fraction 0.2", "--lr-decay-fraction is of --lr-schedule wsd, not of cosine"),
        ("--lr-schedule wsd --lr-decay-fraction 0", "--lr-decay-fraction is 0.0: it must be above zero and at most 1"),
        ("--lr-schedule wsd --lr-decay-fraction 1.5", "--lr-decay-fraction is 1.5"),
        ("--lr-schedule wsd --lr-decay-fraction nan", "--lr-decay-fraction is nan"),
        ("--lr-min-ratio 1.5", "--lr-min-ratio is 1.5: it must be from 0 to 1"),
        ("--lr-min-ratio nan", "--lr-min-ratio is nan"),
        ("--lr-min-ratio 0.1 --lr-schedule constant", "--lr-schedule constant does not fall"),
        ("--warmup-steps -1", "--warmup-steps is -1: it must not be below zero"),
        ("--tokens 0", "--tokens is 0: it must be above zero"),
        ("--steps 5 --tokens 1000", "--steps and --tokens both say how long the run is: leave one out"),
    ],
)
def test_what_makes_no_sense_is_refused(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_training_flags(words.split())


def change(before: str, now: str, step: int) -> str | None:
    old, new = (parse_training_flags(["--lr", "1e-3", *words.split()]) for words in (before, now))
    return schedule_change(old, new, step)


def test_a_change_is_told_with_both_rates() -> None:
    assert change("--steps 100", "--steps 100", 50) is None
    assert change("--steps 100", "--steps 100 --weight-decay 0", 50) is None
    assert change("--steps 100 --warmup-steps 10", "--steps 100 --warmup-steps 10 --lr 2e-3", 55) == (
        "--resume changes the schedule (--lr 0.001 -> 0.002): the learning rate of step 56 is 0.001 instead of 0.0005; "
        "--lr-schedule constant with an --lr of your choice has no such jump"
    )
    assert change("--steps 100 --warmup-steps 10", "--steps 55 --warmup-steps 10", 45) == (
        "--resume changes the schedule (--steps 100 -> 55): the learning rate of step 46 is 0.00012 instead of 0.00067"
    )
    assert change("--steps 100 --warmup-steps 0", "--steps 200 --warmup-steps 0", 100) == (
        "--resume changes the schedule (--steps 100 -> 200): the learning rate of step 101 goes from 2.5e-07, where "
        "the run had ended, to 0.0005; --lr-schedule constant with an --lr of your choice has no such jump"
    )
    warmed_again = change("--steps 100", "--steps 2000", 100)
    assert warmed_again is not None
    assert "(--steps 100 -> 2000, --warmup-steps 10 -> 200)" in warmed_again
    assert "(--lr-min-ratio 0.0 -> 0.1)" in str(change("--steps 100", "--steps 100 --lr-min-ratio 0.1", 50))
    assert "(lr of --phase none -> 0.5 from step 61)" in str(change("--steps 100", "--steps 100 --phase 60 lr=.5", 50))
    wsd = "--steps 100 --lr-schedule wsd --warmup-steps 0"
    assert "steps of decay 10 -> 20" in str(change(wsd, f"{wsd} --lr-decay-fraction 0.2", 85))
    assert "(--lr-schedule cosine -> constant)" in str(
        change("--steps 100 --warmup-steps 0", "--steps 100 --warmup-steps 0 --lr-schedule constant", 20)
    )


def test_a_finished_run_that_goes_on_says_how_the_rate_jumps(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_job([*small, "--lr", "1e-3", "--save", str(tmp_path)])
    ended = rows(tmp_path)[-2]["learning_rate"]
    run_job(["--save", str(tmp_path), "--resume"])
    assert "changes the schedule" not in capfd.readouterr().err
    run_job(["--save", str(tmp_path), "--resume", "--steps", "12"])
    line = f"the learning rate of step 7 goes from {ended:.2g}, where the run had ended, to 0.00057; --lr-schedule"
    assert line in capfd.readouterr().err
    assert sorted(losses(tmp_path)) == list(range(1, 13))
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(UserError, match="--steps ends the run at step 10, but it has reached step 12: give more"):
        run_job(["--save", str(tmp_path), "--resume", "--steps", "10"])
    with pytest.raises(UserError, match="--tokens ends the run at step 4, but it has reached step 12"):
        run_job(["--save", str(tmp_path), "--resume", "--tokens", str(4 * 4 * 32)])
    with pytest.raises(UserError, match="--steps ends the run at step 11, but it has reached step 12"):
        checked_flags(["--save", str(tmp_path), "--resume", "--steps", "11"])
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file())


def test_steps_after_tokens_count_and_the_reverse(small: list[str], tmp_path: Path) -> None:
    run = ["--save", str(tmp_path), "--resume"]
    run_job(
        ["stop=1", *small[: small.index("--steps")], *small[small.index("--steps") + 2 :], "--tokens", "1024", *run[:2]]
    )
    file = tmp_path / "more.yaml"

    def length(*words: str) -> tuple[int, int | None]:
        flags = checked_flags([*run, *words])
        return flags.total_steps, flags.optimization.tokens

    assert length() == (8, 1024)
    assert length("--steps", "9") == (9, None)
    assert length("--tokens", "2048") == (16, 2048)
    file.write_text("steps: 7")
    assert length("--config", str(file)) == (7, None)
    assert length("--config", str(file), "--tokens", "512") == (4, 512)
    file.write_text("tokens: 1280")
    assert length("--config", str(file)) == (10, 1280)
    assert length("--config", str(file), "--steps", "5") == (5, None)
    file.write_text("tokens: 1280\nsteps: 5")
    with pytest.raises(UserError, match="steps and tokens both say how long"):
        length("--config", str(file))
    like = checked_flags(["--config", str(tmp_path / "config.json"), "--save", str(tmp_path / "other")])
    assert like.total_steps == 8, "a run's own file holds both, and --tokens was what was given"
