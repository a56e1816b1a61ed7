"""The ranks that a process's parent has started beside it, by their environments: before there is a way to ask."""

import os
from contextlib import suppress

import psutil

from deconattn.errors import UserError
from deconattn.launch import ranks


def siblings() -> dict[psutil.Process, int]:
    """Processes and their ranks; imports nothing that takes long, so that who dies early has been seen."""
    found = {}
    with suppress(psutil.Error):
        for child in psutil.Process(os.getppid()).children():
            with suppress(psutil.Error, UserError, ValueError):  # it may have ended, or not begun its program yet
                environment = child.environ()
                ranks.join(environment)
                same = all(environment.get(name) == os.environ.get(name) for name in ("WORLD_SIZE", "MASTER_PORT"))
                if child.pid != os.getpid() and same and "RANK" in environment:
                    found[child] = int(environment["RANK"])
    return found
