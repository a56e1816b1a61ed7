"""Does the jobs, one or several at a time, beside other processes that do the same.

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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import psutil

from deconattn.errors import UserError
from deconattn.launch.ranks import without_rank
from deconattn.locks import hold_lock, lock_holder
from deconattn.reproduction.folder import ReproductionFolder, Stored
from deconattn.reproduction.jobs import choose_rate, command_of, outcome_of
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


class Child:
    """A command that runs, what it prints appended to `log`.

    It takes no part in what may have started this process as one of several (srun, mpirun): it starts ranks of its own.
    It is in a session of its own, so that a Ctrl-C at the terminal does not reach it beside our own signal; it gets
    SIGTERM when a stop is asked for, and when this process dies.

    Args:
        lock: a descriptor that it inherits.
        environment: variables beside this process's.
    """

    def __init__(
        self, command: Sequence[str], log: Path, lock: int, environment: Mapping[str, str] | None = None
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._start, self._told = time.monotonic(), False
        parent = os.getpid()

        def before_exec() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died in between
                os._exit(1)

        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=without_rank({**os.environ, **(environment or {})}),
                start_new_session=True,
                pass_fds=[lock],
                preexec_fn=before_exec,  # safe: there is one thread here
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def ask_to_stop(self, hurry: bool) -> None:
        """Send SIGTERM, once; in a hurry kill it and all that it started."""
        if not self._told:
            self._process.terminate()
            self._told = True
        if hurry:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit code as a shell has it; None if it still runs after so many seconds."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(seconds)
            return 128 - code if code < 0 else code
        return None


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


@dataclass(frozen=True)
class _Running:
    """A job's command, and the lock that is held meanwhile."""

    child: Child
    command: Sequence[str]
    held: ExitStack


class Runner:
    """Works on some of a plan's jobs until each is done, has failed, or cannot be done because what it needs failed.

    Args:
        jobs: in the order in which they are begun, where nothing else decides.
        stop: looked at between jobs and while some run.
        at_once: jobs at a time.
        environment: variables of the commands beside this process's.
    """

    def __init__(
        self,
        folder: ReproductionFolder,
        stored: Stored,
        jobs: Sequence[PlannedJob],
        view: View,
        stop: Stop,
        at_once: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self.stored, self.jobs, self.view, self.stop = folder, stored, jobs, view, stop
        self._at_once, self._environment = at_once, environment
        self._running: dict[PlannedJob, _Running] = {}

    def run(self) -> None:
        again = 0.0
        while self._running or not self.stop:
            if self._look_after_children():
                again = 0.0
            if not self.stop and len(self._running) < self._at_once and time.monotonic() >= again:
                open_jobs = [job for job in self.jobs if job not in self._running and self._open(job)]
                if not open_jobs and not self._running:
                    return
                if self._begin(open_jobs):
                    continue
                again = time.monotonic() + SECONDS_BETWEEN_TRIES
            self.view.look()
            if not self._running:
                time.sleep(SECONDS_BETWEEN_TRIES)

    def _open(self, job: PlannedJob) -> bool:
        return not self.folder.settled(job) and self.folder.possible(job)

    def _begin(self, open_jobs: Sequence[PlannedJob]) -> bool:
        """Begin what can be; tell whether there was anything, and say what is waited for where nothing runs."""
        reasons = []
        for job in open_jobs:
            if self.stop or len(self._running) == self._at_once:
                break
            reasons.append((job, self._try(job)))
        if any(reason is None for _, reason in reasons):
            return True
        for job, reason in reasons if not self._running else ():
            if reason:
                self.view.waiting(job, reason)
                break
        return False

    def _try(self, job: PlannedJob) -> str | None:
        """None if there was something to do, and it was ours to do; else who does it, empty if nobody can yet."""
        needed = self.folder.needs(job)
        if needed is not None and self.folder.result(needed) is None:
            return ""
        if job.kind == "choose" and not all(self.folder.settled(trial) for trial in self.stored.trials(job.run)):
            return ""
        with ExitStack() as stack:
            lock = stack.enter_context(hold_lock(self.folder.lock(job)))
            if lock is None:
                return lock_holder(self.folder.lock(job))
            if not self._open(job):  # another process may have settled it before we had the lock
                return None
            # Ranks whose launcher was killed end by themselves after a step; two trainings must not write one folder.
            if job.kind == "train" and (pids := still_writing(self.folder.output(job))):
                return f"pid {pids[0]}, which still trains there"
            if job.kind == "choose":
                self._choose(job)
                return None
            self._running[job] = self._start(job, lock, stack.pop_all())
            self.view.started(job)
        return None

    def _start(self, job: PlannedJob, lock: int, held: ExitStack) -> _Running:
        if job.kind != "train":
            _remove_output(self.folder.output(job))
        command = command_of(job, self.folder, self.stored)
        _write_heading(self.folder.log(job), command)
        return _Running(Child(command, self.folder.log(job), lock, self._environment), command, held)

    def _look_after_children(self) -> bool:
        """Stop what is to stop, and record what has ended; tell whether anything has."""
        ended = []
        for job, running in self._running.items():
            if self.stop:
                running.child.ask_to_stop(self.stop.hurry)
            code = running.child.wait(SECONDS_BETWEEN_LOOKS / len(self._running))
            if code is not None:
                ended.append((job, code))
        for job, code in ended:
            running = self._running.pop(job)
            with running.held:
                self._record(job, running, code)
            self.view.ended(job)
        return bool(ended)

    def _record(self, job: PlannedJob, running: _Running, code: int) -> None:
        folder = self.folder
        attempt = _attempt(running.command, running.child.seconds)
        reason = f"exit code {code}"
        if code == 0:
            try:
                folder.record(job, attempt | {"outcome": outcome_of(job, folder)})
            except UserError as error:
                reason = str(error)
        if folder.result(job) is None and not self.stop:
            folder.record_failure(job, attempt | {"reason": reason, "log": str(folder.log(job))})

    def _choose(self, job: PlannedJob) -> None:
        attempt = _attempt((), 0.0)
        try:
            self.folder.record(job, attempt | {"outcome": choose_rate(self.folder, self.stored, job.run)})
        except UserError as error:
            self.folder.record_failure(job, attempt | {"reason": str(error), "log": ""})
        self.view.ended(job)


def _attempt(command: Sequence[str], seconds: float) -> dict[str, Any]:
    return {
        "command": shlex.join(command),
        "host": socket.gethostname(),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }


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
