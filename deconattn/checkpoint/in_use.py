"""A step folder that is being read is not deleted, and one that is being deleted is not read.

Commands read a run while it trains, and its training deletes old checkpoints. A reader has a shared lock on the
manifest, a deletion an exclusive one. On file systems without locks neither waits for the other.
"""

import errno
import fcntl
import os
import shutil
from pathlib import Path

from deconattn.checkpoint.manifest import MANIFEST

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


class Hold:
    """A step folder that stays until this object is gone; a copy in another process holds nothing.

    Raises:
        OSError: it has no manifest that can be opened (FileNotFoundError: or is just being deleted).
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = -1
        self._descriptor = os.open(folder / MANIFEST, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileNotFoundError(errno.ENOENT, "just being deleted", str(folder)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        if not os.path.samestat(os.fstat(self._descriptor), os.stat(folder / MANIFEST)):
            raise FileNotFoundError(errno.ENOENT, "just replaced", str(folder))

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


class Claim:
    """A step folder that nobody begins to read inside a `with` block.

    Raises:
        BlockingIOError: somebody reads it.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = -1
        try:
            self._descriptor = os.open(folder / MANIFEST, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise
        except OSError:
            pass  # without a manifest, or on a file system without locks

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def delete(folder: Path) -> bool:
    """Delete a step folder unless somebody reads it; return whether it is gone.

    It is out of sight at once: what a kill leaves of it looks like an unfinished checkpoint, which the next training
    removes.
    """
    try:
        with Claim(folder):
            hidden = unfinished(folder)
            shutil.rmtree(hidden, ignore_errors=True)
            folder.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError:
        return False
    return True


def unfinished(folder: Path) -> Path:
    """Return the name of a step folder while it is not whole."""
    return folder.with_name(f".{folder.name}.partial")
