"""Touching a memory map without dying of it.

Reading a page that its file no longer has (it was truncated, the disk or the network failed) is no exception but
the signal SIGBUS, which ends the process without a word. Linux 5.14 and later can be asked for the pages first.
"""

import ctypes
import errno
import mmap
import os
import sys
from typing import Any

_MADV_POPULATE_READ = 22
_PAGE_MASK = ~(mmap.PAGESIZE - 1)


def fetch(address: int, size: int) -> None:
    """Wait until the pages under `size` memory-mapped bytes are in memory; other threads run meanwhile.

    Does nothing where the system cannot be asked. Raises OSError if the file no longer has those pages or the disk
    fails.
    """
    if _madvise is None or not size:
        return
    first = address & _PAGE_MASK
    while _madvise(first, address + size - first, _MADV_POPULATE_READ):
        code = ctypes.get_errno()
        if code in (errno.EINTR, errno.EAGAIN):
            continue
        if code in (errno.EINVAL, errno.ENOSYS):  # an older kernel
            return
        raise OSError(code, os.strerror(code))


def _find_madvise() -> Any:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


_madvise = _find_madvise()
