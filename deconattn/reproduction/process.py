"""A command as a child that is watched, written down, and stopped in order."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil

from deconattn.launch.ranks import without_rank

SECONDS_BETWEEN_LOOKS = 0.1
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


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
