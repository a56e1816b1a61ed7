"""Inputs behind URLs (s3, gs, hf, https, ...), through fsspec."""

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from deconattn.errors import UserError
from deconattn.program import installation

_STAMPS = ("ETag", "etag", "blob_id", "md5Hash", "sha256", "mtime", "LastModified", "last_modified", "created")
"""What file systems call the mark of a file's content, best first."""


def is_url(given: str) -> bool:
    """Whether an input names a protocol."""
    return "://" in given


def find_remote(given: str, is_listed: Callable[[str], bool], kinds: str) -> Iterator[tuple[str, int, str]]:
    """URL, size and stamp of each file that a URL, a pattern or a folder behind a URL names, sorted.

    Raises :class:`UserError` where there is none, or the protocol's package is missing.
    """
    system, path = _file_system(given)
    try:
        if any(mark in path for mark in "*?["):
            paths = [name for name in sorted(system.glob(path)) if not system.isdir(name)]
        elif system.isdir(path):
            paths = [name for name in sorted(system.find(path)) if is_listed(name.rpartition("/")[2])]
        else:
            paths = [path]
        found = [(system.unstrip_protocol(name), system.info(name)) for name in paths]
    except Exception as error:  # each protocol's package raises its own
        raise unreachable(given, error) from None
    if not found:
        raise UserError(f"{given}: no {kinds} file is there; check the URL")
    for name, info in found:
        size = int(info.get("size") or 0)
        mark = next((str(info[key]) for key in _STAMPS if info.get(key)), "")
        yield name, size, f"{size}-{mark}"


def open_remote(url: str) -> BinaryIO:
    """The file behind a URL, for reading and seeking. Raises :class:`UserError`."""
    system, path = _file_system(url)
    try:
        file: BinaryIO = system.open(path, "rb")
    except Exception as error:
        raise unreachable(url, error) from None
    return file


def unreachable(url: str, error: Exception) -> UserError:
    """What to raise for a failure of a protocol's package."""
    if isinstance(error, UserError):
        return error
    lines = str(error).splitlines()
    reason = type(error).__name__ + (f": {lines[0].rstrip(':. ')}" if lines and lines[0].strip() else "")
    return UserError(f"{url}: cannot be read ({reason}); check the URL, the network and your credentials")


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url}: reading URLs needs {installation('remote')} ({error})") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}; check the URL") from None
    except Exception as error:
        raise unreachable(url, error) from None
    return system, path
