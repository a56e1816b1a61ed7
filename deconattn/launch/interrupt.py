"""Knowing when to stop: SIGTERM, SIGINT, or a launcher that was killed over our heads."""

import os
from types import FrameType

import psutil

LAUNCHER = "deepspeed.launcher.launch"


class StopRequest:
    """Turns signals into a flag that the loop reads between steps.

    DeepSpeed's launcher is two processes deep, and a signal to the outer one ends it without a word to the
    ranks. They would train on as orphans, so a change of the launcher's parent counts as a request too.
    :meth:`ask` is the signals' handler.
    """

    def __init__(self) -> None:
        self._asked = False
        parent = psutil.Process(os.getppid())
        self._launcher = parent if LAUNCHER in parent.cmdline() else None
        self._grandparent = parent.ppid()

    def __bool__(self) -> bool:
        return self._asked or self._orphaned()

    def ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _orphaned(self) -> bool:
        if self._launcher is None:
            return False
        try:
            return os.getppid() != self._launcher.pid or self._launcher.ppid() != self._grandparent
        except psutil.Error:
            return True
