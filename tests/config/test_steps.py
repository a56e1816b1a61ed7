"""What each step takes: batch warm-up, phases, and the steps that a number of tokens makes."""

import re
from pathlib import Path

import pytest

from deconattn.config.command_line import check_same_run, parse_training_flags, to_json
from deconattn.config.flags import TrainingFlags
from deconattn.config.steps import first_difference
from deconattn.errors import UserError

BASE = "--seq-len 32 --global-batch-size 8 --micro-batch-size 2 --steps 100"


def parsed(words: str) -> TrainingFlags:
    return parse_training_flags([*BASE.split(), *words.split()])


def batches(words: str, steps: int) -> list[int]:
    return [parsed(words).plan.at(step).batch for step in range(steps)]


def test_a_run_without_either_is_one_stretch() -> None:
    plan = parsed("").plan
    assert len(plan.stretches) == 1
    assert plan.before(7).samples == 56
    assert plan.tokens(0) == 0
    assert plan.tokens(7) == 7 * 8 * 32


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--batch-warmup-start 2 --batch-warmup-steps 6", [2, 2, 4, 4, 6, 6, 8, 8]),
        ("--batch-warmup-start 4 --batch-warmup-steps 3", [4, 4, 4, 8, 8]),
        ("--batch-warmup-start 2 --batch-warmup-steps 1", [2, 8, 8]),
        ("--batch-warmup-start 8 --batch-warmup-steps 3", [8, 8, 8, 8]),
    ],
)
def test_the_batch_grows_by_its_first_size(words: str, expected: list[int]) -> None:
    assert batches(words, len(expected)) == expected
    plan = parsed(words).plan
    for step in range(len(expected)):
        assert plan.before(step).samples == sum(expected[:step])
        assert plan.tokens(step) == 32 * sum(expected[:step])


def test_tokens_become_the_least_steps_that_hold_them() -> None:
    words = "--batch-warmup-start 2 --batch-warmup-steps 6 --phase 9 seq_len=64 --phase 12 global_batch_size=2"
    plan = parsed(words).plan
    for tokens in range(1, plan.tokens(15), 97):
        steps = plan.steps_for(tokens)
        assert plan.tokens(steps - 1) < tokens <= plan.tokens(steps)
    for steps in range(1, 15):
        assert plan.steps_for(plan.tokens(steps)) == steps
    assert parse_training_flags([*BASE.split()[:-2], "--tokens", str(8 * 32 * 10 + 1)]).total_steps == 11


