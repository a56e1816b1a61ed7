"""A process for measurements: a kernel that hangs or breaks the GPU's context costs one case, not the run."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.kernels.clock import described

_CONTEXT = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
_LAST_WORDS = 0.2
"""Seconds for a process that is ending by itself, for its own exit code."""


class Worker:
    """Calls functions one after the other in another process, a new one wherever the last was lost."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    def __call__(self, function: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
        """What a function that can be pickled returns.

        Raises:
            TimeoutError: it takes longer than so many seconds, a new process's start included.
            RuntimeError: it raised, or its process died.
        """
        pipe = self._pipe or self._start()
        try:
            pipe.send(function)
            if not pipe.poll(seconds):
                self.close()
                raise TimeoutError(f"stopped after {seconds:.0f} s")
            result, failure, healthy = pipe.recv()
        except (EOFError, ConnectionError):
            code = self.close()
            raise RuntimeError(f"its process died with exit code {code}") from None
        if not healthy:
            self.close()
        if failure:
            raise RuntimeError(failure)
        assert isinstance(result, dict)
        return result

    def close(self) -> int | None:
        """End the process; its exit code."""
        if self._process is None or self._pipe is None:
            return None
        self._process.join(timeout=_LAST_WORDS)
        self._process.kill()
        self._process.join()
        self._pipe.close()
        code: int | None = self._process.exitcode
        self._process = self._pipe = None
        return code

    def _start(self) -> Connection:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self._pipe


def _serve(pipe: Connection) -> None:
    while True:
        try:
            function = pipe.recv()
        except EOFError:
            return
        result, failure = None, None
        try:
            result = function()
        except Exception as error:  # told to the other side
            failure = described(error)
        pipe.send((result, failure, _healthy()))


def _healthy() -> bool:
    """Whether the GPU, where one is in use, still answers: after an illegal access its context never does."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
    except Exception:  # whatever it says, the context is of no more use
        return False
    return True
