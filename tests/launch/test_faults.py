"""A rank that dies, hangs or fails ends the job everywhere, is named, and the run goes on from its checkpoint."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from deconattn.checkpoint.format import steps_in
from deconattn.errors import UserError
from deconattn.launch import ranks
from tests.launch.test_launch import shell_environment
from tests.train.conftest import losses, validation_losses

DISTURBED = Path(__file__).with_name("disturbed.py")


def assert_same_as(run: Path, undisturbed: Path) -> None:
    for series in (losses, validation_losses):
        assert series(run) == pytest.approx(series(undisturbed), rel=1e-5)


def two_ranks(flags: list[str], *disturbances: str, only: list[list[str]] | None = None) -> list[tuple[int, str]]:
    """Exit code and output of two ranks, or more, without a launcher; what is stopped is killed once another has ended.

    Args:
        disturbances: of each rank, see disturbed.py.
        only: flags that one rank alone gets.
    """
    port = str(ranks.free_port())
    size = len(disturbances)
    world = {"WORLD_SIZE": str(size), "LOCAL_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-u", str(DISTURBED), disturbances[rank], *flags, *(only[rank] if only else [])],
            env=shell_environment() | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + 180
    while len(codes) < size and time.monotonic() < deadline:
        codes |= {rank: code for rank, process in enumerate(processes) if (code := process.poll()) is not None}
        if codes:  # the other ends by itself within seconds, or is stopped
            for rank, process in enumerate(processes):
                if rank not in codes and psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
                    process.kill()
        time.sleep(0.05)
    for process in processes:
        process.kill()
    outputs = [process.communicate()[0] for process in processes]
    assert len(codes) == size, outputs
    return [(codes[rank], outputs[rank]) for rank in range(size)]


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_a_rank_that_is_killed_while_it_saves_leaves_no_checkpoint(
    flags: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    (code, output), (killed, silent) = two_ranks([*flags, "--save", str(tmp_path)], "", "die_in_a_checkpoint")
    assert (code, killed, errors(silent)) == (1, -signal.SIGKILL, [])
    [line] = errors(output)
    assert re.match(r"error: rank 1 \(pid \d+ on \S+\) died; rank 0 ends( \(.*\))?, after step 4\d; to go on: ", line)
    assert line.endswith(f"./launch.sh --save {tmp_path} --resume")
    assert "Traceback" not in output
    assert [folder.name for folder in steps_in(tmp_path)] == ["step-20"]


@pytest.mark.slow
def test_a_collective_that_times_out_leaves_every_ranks_record(flags: list[str], tmp_path: Path) -> None:
    (_, silent), (code, output) = two_ranks(
        [*flags, "--save", str(tmp_path), "--distributed-timeout-minutes", "0.1"], "late", ""
    )
    assert code == 1
    [line] = [*errors(output), *errors(silent)]
    assert re.match(
        r"error: rank 0 \(pid \d+ on \S+\) did not come to a collective in time; rank 0 ends \(Timed out", line
    )
    folder = tmp_path / "flight-recorder" / "from-step-0"
    assert f"after step 25; the last collectives of each rank: {folder}; to go on: ./launch.sh" in line
    late, waiting = (json.loads((folder / f"rank-{rank}.json").read_text())["entries"] for rank in range(2))
    assert re.search(r"6000ms for (recv|send) operation to complete, in gloo:all_reduce of float\[", line)
    assert len(waiting) == len(late) + 1, "one more collective than the late rank has entered"
    names = [[entry["profiling_name"] for entry in entries] for entries in (late, waiting)]
    assert names[0] == names[1][:-1]


@pytest.mark.slow
def test_a_rank_that_fails_is_the_culprit_and_the_other_is_not(flags: list[str], tmp_path: Path) -> None:
    (code, output), (other, silent) = two_ranks([*flags, "--save", str(tmp_path)], "fail", "")
    assert (code, other) == (1, 1)
    assert "Traceback" in output and 'raise ValueError("a bug")' in output
    assert errors(output)[0].startswith("error: rank 0: ValueError: a bug, after step 25; to go on: ")
    assert errors(silent) == [] and "Traceback" not in silent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("disturbances", "said"),
    [
        (("apart,die", "apart"), r"rank 0 \(pid \d+ on \S+\) does not answer; rank 1 ends( \(.*\))?, after step 25"),
        (("apart", "apart,die"), r"rank 1 \(pid \d+ on \S+\) does not answer; rank 0 ends( \(.*\))?, after step 25"),
        (("apart", "apart,fail"), r"rank 1 \(pid \d+ on \S+\) failed: ValueError: a bug"),
        (("apart,fail", "apart"), r"rank 0 \(pid \d+ on \S+\) failed: ValueError: a bug"),
    ],
)
def test_what_happens_on_another_machine_is_told_on_this_one(
    disturbances: tuple[str, str], said: str, flags: list[str], tmp_path: Path
) -> None:
    ends = two_ranks([*flags, "--save", str(tmp_path)], *disturbances)
    code, output = ends[disturbances.index("apart")]
    assert code == 1
    [line] = errors(output)
    assert re.match(f"error: {said}", line)


@pytest.mark.slow
@pytest.mark.parametrize(("dead", "speakers"), [(2, (0, 3)), (3, (0, 2)), (0, (1, 2))])
def test_on_two_machines_of_two_ranks_every_death_is_learnt_by_all(
    dead: int, speakers: tuple[int, int], flags: list[str], tmp_path: Path
) -> None:
    """Rank 2 and rank 0 lead their machines: their neighbours ask them for news."""
    disturbances = ["two_machines" + (",die" if rank == dead else "") for rank in range(4)]
    begun = time.monotonic()
    ends = two_ranks([*flags, "--save", str(tmp_path), "--micro-batch-size", "1"], *disturbances)
    assert time.monotonic() - begun < 150, "starting included"
    assert [code for code, _ in ends] == [-signal.SIGKILL if rank == dead else 1 for rank in range(4)]
    assert [len(errors(output)) for _, output in ends] == [int(rank in speakers) for rank in range(4)]
    for rank in speakers:
        [line] = errors(ends[rank][1])
        assert re.match(rf"error: rank {dead} \(pid \d+ on \S+\) (died|does not answer); rank {rank} ends", line)


def test_ranks_that_were_not_started_alike_are_refused(flags: list[str], tmp_path: Path) -> None:
    ends = two_ranks([*flags, "--save", str(tmp_path / "run")], "", "", only=[[], ["--lr", "0.5"]])
    assert [code for code, _ in ends] == [2, 2]
    [line] = [line for _, output in ends for line in errors(output)]
    assert re.match(r"error: rank 1 \(pid \d+ on \S+\) has --lr 0.5 but rank 0 has 0.002: start the same command", line)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_shared_is_refused(flags: list[str], tmp_path: Path) -> None:
    ends = two_ranks([*flags, "--save", str(tmp_path)], "", "blind")
    assert [code for code, _ in ends] == [2, 2]
    [line] = [line for _, output in ends for line in errors(output)]
    assert re.match(rf"error: --save {tmp_path}: \S+ \(rank 1\) does not see what \S+ \(rank 0\) writes there", line)
    assert not list(tmp_path.iterdir())


def test_later_groups_have_the_timeout_too() -> None:
    import torch

    group = dist.new_group([0])
    assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(minutes=10)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MASTER_PORT": None}, "RANK is set but MASTER_PORT not: set them all, or unset RANK, LOCAL_RANK, WORLD_SIZE"),
        ({"RANK": None}, "LOCAL_RANK is set but RANK not"),
        ({"RANK": "2"}, "RANK is 2 but WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two': it must be a number"),
    ],
)
def test_launcher_variables_that_make_no_sense(
    changes: dict[str, str | None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in (good | changes).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        ranks.check(os.environ)
    for name, value in good.items():
        monkeypatch.setenv(name, value)
    ranks.check(os.environ)


def test_a_local_rank_beyond_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UserError, match="LOCAL_RANK is 1 but .* shows 1 GPUs: lower its slots in the hostfile"):
        ranks.check_device(os.environ)
