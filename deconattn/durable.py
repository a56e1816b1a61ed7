"""Atomic writes of files and folders: write to a temporary name, fsync, rename."""

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deconattn.errors import UserError, of_the_disk
from deconattn.json_files import read_json

WRITTEN = ".written.json"
"""The file in a folder that says by which command, and which files, it was written."""
STAGING = "partial"
"""Suffix of a folder NAME while it is filled: .NAME.partial-XXXX; a pack, which can go on, has .NAME.partial."""
_RETIRED = "replaced"
"""Suffix of the folder that holds what stood at NAME while it is replaced, on systems that cannot swap folders."""
_REMOVED = "removed"
"""Suffix of the folder that a folder is moved into to be removed."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, atomically and durably."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, atomically and durably."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
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
    with disk_errors(out):
        _bring_back(out)
        check(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        staging, lock = _locked_sibling(out, STAGING)
        try:
            staging.chmod(0o777 & ~_umask())  # mkdtemp makes it private
            yield staging
            sync_tree(staging)
            check(out)  # it may have filled meanwhile
            put_in_place(staging, out)
        finally:
            os.close(lock)
            if staging.exists():
                shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def replaceable_folder(out: Path, command: str, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary sibling of `out`, see :func:`staged_folder`; its files are listed in it, so that the same
    command may replace them.

    Raises:
        UserError: :func:`check_replaceable` did, or the disk is full, or not ours to write.
    """
    with staged_folder(out, lambda out: check_replaceable(out, command, overwrite)) as folder:
        yield folder
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
        write_json(folder / WRITTEN, {"command": command, "files": files})


def check_replaceable(out: Path, command: str, overwrite: bool) -> None:
    """Refuse a folder that holds anything but, given `overwrite`, what `command` wrote there and nothing besides.

    Raises:
        UserError: naming the first stranger.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} exists and is not a folder: choose another")
    if not out.exists() or not any(out.iterdir()):
        return
    known = _written_by(command, out)
    if known is None:
        raise UserError(f"{out} is not empty and no folder that {command} wrote: choose another or remove it yourself")
    if not overwrite:
        raise UserError(f"{out} holds what {command} wrote: choose another folder or give --overwrite")
    folders = {str(parent) for name in known for parent in Path(name).parents}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        plain = path.is_file() and not path.is_symlink()
        if not (plain and name in known) and not (path.is_dir() and not path.is_symlink() and name in folders):
            raise UserError(f"{out} holds {name}, which {command} did not write: move it away before --overwrite")


def _written_by(command: str, folder: Path) -> set[str] | None:
    """Return the files that `command` wrote into a folder, by the folder's own list; None if another did."""
    try:
        written = read_json(folder / WRITTEN)
        files = [WRITTEN, *written["files"]] if written["command"] == command else []
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return set(files) if files and all(isinstance(name, str) for name in files) else None


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn an OSError on the way to `out` into a UserError: a full disk, no permission, whatever it is."""
    try:
        yield
    except BrokenPipeError:  # of standard output, not of the disk
        raise
    except OSError as error:
        raise of_the_disk(error, out) from error


def put_in_place(staging: Path, out: Path) -> None:
    """Rename the folder `staging` to `out`, durably; what was at `out` is removed, or back after an OSError."""
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        staging.replace(out)
    elif exchange(staging, out):
        _remove(staging)
    else:
        _retire(staging, out)
    sync_folder(out.parent)
    _remove_leftovers(out)


def remove_folder(folder: Path) -> None:
    """Remove a folder, out of sight at once; what a kill leaves of it :func:`sweep_removed` takes."""
    retired, lock = _locked_sibling(folder, _REMOVED)
    try:
        try:
            folder.replace(retired / folder.name)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(retired)
    finally:
        os.close(lock)


def left_by_removals(parent: Path) -> list[Path]:
    """Return what killed removals have left in a folder, hidden; each has inside what it removed."""
    pattern = re.compile(rf"\.(.+)\.{_REMOVED}-[a-z0-9_]{{8}}")
    names = dict.fromkeys(match[1] for path in parent.iterdir() if (match := pattern.fullmatch(path.name)))
    return [left for name in names for left in _leftovers(parent / name, _REMOVED)]


def sweep_removed(parent: Path) -> list[Path]:
    """Remove what killed removals have left in a folder; return it."""
    found = left_by_removals(parent)
    for left in found:
        shutil.rmtree(left, ignore_errors=True)
    return found


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths of one file system at once; return whether the system can, with nothing changed if not."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    code = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if code and ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    return not code


def _retire(staging: Path, out: Path) -> None:
    """Do as :func:`exchange` in two steps; :func:`_bring_back` mends what a kill between them leaves."""
    retired, lock = _locked_sibling(out, _RETIRED)
    try:
        inside = retired / out.name
        out.replace(inside)
        try:
            staging.replace(out)
        except OSError:
            inside.replace(out)
            raise
    finally:
        os.close(lock)
        shutil.rmtree(retired, ignore_errors=True)


def _locked_sibling(out: Path, kind: str) -> tuple[Path, int]:
    """Make a hidden folder beside `out`; return it and a descriptor that tells others that it is in use."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.{kind}-", dir=out.parent))
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):  # a file system without locks, where leftovers stay
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():  # nobody took it for a leftover before it was locked
            return folder, descriptor
        os.close(descriptor)


def _leftovers(out: Path, kind: str) -> Iterator[Path]:
    """Yield the hidden folders beside `out` whose process was killed, each locked until the next is asked for."""
    pattern = re.compile(re.escape(f".{out.name}.{kind}-") + "[a-z0-9_]{8}")
    for folder in sorted(out.parent.iterdir()) if out.parent.is_dir() else ():
        if pattern.fullmatch(folder.name) is None or folder.is_symlink() or not folder.is_dir():
            continue
        with suppress(OSError):  # of another user, or gone
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield folder
            finally:
                os.close(descriptor)


def _remove_leftovers(out: Path) -> None:
    for kind in (STAGING, _RETIRED):
        for folder in _leftovers(out, kind):
            shutil.rmtree(folder, ignore_errors=True)


def _bring_back(out: Path) -> None:
    """Put back what stood at `out` when a process was killed between the two steps of replacing it."""
    for folder in _leftovers(out, _RETIRED):
        if not os.path.lexists(out) and (folder / out.name).exists():
            (folder / out.name).replace(out)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def make_readable(path: Path) -> None:
    """Give a file that a library made private the mode that the umask asks for."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
