"""A rank that dies ends the job; the launcher starts it again if asked to, and the losses are those of a quiet run."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deconattn.checkpoint.format import open_checkpoint
from deconattn.errors import UserError
from deconattn.launch import launcher, worker
from deconattn.launch.preflight import checked_flags
from tests.launch.test_faults import assert_same_as, errors
from tests.launch.test_launch import SCRIPT, losses_so_far, shell_environment, start_worker, wait_for
from tests.train.jobs import run_job


def start(arguments: list[str], where: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SCRIPT, *arguments],
        cwd=where,
        env=shell_environment() | {"DEEPSPEED_ARGS": "--num_accelerators 2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rank_process(job: subprocess.Popen[str], local_rank: int) -> psutil.Process:
    below = psutil.Process(job.pid).children(recursive=True)
    [found] = [process for process in below if f"--local_rank={local_rank}" in process.cmdline()]
    return found


def kill_a_rank(job: subprocess.Popen[str], run: Path, local_rank: int, step: int) -> None:
    """Kill -9 the rank with this number on its machine, once so many steps are done."""
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(losses_so_far(run)) >= step, job)
    rank_process(job, local_rank).kill()


@pytest.mark.slow
def test_kill_9_of_a_rank_ends_the_job(flags: list[str], undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start([*flags, "--save", str(run)], tmp_path)
    kill_a_rank(job, run, 0, 50)
    printed, _ = job.communicate(timeout=120)
    assert job.returncode == 128 + signal.SIGKILL, printed
    first, second = errors(printed)
    assert re.match(r"error: rank 0 \(pid \d+ on \S+\) died; rank 1 ends( \(.*\))?, after step \d+; to go on: ", first)
    assert second == "error: a rank was killed by signal 9 (Killed)"
    assert open_checkpoint(run).step >= 40
    run_job(["--save", str(run), "--resume"])
    assert_same_as(run, undisturbed)


@pytest.mark.slow
def test_max_restarts_completes_the_run(flags: list[str], undisturbed: Path, tmp_path: Path) -> None:
    job = start([*flags, "--max-restarts", "1"], tmp_path)
    run = tmp_path / "runs/tiny-standard-uniform"
    kill_a_rank(job, run, 1, 50)
    printed, _ = job.communicate(timeout=300)
    assert job.returncode == 0, printed
    assert "restart 1 of 1 from the newest good checkpoint: a rank was killed by signal 9 (Killed)" in printed
    assert_same_as(run, undisturbed)
    assert open_checkpoint(run).flags.run.max_restarts == 0, "a launcher's act, not a property of the run"


@pytest.mark.usefixtures("no_rank")
@pytest.mark.parametrize(
    ("codes", "begun", "attempts", "code", "said"),
    [
        ([0], True, [""], 0, ""),
        ([2], True, [""], 2, ""),
        ([137, 2], True, ["", "--resume"], 2, "restart 1 of 2 from the newest good checkpoint: a rank was killed by"),
        ([1, 0], False, ["", ""], 0, "restart 1 of 2 from the start: the ranks ended with exit code 1"),
        ([1, 1, 7], True, ["", "--resume", "--resume"], 7, "error: the ranks ended with exit code 7"),
    ],
)
def test_when_the_launcher_starts_again(
    codes: list[int],
    begun: bool,
    attempts: list[str],
    code: int,
    said: str,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not after success, nor after an error that is the user's to mend."""
    given: list[list[str]] = []

    class Job(launcher.LauncherProcess):
        def run(self, program: list[str], options: list[str]) -> int:
            script, *arguments = program
            assert script == SCRIPT
            given.append(arguments)
            if begun:
                (tmp_path / "config.json").touch()
            return codes[len(given) - 1]

        def stop_asked(self, within: float = 0.0) -> bool:
            return False

    monkeypatch.setattr(launcher, "LauncherProcess", Job)
    monkeypatch.setattr("sys.argv", ["launcher", SCRIPT, *small, "--max-restarts", "2", "--save", str(tmp_path)])
    assert launcher.main() == code
    flags = [*small, "--max-restarts", "2", "--save", str(tmp_path)]
    workers = ["--max-restarts", "0", "--save", str(tmp_path)]
    assert given == [[*flags, *workers, *more.split()] for more in attempts]
    assert said in capsys.readouterr().err


