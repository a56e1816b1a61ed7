"""Does the jobs one after another, beside other processes that do the same.

What is done is known from the folder alone, so this process may end at any moment.
Each job's command is a child process that is watched and stopped in order.
"""

import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import psutil

from deconattn.durable import hold_lock, lock_holder
from deconattn.errors import UserError
from deconattn.launch.ranks import without_rank
from deconattn.reproduction.folder import ReproductionFolder, Stored
from deconattn.reproduction.jobs import command_of, outcome_of
from deconattn.reproduction.plans import PlannedJob

SECONDS_BETWEEN_LOOKS = 0.1
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
SECONDS_BETWEEN_TRIES = 0.5


class Stop:
    """A request to stop by signals, handed to :meth:`ask`; a second does not wait for the child's checkpoint."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.hurry = False

    def __bool__(self) -> bool:
        return self.signal is not None

    def ask(self, number: int, frame: object) -> None:
        self.hurry = self.signal is not None
        self.signal = number


def run_command(
    command: Sequence[str], log: Path, lock: int, stop: Stop, look: Callable[[], None]
) -> tuple[int, float]:
    """Run a command to its end, what it prints appended to `log`.

    The child takes no part in what may have started this process as one of several (srun, mpirun): it starts ranks of
    its own. It is in a session of its own, so that a Ctrl-C at the terminal does not reach it beside our own signal; it
    gets SIGTERM when a stop is asked for, and when this process dies.

    Args:
        lock: a descriptor that it inherits.
        look: called again and again meanwhile.

    Returns:
        Its exit code as a shell has it, and seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    parent = os.getpid()

    def before_exec() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=without_rank(os.environ),
            start_new_session=True,
            pass_fds=[lock],
            preexec_fn=before_exec,  # safe: there is one thread here
        )
    told = False
    while (code := child.poll()) is None:
        if stop and not told:
            child.terminate()
            told = True
        if stop.hurry:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        look()
        with suppress(subprocess.TimeoutExpired):
            child.wait(SECONDS_BETWEEN_LOOKS)
    return (128 - code if code < 0 else code), time.monotonic() - start


def still_writing(folder: Path) -> list[int]:
    """Ids of this machine's processes that train into a folder: ranks that a kill of their launcher left behind."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if ("--save", str(folder)) in pairwise(words):
            found.append(process.pid)
    return found


class View(Protocol):
    """Observer of the runner."""

    def started(self, job: PlannedJob) -> None: ...

    def ended(self, job: PlannedJob) -> None: ...

    def waiting(self, job: PlannedJob, on: str) -> None: ...

    def look(self) -> None:
        """Poll; called repeatedly while something runs."""


class Runner:
    """Works on some of a plan's jobs until each is done, has failed, or cannot be done because its training failed.

    Args:
        jobs: each training before what needs it.
        stop: looked at between jobs and while one runs.
    """

    def __init__(
        self, folder: ReproductionFolder, stored: Stored, jobs: Sequence[PlannedJob], view: View, stop: Stop
    ) -> None:
        self.folder, self.stored, self.jobs, self.view, self.stop = folder, stored, jobs, view, stop

    def run(self) -> None:
        while not self.stop:
            open_jobs = [job for job in self.jobs if self._open(job)]
            if not open_jobs:
                return
            if not any([self._try(job) for job in open_jobs if not self.stop]):
                self.view.waiting(open_jobs[0], lock_holder(self.folder.lock(open_jobs[0])))
                self.view.look()
                time.sleep(SECONDS_BETWEEN_TRIES)

    def _open(self, job: PlannedJob) -> bool:
        training = PlannedJob(job.run, "train")
        settled = self.folder.result(job) is not None or self.folder.failure(job) is not None
        return not settled and self.folder.failure(training) is None

    def _try(self, job: PlannedJob) -> bool:
        """Whether there was something to do, and it was ours to do."""
        training = PlannedJob(job.run, "train")
        if job.kind != "train" and self.folder.result(training) is None:
            return False
        with hold_lock(self.folder.lock(job)) as lock:
            if lock is None:
                return False
            if self._open(job):  # another process may have settled it before we had the lock
                self._wait_for_orphans(job)
                self._do(job, lock)
            return True

    def _wait_for_orphans(self, job: PlannedJob) -> None:
        """Ranks whose launcher was killed end by themselves after a step; two trainings must not write one folder."""
        while job.kind == "train" and not self.stop and (pids := still_writing(self.folder.output(job))):
            self.view.waiting(job, f"pid {pids[0]}, which still trains there")
            self.view.look()
            time.sleep(SECONDS_BETWEEN_TRIES)

    def _do(self, job: PlannedJob, lock: int) -> None:
        if self.stop:
            return
        folder = self.folder
        if job.kind != "train":
            _remove_output(folder.output(job))
        command = command_of(job, folder, self.stored)
        _write_heading(folder.log(job), command)
        self.view.started(job)
        code, seconds = run_command(command, folder.log(job), lock, self.stop, self.view.look)
        attempt = {
            "command": shlex.join(command),
            "host": socket.gethostname(),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
        }
        reason = f"exit code {code}"
        if code == 0:
            try:
                folder.record(job, attempt | {"outcome": outcome_of(job, folder)})
            except UserError as error:
                reason = str(error)
        if folder.result(job) is None and not self.stop:
            folder.record_failure(job, attempt | {"reason": reason, "log": str(folder.log(job))})
        self.view.ended(job)


def _remove_output(folder: Path) -> None:
    """Delete the output of an attempt that was killed."""
    if folder.exists():
        shutil.rmtree(folder)
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)


def _write_heading(log: Path, command: Sequence[str]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n--- {now} {socket.gethostname()}\n$ {shlex.join(command)}\n")
