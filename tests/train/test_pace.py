"""Who holds up the others: measured on each rank, judged on rank 0."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from deconattn.train.pace import NUMBERS, Stragglers, spread
from tests.ranks import Ranks
from tests.train.conftest import rows
from tests.train.jobs import SLEEP_SECONDS, run_job, train_and_listen


def told(*busy: float) -> list[list[float]]:
    return [[1.0, own, 2.0] for own in busy]


def named(stages: list[int], *times: tuple[float, ...], steps: int = 10) -> list[list[int]]:
    """Who is named in each of some rows."""
    judge = Stragglers(stages, 0)
    return [[rank for rank, *_ in judge.judge(told(*busy), (row + 1) * steps)] for row, busy in enumerate(times)]


def test_who_is_persistently_slower_is_named_once_until_it_recovers() -> None:
    slow, well = (1.0, 1.0, 1.5, 1.0), (1.0, 1.0, 1.1, 1.0)
    assert named([0] * 4, slow, slow, slow, slow) == [[], [], [2], []]
    assert named([0] * 4, slow, slow, well, slow, slow, slow) == [[], [], [], [], [], [2]]
    assert named([0] * 4, slow, slow, slow, well, slow, slow, slow) == [[], [], [2], [], [], [], [2]]


def test_what_costs_no_second_is_not_worth_a_line() -> None:
    assert named([0, 0], *[(0.001, 0.003)] * 20) == [[]] * 20
    assert named([0, 0], *[(0.1, 0.3)] * 3, steps=1) == [[]] * 3


def test_stages_are_not_held_against_each_other() -> None:
    assert named([0, 0, 1, 1], *[(1.0, 1.0, 2.0, 2.0)] * 5) == [[]] * 5
    assert named([0, 0, 1, 1], *[(1.0, 1.0, 2.0, 3.0)] * 3) == [[], [], [3]]
    assert named([0, 0, 1, 1], *[(1.9, 1.0, 2.0, 2.0)] * 3) == [[], [], [0]]


def test_the_only_rank_of_a_stage_is_held_against_itself() -> None:
    assert named([0, 1], *[(1.0, 2.0)] * 5) == [[]] * 5
    assert named([0, 1], (1.0, 2.0), *[(1.0, 3.0)] * 3) == [[], [], [], [1]]


def test_rows_without_a_measurement_are_passed_over() -> None:
    every = {f"{name}_{kind}" for name in NUMBERS for kind in ("min", "median", "max")}
    assert spread(told(1.0, 2.0)).keys() == every
    assert spread([[0.0, 0.0, 1.0]] * 2).keys() == {name for name in every if name.startswith("memory_gib")}
    assert spread(()) == {}
    assert named([0, 0], *[(1.0, 3.0), (0.0, 0.0)] * 3) == [[], [], [], [], [1], []]


TOPOLOGIES = [
    ("", 2, 1),
    ("--tp 2", 2, 0),
    ("--tp 2 --sequence-parallel --zero 1", 2, 1),
    ("--zero 3", 2, 0),
    ("--pp 2", 2, 1),
    ("--tp 2 --pp 2", 4, 3),
    ("--pp 2 --zero 1", 4, 2),
]


@pytest.mark.parametrize(
    ("topology", "size", "sleeper"),
    [case if case[0] == "" else pytest.param(*case, marks=pytest.mark.slow) for case in TOPOLOGIES],
)
def test_the_rank_that_sleeps_is_named(
    small: list[str], tmp_path: Path, ranks: Callable[[int], Ranks], topology: str, size: int, sleeper: int
) -> None:
    """Though all ranks' steps take equally long, as the others wait for it in each."""
    alone = topology == "--pp 2"  # held against its own least time: it must have been awake for a while
    special = [] if alone else [f"sleeper={sleeper}"]
    flags = [*special, *small, *topology.split(), "--save", str(tmp_path)]
    said = ranks(size)(train_and_listen, arguments=flags)
    warnings = [line for line in said if line.startswith("warning: rank")]
    found = [row for row in rows(tmp_path) if "busy_seconds_max" in row]
    assert [row["step"] for row in found] == [3, 4, 5, 6], "the first step is start-up, and a row tells of those before"
    for row in found:
        for name in NUMBERS:
            assert 0 < row[f"{name}_min"] <= row[f"{name}_median"] <= row[f"{name}_max"]
        assert row["busy_seconds_max"] <= row["step_seconds_max"]
    if alone:
        assert not warnings
        return
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: rank {sleeper} on {socket.gethostname()} holds up the others: it is busy ")
    for row in found:
        assert row["busy_seconds_max"] > SLEEP_SECONDS
        assert row["step_seconds_min"] > SLEEP_SECONDS, "all steps take equally long"


def test_one_rank_has_no_spread(small: list[str], tmp_path: Path) -> None:
    run_job([*small, "--steps", "2", "--save", str(tmp_path)])
    assert not [name for row in rows(tmp_path) for name in row if name.endswith("_median")]