def test_deepspeeds_launcher_alone_cannot_restart(flags: list[str], tmp_path: Path) -> None:
    worker = start_worker([*flags, "--save", str(tmp_path / "run"), "--max-restarts", "1"])
    printed, _ = worker.communicate(timeout=120)
    assert worker.returncode == 2
    assert "--max-restarts needs our own launcher, which did not start this rank" in errors(printed)[0]
    with pytest.raises(UserError, match="--max-restarts is -1: it must not be below zero"):
        checked_flags(["--max-restarts", "-1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "victim", ["deepspeed.launcher.launch", "deepspeed.launcher.runner", "deconattn.launch.launcher"]
)
def test_a_launcher_that_is_killed_is_no_success(
    victim: str, flags: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = start([*flags, "--save", str(run)], tmp_path)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(losses_so_far(run)) >= 10, job)
    ours = psutil.Process(job.pid)
    [process] = [one for one in [ours, *ours.children(recursive=True)] if victim in one.cmdline()]
    process.kill()
    printed, _ = job.communicate(timeout=120)  # the ranks hold the pipe until they have left
    assert "stopped since the launcher is gone at step" in printed
    assert "stopped on request" not in printed
    step = open_checkpoint(run).step
    assert 10 <= step < 100
    if victim == "deconattn.launch.launcher":
        assert job.returncode == -signal.SIGKILL
    else:
        assert job.returncode == (1 if victim == "deepspeed.launcher.launch" else 128 + signal.SIGKILL), printed
        assert errors(printed) == ["error: DeepSpeed's launcher was killed"]
    run_job(["--save", str(run), "--resume"])
    assert_same_as(run, undisturbed)


@pytest.mark.parametrize(("code", "left", "expected"), [(0, True, 1), (0, False, 0), (3, True, 3), (137, False, 137)])
def test_ranks_that_outlive_their_launcher_are_waited_for(
    code: int, left: bool, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that leaves a rank behind, or none, and ends as DeepSpeed's does when its inner one is killed."""
    script, done = tmp_path / "launcher", tmp_path / "done"
    rank = f"sh -c 'sleep 1; touch {done}' --local_rank=0 &" if left else ""
    script.write_text(f"#!/bin/sh\n{rank}\nsleep 0.3\nexit {code}\n")  # by then the rank has its own command line
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    job = launcher.LauncherProcess()
    assert job.run(["train"], []) == expected
    assert done.exists() == left
    lost = left and code == 0
    assert (job.reason(expected) == "DeepSpeed's launcher was killed") == lost


class Process:
    """A process as psutil has it, whose parent may change."""

    def __init__(self, pid: int, words: str, parent: "Process | None") -> None:
        self.pid, self._words, self._parent = pid, words.split(), parent

    def cmdline(self) -> list[str]:
        return self._words

    def parent(self) -> "Process | None":
        return self._parent

    def ppid(self) -> int:
        return self._parent.pid if self._parent else 1

    def orphan(self) -> None:
        self._parent = None


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("killed", [1, 2, 3, None])
def test_which_lost_parents_stop_a_rank(killed: int | None, ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rank, DeepSpeed's two launchers, and who started them: ours, or a shell that one may leave."""
    shell = Process(10, "python -m deconattn.launch.launcher" if ours else "bash", None)
    runner = Process(11, "python -m deepspeed.launcher.runner", shell)
    inner = Process(12, "python -u -m deepspeed.launcher.launch", runner)
    rank = Process(13, "python launch.sh --local_rank=0", inner)
    monkeypatch.setattr(worker.psutil, "Process", lambda pid=13: {12: inner, 13: rank}[pid])
    monkeypatch.setattr(worker.os, "getppid", lambda: 12)
    monkeypatch.setenv(worker.OUR_LAUNCHER, "10" if ours else "9")
    stop = worker.StopRequest()
    assert not stop and not stop.launcher_lost
    if killed is not None:
        [rank, inner, runner][killed - 1].orphan()
    assert bool(stop) == stop.launcher_lost == (killed is not None and (killed < 3 or ours))
    asked = worker.StopRequest()
    asked.ask(15, None)
    assert asked and not asked.launcher_lost
