"""A rank that dies or fails before all have met: the others end within seconds, and one line says which it was."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deconattn.launch import ranks
from tests.launch.test_launch import shell_environment

SCRIPT = Path(__file__).with_name("on_the_way.py")
ELSEWHERE = ("sh", "-c", '"$@"; exit $?', "sh")
"""Puts a parent of its own over a rank, which then sees no other beside it."""
SECONDS = 60
"""From the start, imports included, on a machine that has other work; the timeout would be ten minutes."""


def ends(disturbances: list[str], flags: list[list[str]] | None = None) -> tuple[list[int], list[str]]:
    """Exit codes of ranks without a launcher, and all their lines that tell of an error."""
    size = len(disturbances)
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks.free_port())}
    processes = [
        subprocess.Popen(
            [
                *(ELSEWHERE if disturbance == "apart" else []),
                *(sys.executable, "-u", str(SCRIPT), disturbance),
                *(flags[rank] if flags else []),
            ],
            env=shell_environment() | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, disturbance in enumerate(disturbances)
    ]
    begun = time.monotonic()
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert time.monotonic() - begun < SECONDS
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("error: ")]
    return [process.returncode for process in processes], lines


@pytest.mark.parametrize("dead", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_rank_that_dies_is_named(dead: int) -> None:
    """Even while the other's main thread catches what goes to standard error."""
    codes, [line] = ends(["die" if rank == dead else "hush" for rank in range(2)])
    assert codes == [-signal.SIGKILL if rank == dead else 1 for rank in range(2)]
    said = rf"error: rank {dead} \(pid \d+ on \S+\) died before all ranks had met; rank {1 - dead} ends"
    assert re.fullmatch(said, line)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "dead"), [("die", 1), ("die_early", 0), ("die", 0)])
def test_ranks_on_other_machines_are_told(how: str, dead: int) -> None:
    """Of rank 0 too, before it keeps a store: the rank beside it keeps one for a moment."""
    codes, lines = ends([how if rank == dead else "" for rank in range(2)] + ["apart"])
    assert codes == [-signal.SIGKILL if rank == dead else 1 for rank in range(3)]
    said = r"error: rank {} (\(pid \d+ on \S+\) died|does not answer) before all ranks had met; rank {} ends"
    assert all(re.fullmatch(said.format(dead, rank), line) for rank, line in zip((1 - dead, 2), lines, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("failing", [1, 0])
def test_a_rank_that_fails_is_the_only_one_that_speaks(failing: int) -> None:
    codes, [line] = ends(["fail" if rank == failing else "" for rank in range(3)])
    assert codes == [1, 1, 1]
    assert re.fullmatch(rf"error: rank {failing} \(pid \d+ on \S+\): ImportError: no such library", line)


@pytest.mark.slow
def test_what_all_ranks_or_one_have_wrong_is_one_line() -> None:
    codes, [line] = ends(["", "", ""], [["--lr", "0"]] * 3)
    assert codes == [2, 2, 2] and line.startswith("error: --lr is 0")
    codes, [line] = ends(["", ""], [[], ["--variant", "fixdseq"]])
    assert codes == [2, 2] and "did you mean 'fixedseq'" in line
