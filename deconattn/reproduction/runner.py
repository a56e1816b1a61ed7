"""Does the jobs one after another, beside other processes that do the same.

What is done is known from the folder alone, so this process may end at any moment.
"""

import shlex
import shutil
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from deconattn.errors import UserError
from deconattn.reproduction.folder import ReproductionFolder, Stored, hold_lock, lock_holder
from deconattn.reproduction.job_commands import command_of
from deconattn.reproduction.outcomes import outcome_of
from deconattn.reproduction.plans import PlannedJob
from deconattn.reproduction.process import Stop, run_command, still_writing

SECONDS_BETWEEN_TRIES = 0.5


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
