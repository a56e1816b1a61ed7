"""JSON files that somebody else may have written or damaged: regular files only, any depth, any type."""

import errno
import json
import os
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

Pairs = Callable[[list[tuple[str, Any]]], Any]


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read; what would keep a reader waiting (a FIFO, a device) is an OSError."""
    return open(path, "rb", opener=_opened)


def read_bytes(path: Path) -> bytes:
    """Read a regular file (OSError if it is none)."""
    with open_regular(path) as file:
        return file.read()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it is not there, not to be read, or no regular file.
        ValueError: it is no JSON in UTF-8, or nested too deeply.
    """
    return parse_json(read_bytes(path))


def parse_json(content: bytes, finite: bool = False, pairs: Pairs | None = None) -> Any:
    """Parse JSON in UTF-8 (ValueError if it is not, is nested too deeply, or has a null character, as no path has).

    Args:
        finite: refuse NaN and the infinities, which JSON has not and some libraries write.
        pairs: makes an object of its (key, value) pairs, of which some may have one key; raises ValueError.
    """
    if b"\\u0000" in content:
        raise ValueError("a text in it has a null character")
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse if finite else None, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def reason(error: BaseException) -> str:
    """Return the first line of what an error says, or its type."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def _opened(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # a FIFO without a writer is open at once
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", path)
    return descriptor


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON's")
