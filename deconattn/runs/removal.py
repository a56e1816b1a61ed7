"""Removal of run folders: whole, at once, and of none that somebody uses."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from deconattn import durable, locks
from deconattn.checkpoint.in_use import Claim
from deconattn.checkpoint.manifest import MANIFEST
from deconattn.errors import UserError
from deconattn.program import command
from deconattn.runs.run import read_run


def checked(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the run folders of these names in a folder, all of which may be removed now.

    Raises:
        UserError: naming the first that is none, is a link, or is in use.
    """
    found = []
    for name in dict.fromkeys(names):
        run = folder / name
        if name in ("", ".", "..") or Path(name).name != name:
            raise UserError(f"--remove {name}: give the name of a run in {folder}, without a path")
        if run.is_symlink():
            raise UserError(f"--remove {name}: {run} is a link, and links are not followed: remove it yourself")
        if not run.is_dir():
            raise UserError(f"--remove {name}: {folder} has no such run; {command('runs')} lists them")
        read_run(run)
        with _held(run):
            pass
        found.append(run)
    return found


def remove(run: Path) -> None:
    """Remove a run folder; it is out of sight at once, and what a kill leaves of it the next removal takes.

    Raises:
        UserError: it is being trained or read.
    """
    with durable.disk_errors(run), _held(run):
        durable.remove_folder(run)


def _held(run: Path) -> ExitStack:
    """Hold a run so that no training begins and no command reads it.

    Raises:
        UserError: one does.
    """
    stack = ExitStack()
    try:
        stack.callback(locks.FolderLock(run, "removal").release)
        for manifest in sorted(run.glob(f"*/*/{MANIFEST}")) + sorted(run.glob(f"*/{MANIFEST}")):
            try:
                stack.enter_context(Claim(manifest.parent))
            except BlockingIOError:
                raise UserError(
                    f"{manifest.parent} is being read: wait for the command that reads it, or stop it"
                ) from None
    except BaseException:
        stack.close()
        raise
    return stack
