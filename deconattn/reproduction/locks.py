"""One process a job, on this machine and on others that share the folder.

The lock is the kernel's (flock) and lasts as long as any process that holds its file open: the one that took it, and
the command that it started, which inherits it. So a lock never outlives the work, and a command that outlives its
parent keeps others away until it has ended. Where a shared file system does not pass flock on between machines,
--shard keeps them apart instead.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[int | None]:
    """Holds a lock inside the block.

    Args:
        wait: until whoever holds it has done.

    Yields:
        The descriptor that a child must inherit; None if another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def holder(path: Path) -> str:
    """Who took a lock last, in words; to be asked while it is held."""
    try:
        taken = json.loads(path.read_text(encoding="utf-8"))
        return f"pid {taken['pid']} on {taken['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
