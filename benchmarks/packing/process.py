"""A command measured from outside: wall time, CPU time, and the memory of its whole process tree."""

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.1
OUTPUT_SHOWN = 2000
"""Characters of a failed command's output that are kept."""


@dataclass(frozen=True)
class Usage:
    """What a command took, from its start to its end, all its processes together.

    `peak_gib` is the largest sum over the tree seen in samples every tenth of a second; a page that several processes
    share is counted once (PSS). `largest_gib` is the highest resident memory of any one process (VmHWM).
    """

    seconds: float
    cpu_seconds: float
    peak_gib: float
    largest_gib: float


class MeasuredProcess:
    """A command that runs in a process group of its own, its output in a temporary file.

    `wait` samples while it waits. The CPU time is that of the process and of the children that it waited for.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # closed by `close`
        self._start = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(variables or {}),
            start_new_session=True,
        )
        self._ended = os.pidfd_open(self._process.pid)
        self._peak = self._largest = 0
        self._usage: Usage | None = None
        self.returncode: int | None = None

    def wait(self, seconds: float) -> bool:
        """Wait for its end, so long at most; whether it has ended."""
        until = time.perf_counter() + seconds
        while self.returncode is None:
            remaining = until - time.perf_counter()
            ended, _, _ = select.select([self._ended], [], [], max(0.0, min(SAMPLE_SECONDS, remaining)))
            if ended:
                self._reap()
            elif remaining <= 0:
                return False
            else:
                self._sample()
        return True

    def kill(self, group: bool = True) -> None:
        """SIGKILL, to all its processes or to the first alone, and take its leave."""
        if self.returncode is None:
            if group:
                self.kill_group()
            else:
                self._process.kill()
            self._reap()

    def kill_group(self) -> None:
        """SIGKILL to whatever is left of its processes; nothing if none is."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def pid(self) -> int:
        """Of its first process, and of the group."""
        return self._process.pid

    @property
    def usage(self) -> Usage:
        """Once it has ended."""
        assert self._usage is not None
        return self._usage

    def output(self) -> str:
        """The end of what it wrote, standard output and standard error together."""
        self._output.seek(0)
        return self._output.read()[-OUTPUT_SHOWN:]

    def close(self) -> None:
        """End all of it and close its files."""
        self.kill()
        self.kill_group()
        os.close(self._ended)
        self._output.close()

    def __enter__(self) -> "MeasuredProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _reap(self) -> None:
        _, status, spent = os.wait4(self._process.pid, 0)
        seconds = time.perf_counter() - self._start
        self.returncode = self._process.returncode = os.waitstatus_to_exitcode(status)
        self._usage = Usage(seconds, spent.ru_utime + spent.ru_stime, self._peak / 2**30, self._largest / 2**30)

    def _sample(self) -> None:
        total = 0
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self._process.pid)
            for process in (first, *first.children(recursive=True)):
                shared, highest = _memory(process.pid)
                total += shared
                self._largest = max(self._largest, highest)
        self._peak = max(self._peak, total)


def measured(command: Sequence[str], variables: Mapping[str, str], limit: float) -> Usage:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed or took more than `limit` seconds; with the end of its output.
    """
    with MeasuredProcess(command, variables) as process:
        if not process.wait(limit):
            raise RuntimeError(f"stopped after {limit:.0f} s; its output ends in:\n{process.output()}")
        if process.returncode != 0:
            raise RuntimeError(f"exit code {process.returncode}; its output ends in:\n{process.output()}")
        return process.usage


def _memory(pid: int) -> tuple[int, int]:
    """Bytes of a process: its part of what is resident, and the most that was ever resident; 0 if it has gone."""
    with suppress(OSError):
        highest = _kib(Path(f"/proc/{pid}/status"), "VmHWM:")
        return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") * 1024, highest * 1024
    return 0, 0


def _kib(path: Path, field: str) -> int:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    return 0  # a process that is ending has none