def test_phases_change_what_they_name_and_leave_the_rest() -> None:
    flags = parsed("--data a b:2 --phase 10 seq_len=64 micro-batch-size=1 --phase 4 lr=1e-5 --phase 20 data=c:3 data=a")
    plan = flags.plan
    told = [(s.first, s.phase, s.stream, s.data, s.seq_len, s.batch, s.micro, s.lr) for s in plan.stretches]
    lr = flags.optimization.lr
    assert told == [
        (0, 0, 0, ("a", "b:2"), 32, 8, 2, lr),
        (4, 1, 0, ("a", "b:2"), 32, 8, 2, 1e-5),
        (10, 2, 1, ("a", "b:2"), 64, 8, 1, 1e-5),
        (20, 3, 2, ("c:3", "a"), 64, 8, 1, 1e-5),
    ]
    assert plan.longest == 64
    assert plan.phases[1].shown == "seq_len=64 micro_batch_size=1"
    again = parsed("--phase 4 lr=1e-5 --phase 6 lr=1 --phase 4 lr=2e-5 --phase 6")
    assert [(phase.step, phase.lr) for phase in again.plan.phases] == [(4, 2e-5)]
    assert to_json(flags)["data"]["phase"][2] == ["20", f"data={Path.cwd()}/c:3", f"data={Path.cwd()}/a"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--phase", "STEP"),
        ("--phase 0 lr=1", "STEP is '0'"),
        ("--phase x lr=1", "STEP is 'x'"),
        ("--phase 5", "--phase 5 sets nothing"),
        ("--phase 5 rate=1", "'rate=1' is none of data=, seq_len="),
        ("--phase 5 lr=-1", "lr is '-1'"),
        ("--phase 5 lr=1 lr=2", "lr is there twice"),
        ("--phase 5 seq_len=0", "seq_len is '0'"),
        ("--phase 100 lr=1", "--phase 100 begins where the run has ended, at step 100"),
        ("--phase 5 lr=1 --batch-warmup-start 2 --batch-warmup-steps 6", "begins within --batch-warmup-steps 6"),
        ("--batch-warmup-start 2", "go together"),
        ("--batch-warmup-steps 2", "go together"),
        ("--batch-warmup-start 3 --batch-warmup-steps 2", "does not divide --global-batch-size 8"),
        ("--batch-warmup-start 0 --batch-warmup-steps 2", "does not divide --global-batch-size 8"),
        ("--phase 5 seq_len=33 --tp 2 --sequence-parallel", "--tp 2 does not divide --seq-len 33"),
        ("--phase 5 seq_len=33 --cp 2", "--cp 2 does not divide --seq-len 33"),
    ],
)
def test_what_makes_no_sense_is_refused(words: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parsed(words)


def test_every_batch_must_divide() -> None:
    assert parsed("--batch-warmup-start 4 --batch-warmup-steps 2").accumulation_steps(2) == 2
    with pytest.raises(
        UserError, match="--batch-warmup-start: 2 sequences a step are not a multiple of 2 .* x 2 ranks"
    ):
        parsed("--batch-warmup-start 2 --batch-warmup-steps 2").accumulation_steps(2)
    with pytest.raises(UserError, match="--phase 5: 6 sequences a step"):
        parsed("--phase 5 global_batch_size=6").accumulation_steps(2)


def test_phases_of_a_file_are_words_as_well(tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    wanted = parsed("--phase 5 lr=1e-5 --phase 7 seq_len=64").data.phase
    for text in ("phase: [5 lr=1e-5, 7 seq_len=64]", "phase: [[5, lr=1e-5], [7, seq_len=64]]"):
        file.write_text(text)
        assert parsed(f"--config {file}").data.phase == wanted
    file.write_text("phase: 5 lr=1e-5")
    assert parsed(f"--config {file} --phase 7 seq_len=64").data.phase == wanted


def test_steps_that_were_done_stay_as_they_were() -> None:
    old = parsed("--phase 10 global_batch_size=4 --phase 20 lr=1").plan
    assert first_difference(old, old, 50) is None
    assert first_difference(old, parsed("--phase 10 global_batch_size=4").plan, 50) is None
    assert first_difference(old, parsed("").plan, 10) is None
    assert first_difference(old, parsed("").plan, 11) == 10
    assert first_difference(parsed("").plan, parsed("--phase 7 seq_len=64").plan, 8) == 7
    assert first_difference(parsed("").plan, parsed("--batch-warmup-start 4 --batch-warmup-steps 2").plan, 8) == 0


def test_phases_of_any_length_may_come_later() -> None:
    for variant in ("standard", "staticemb", "rndemb", "fixedseq"):
        for length in (16, 64):
            before, now = (parsed(f"--variant {variant} {words}") for words in ("", f"--phase 7 seq_len={length}"))
            check_same_run(before, now, "the flags")
        with pytest.raises(UserError, match="--resume: the run has --seq-len 32 but the flags say 64"):
            check_same_run(before, parsed(f"--variant {variant} --seq-len 64"), "the flags")


def test_memory_is_planned_for_the_heaviest_micro_batches() -> None:
    plan = parsed("--phase 5 seq_len=128 micro_batch_size=1 global_batch_size=4 --phase 9 seq_len=16").plan
    assert (plan.heaviest.first, plan.heaviest.micro_batches(2)) == (5, 2)
