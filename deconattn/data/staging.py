"""An output folder that appears whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from deconattn.data.manifest import MANIFEST_NAME, TOKENIZER_NAMES, read_manifest
from deconattn.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse an output folder that holds anything but, given `overwrite`, a packed corpus and nothing besides."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} exists and is not a folder; give another --out")
    if out.is_mount():  # nothing can be renamed over it, which would show only at the very end
        raise UserError(f"{out} is a mount point; give --out a folder below it")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / MANIFEST_NAME).exists():
        raise UserError(f"{out} is not empty and not a packed corpus; give another --out or remove it yourself")
    if not overwrite:
        raise UserError(f"{out} already holds a packed corpus; give another --out, or --overwrite to replace it")
    known = {MANIFEST_NAME, *TOKENIZER_NAMES, *(shard.name for shard in read_manifest(out).shards)}
    strangers = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
    if strangers:
        raise UserError(f"{out} holds {strangers[0]}, which no pack wrote; move it away before --overwrite")


@contextmanager
def staged_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of `out` to write into; renamed to `out` on a clean exit, removed on an exception.

    OSErrors while writing become :class:`UserError`. A killed process leaves only the sibling, `.NAME.packing-*`.
    """
    if out.is_symlink():
        out = out.resolve()  # the link stays; what it points to is what is replaced
    staging: Path | None = None
    try:
        check_output(out, overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.packing-", dir=out.parent))
        staging.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        yield staging
        _sync_folder(staging)
        _put_in_place(staging, out, overwrite)
        _sync_folder(out.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(f"{out}: no space left on the disk; free some or give another --out") from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise UserError(f"{error.filename or out}: no permission to write; give another --out") from error
        raise UserError(
            f"{error.filename or out}: {error.strerror or error}; check it or give another --out"
        ) from error
    finally:
        if staging is not None and staging.exists():
            shutil.rmtree(staging, ignore_errors=True)


def leftovers(out: Path) -> list[Path]:
    """Temporary siblings of `out`: of packs that were killed, or that are running."""
    return sorted(out.parent.glob(f".{escape(out.name)}.packing-*"))


def _put_in_place(staging: Path, out: Path, overwrite: bool) -> None:
    check_output(out, overwrite)  # it may have filled meanwhile
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder, and lose nothing by it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
