"""Warnings that many ranks have alike, said by one of them: Python's, PyTorch's and DeepSpeed's.

Whichever rank comes first says it, so that what a single rank has to warn of is not lost.
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from deconattn.shown import one_line

LOGGERS = ("DeepSpeed", "torch", "")
"""Loggers whose handlers write to the terminal; "" is the root."""


class Once:
    """Judge of whether a text has been said by any rank, this one included; each is to be made once a process.

    Args:
        is_first: whether no rank has asked with a text before.
    """

    def __init__(self, is_first: Callable[[str], bool] | None = None) -> None:
        self._said: set[str] = set()
        self._lock = threading.Lock()
        # A connection of its own: another's wait must not block a warning.
        self._store: Any = None if is_first else _get_default_store().clone()  # type: ignore[attr-defined]
        self._is_first = is_first or self._ask
        self._rank = dist.get_rank() if dist.is_initialized() else 0

    def install(self) -> None:
        """Have warnings and log lines of this process, from warnings on, go through this."""
        warnings.showwarning = self._show
        handlers = [handler for name in LOGGERS for handler in logging.getLogger(name).handlers]
        for handler in [*handlers, logging.lastResort]:
            if handler is not None:
                handler.addFilter(self.passes)

    def says(self, text: str) -> bool:
        """Whether this rank is to say a text."""
        with self._lock:
            if text in self._said:
                return False
            self._said.add(text)
            return self._is_first(text)

    def passes(self, record: logging.LogRecord) -> bool:
        """Filter of log lines: warnings and errors once."""
        return record.levelno < logging.WARNING or self.says(f"{record.name} {record.getMessage()}")

    def _show(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
    ) -> None:
        place = os.sep.join(Path(filename).parts[-3:])
        text = f"{category.__name__}: {one_line(' '.join(str(message).split()))} ({place}:{lineno})"
        if self.says(text):
            print(f"warning: rank {self._rank}: {text}", file=sys.stderr, flush=True)

    def _ask(self, text: str) -> bool:
        with suppress(dist.DistError, RuntimeError):  # without rank 0's store all say it
            return bool(self._store.add(f"deconattn-said {text}", 1) == 1)
        return True
