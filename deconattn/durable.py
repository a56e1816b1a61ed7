"""Atomic writes of files and folders: write to a temporary name, fsync, rename."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deconattn.errors import UserError

STAGING = "partial"
"""Suffix of a folder NAME while it is filled: .NAME.partial-XXXX; a pack, which can go on, has .NAME.partial."""


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, atomically and durably."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under `folder` to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync_file(Path(parent, name))
        sync_folder(Path(parent))


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (a rename in it) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder, and lose nothing by it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def staged_folder(out: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Yield a temporary sibling of `out` to write into; renamed to `out` on a clean exit, removed on an exception.

    Args:
        check: called with `out` before anything is written and again before the rename; raises UserError where
            what is there must not be replaced.

    Raises:
        UserError: `check` did, or the disk is full, or not ours to write.
    """
    if out.is_symlink():
        out = out.resolve()  # the link stays; what it points to is what is replaced
    staging: Path | None = None
    with disk_errors(out):
        try:
            check(out)
            out.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.{STAGING}-", dir=out.parent))
            staging.chmod(0o777 & ~_umask())  # mkdtemp makes it private
            yield staging
            sync_tree(staging)
            check(out)  # it may have filled meanwhile
            put_in_place(staging, out)
        finally:
            if staging is not None and staging.exists():
                shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn an OSError on the way to `out` into a UserError: a full disk, no permission, whatever it is."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{out}: no space left on the disk; free some or give another folder") from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise UserError(f"{error.filename or out}: no permission to write; give another folder") from error
        raise UserError(
            f"{error.filename or out}: {error.strerror or error}; check it or give another folder"
        ) from error


def put_in_place(staging: Path, out: Path) -> None:
    """Rename the folder `staging` to `out`, durably; what was at `out` is removed, or back after an OSError."""
    _exchange(staging, out)
    sync_folder(out.parent)


def _exchange(staging: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        staging.replace(out)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent))
    out.replace(retired)
    try:
        staging.replace(out)
    except OSError:
        retired.replace(out)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
