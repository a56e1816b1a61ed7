"""Packs in processes that get killed: `python -m tests.data.packing.killed_packs` with a JSON task on standard input.

A process that has imported everything forks for each attempt, so that an attempt takes milliseconds.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gigatoken  # noqa: F401  (an attempt would import it again)
import tokenizers  # noqa: F401

from deconattn.data.packing import shuffle
from deconattn.data.packing.journal import Journal
from deconattn.data.packing.pack import PackConfig, pack
from deconattn.data.reading import blocks


def main() -> None:
    """Each attempt of the task: a kill, and the workers. Prints how each ended: killed, or finished steps before."""
    task = json.loads(sys.stdin.read())
    blocks.GRID = 8_000
    shuffle.RUN_BYTES = shuffle.RANGE_BYTES = 20_000
    config = {**task["config"], "out": Path(task["config"]["out"])}
    print(json.dumps([attempt(config, **options) for options in task["attempts"]]))


def attempt(config: dict[str, Any], workers: int, kill: str | None, when: float) -> int | None:
    """Pack, killed at entry, fsync or second `when`; None if it was, otherwise the steps that it went on from."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        arm(kill, when)
        summary = pack(PackConfig(**config, workers=workers))
        os.write(write, str(summary.continued).encode())
        os._exit(0)
    os.close(write)
    if kill == "second":
        time.sleep(when)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    if os.WIFSIGNALED(status):
        return None
    if status:
        raise RuntimeError(f"the pack failed: {status}")
    return int(answer)


def arm(kill: str | None, when: float) -> None:
    """Make this process die right after entry, or right before fsync, number `when`."""
    counter = iter(range(1, 1_000_000))

    def dying(function: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            last = next(counter) == when
            if last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    if kill == "entry":
        Journal.append = dying(Journal.append, after=True)  # type: ignore[method-assign]
    elif kill == "fsync":
        os.fsync = dying(os.fsync, after=False)


if __name__ == "__main__":
    main()
