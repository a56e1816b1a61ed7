"""A rank to which something happens before all have met: `python on_the_way.py DISTURBANCE|"" FLAGS...`."""

import os
import signal
import sys
import time
from contextlib import redirect_stderr
from io import StringIO

from deconattn.launch import peers, worker


def die() -> None:
    """Kill -9 while it imports."""
    _in_place_of_check(lambda: os.kill(os.getpid(), signal.SIGKILL))


def die_early() -> None:
    """Kill -9 before it can have reached the others."""

    def event(environment: object) -> None:
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)

    worker.ranks.check = event  # type: ignore[assignment]


def fail() -> None:
    """A library that this machine lacks."""

    def event() -> None:
        raise ImportError("no such library")

    _in_place_of_check(event)


def hush() -> None:
    """Catch what goes to standard error, as the reading of flags does, for as long as another needs to die."""

    def event() -> None:
        with redirect_stderr(StringIO()):
            time.sleep(6)

    _in_place_of_check(event)


def apart() -> None:
    """On a machine of its own."""
    peers._kernel = lambda: os.environ["RANK"]


def _in_place_of_check(event: object) -> None:
    def disturbed(environment: object) -> None:
        time.sleep(1)
        event()  # type: ignore[operator]

    worker.ranks.check_device = disturbed  # type: ignore[assignment]


if __name__ == "__main__":
    if name := sys.argv.pop(1):
        globals()[name]()
    worker.main()
