"""Locks by which one process at a time uses a folder or a file, and who holds them."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deconattn.errors import UserError
from deconattn.json_files import read_json

LOCK = ".lock"
"""The file in a folder by which one process at a time uses it."""
PROBE_SECONDS = 0.5
"""How long a lock may be held by those who only look whether it is free."""


@contextmanager
def hold_lock(path: Path, wait: bool = False) -> Iterator[int | None]:
    """Hold a lock inside the block.

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


class FolderLock:
    """Exclusive use of a folder by this process, until it is released or the process ends.

    The kernel's lock (flock) on `FOLDER/.lock`, and in that file who has it. On file systems without locks the note
    alone counts: that of a process which lives, or of another machine, is respected.

    Args:
        folder: it must be there.
        use: what messages call the use, such as "training".

    Raises:
        UserError: another process uses the folder.
    """

    def __init__(self, folder: Path, use: str) -> None:
        self._path = path = folder / LOCK
        self._descriptor = self._opened()
        deadline = time.monotonic() + PROBE_SECONDS
        try:
            while True:
                try:
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.path.samestat(os.fstat(self._descriptor), os.stat(path)):
                        break
                except FileNotFoundError:
                    pass  # its owner has just removed it
                except BlockingIOError:
                    if time.monotonic() > deadline:  # not just another's look at it
                        raise UserError(_in_use(folder, path)) from None
                    time.sleep(0.05)
                except OSError as error:
                    if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                        raise
                    if _noted_process_lives(path):
                        remedy = f"; if it has ended, remove {path}"
                        raise UserError(_in_use(folder, path) + remedy) from None
                    break
                os.close(self._descriptor)
                self._descriptor = self._opened()
            os.ftruncate(self._descriptor, 0)
            note = {"pid": os.getpid(), "host": socket.gethostname(), "use": use}
            os.pwrite(self._descriptor, json.dumps(note).encode(), 0)
        except BaseException:
            with suppress(OSError):  # closed already, where the folder has vanished
                os.close(self._descriptor)
            self._descriptor = -1
            raise

    def release(self) -> None:
        """Let others use the folder; more than once does nothing."""
        if self._descriptor >= 0:
            with suppress(OSError):  # what matters is the lock, which closing gives back
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1

    def _opened(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def check_unused(folder: Path) -> None:
    """Raises UserError if a process holds a :class:`FolderLock` on the folder; takes nothing."""
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(_in_use(folder, path)) from None
    except OSError:
        if _noted_process_lives(path):
            raise UserError(_in_use(folder, path)) from None
    finally:
        os.close(descriptor)


def _in_use(folder: Path, path: Path) -> str:
    return f"{folder} is in use by {lock_holder(path)}: wait for it, stop it, or give another folder"


def _noted_process_lives(path: Path) -> bool:
    try:
        note = read_json(path)
        if note["host"] != socket.gethostname():
            return True
        os.kill(int(note["pid"]), 0)
        return int(note["pid"]) != os.getpid()
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return False


def lock_holder(path: Path) -> str:
    """Describe the process that took a lock last; to be asked while it is held."""
    try:
        taken = read_json(path)
        return f"pid {taken['pid']} on {taken['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
