"""A rank to which something happens: `python disturbed.py DISTURBANCE[,...] FLAGS...`."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deconattn.checkpoint.slice_file import Slice
from deconattn.launch import peers, worker
from deconattn.train import run_folder, saving
from deconattn.train.engine import Engine

AT_STEP = 25


def die_in_a_checkpoint() -> None:
    """Kill -9 when this rank has begun to take part in its second checkpoint."""
    write_slices = saving.write_slices

    def deadly(path: Path, slices: Sequence[Slice]) -> dict[str, Any]:
        if "step-40" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        return write_slices(path, slices)

    saving.write_slices = deadly


def slow_disk() -> None:
    """A disk that takes longer than any collective may."""
    write_slices = saving.write_slices

    def slow(path: Path, slices: Sequence[Slice]) -> dict[str, Any]:
        time.sleep(8)
        return write_slices(path, slices)

    saving.write_slices = slow


def _in_a_step(event: object) -> None:
    train_step, steps = Engine.train_step, iter(range(10**9))

    def disturbed(*arguments: object, **more: object) -> object:
        if next(steps) == AT_STEP:
            event()  # type: ignore[operator]
        return train_step(*arguments, **more)  # type: ignore[arg-type]

    Engine.train_step = disturbed  # type: ignore[method-assign, assignment]


def die() -> None:
    _in_a_step(lambda: os.kill(os.getpid(), signal.SIGKILL))


def freeze() -> None:
    _in_a_step(lambda: os.kill(os.getpid(), signal.SIGSTOP))


def late() -> None:
    """Come to no collective of the step, though alive."""
    _in_a_step(lambda: time.sleep(600))


def fail() -> None:
    def event() -> None:
        raise ValueError("a bug")

    _in_a_step(event)


def apart() -> None:
    """Each rank takes itself to be on a machine of its own."""
    peers._kernel = lambda: os.environ["RANK"]  # type: ignore[assignment]


def two_machines() -> None:
    """Ranks 0 and 1 take themselves to be on a machine, and 2 and 3 on another."""
    peers._kernel = lambda: str(int(os.environ["RANK"]) // 2)  # type: ignore[assignment]


def blind() -> None:
    """A run folder that is not shared."""
    run_folder.SHARED_SECONDS = 0.1
    check = run_folder._check_shared
    run_folder._check_shared = lambda run, token: check(run, f"elsewhere/{token}")  # type: ignore[assignment]


if __name__ == "__main__":
    for name in filter(None, sys.argv.pop(1).split(",")):
        globals()[name]()
    worker.main()
