"""A rank to which something happens: `python disturbed.py DISTURBANCE[,...] FLAGS...`."""

import os
import signal
import sys

from deconattn.launch import peers, worker
from deconattn.train import run_folder, saving
from deconattn.train.engine import Engine

AT_STEP = 25


def die_in_a_checkpoint() -> None:
    """Kill -9 when this rank has begun to take part in its second checkpoint."""
    flush = saving.TensorFiles.flush

    def deadly(files: saving.TensorFiles) -> None:
        if "step-40" in str(files._folder):
            os.kill(os.getpid(), signal.SIGKILL)
        flush(files)

    saving.TensorFiles.flush = deadly  # type: ignore[method-assign]


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
