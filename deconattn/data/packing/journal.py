"""The folder in which a pack does its work, and the journal by which a killed one goes on.

`.NAME.partial`, beside the output folder NAME, holds `plan.json` (what the result depends on), `journal.jsonl` (a
line for each point from which to go on; everything it speaks of is on the disk before it), `work` (intermediate
files) and `result`, which becomes NAME.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from deconattn import durable
from deconattn.data.manifest import MANIFEST_NAME
from deconattn.data.reading.input_files import Input
from deconattn.errors import UserError

_BUFFER = 1 << 20
_FORMAT = 2


class Journal:
    """An open `.NAME.partial`, locked against a second pack. Made by :func:`open_journal`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result = folder / "result"
        self.work = folder / "work"
        self.entries: list[dict[str, Any]] = []
        self._plan = folder / "plan.json"
        self._lines = folder / "journal.jsonl"
        self._leaving = folder / "leaving"
        self._logs: list[AppendLog] = []

    def load(self) -> dict[str, Any] | None:
        """The plan of an unfinished pack, its `entries` read; None where there is nothing to go on from."""
        try:
            plan = json.loads(self._plan.read_text(encoding="utf-8"))
            content = self._lines.read_bytes()
        except FileNotFoundError:
            return None
        except ValueError:
            raise self.damaged(self._plan) from None
        left = self._leaving.exists() and self._leaving.read_text(encoding="utf-8") != self._digest()
        if left or not self.result.is_dir():
            return None  # the result is in its place, and a kill came before all of the rest was removed
        whole = content[: content.rfind(b"\n") + 1]  # a last line without its end was being written
        try:
            self.entries = [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise self.damaged(self._lines) from None
        os.truncate(self._lines, len(whole))
        return dict(plan) if self.entries else None

    def has_lines(self) -> bool:
        """Whether there is a journal with something in it, read or not."""
        return self._lines.exists() and self._lines.stat().st_size > 0

    def damaged(self, path: Path) -> UserError:
        """The error for a file that is not as the journal says."""
        return UserError(f"{path}: the unfinished pack is damaged; give --restart to discard it")

    def clear(self) -> None:
        """Discard whatever an earlier pack left, and make the empty folders."""
        self.entries = []
        for path in (self._plan, self._lines, self._leaving):
            path.unlink(missing_ok=True)
        for folder in (self.result, self.work):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    def tidy(self) -> None:
        """Remove what was written after the last entry. Raises :class:`UserError` if a shard of one is not there."""
        known = set()
        for shard in (shard for entry in self.entries for shard in entry.get("shards", [])):
            path = self.result / shard["name"]
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise self.damaged(path)
            known.add(path.name)
        for path in [*self.result.glob("*.arrow"), *self.result.glob(".*.partial")]:
            if path.name not in known:
                path.unlink()

    def begin(self, plan: dict[str, Any]) -> None:
        """Write the plan of a new pack, with no entries yet."""
        self._lines.touch()
        durable.write_json(self._plan, plan)

    def log(self, name: str, size: int = 0) -> "AppendLog":
        """A file of `work` to append to, cut to its first `size` bytes; entries wait until it is on the disk."""
        path = self.work / name
        if size and (not path.exists() or path.stat().st_size < size):
            raise self.damaged(path)
        log = AppendLog(path, size)
        self._logs.append(log)
        return log

    def close_log(self, log: "AppendLog") -> None:
        """Close a log; entries no longer wait for it. Not while one is being appended."""
        self._logs.remove(log)
        log.close()

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry: shards and logs are on the disk before it."""
        for log in self._logs:
            log.sync()
        durable.sync_folder(self.work)
        durable.sync_folder(self.result)
        with self._lines.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(entry)

    def put_in_place(self, out: Path) -> None:
        """Move the result, which is whole, to `out`; a kill leaves what tells whether it has moved."""
        durable.write_text(self._leaving, self._digest())
        durable.put_in_place(self.result, out)

    def _digest(self) -> str:
        """The checksum of the result's manifest, which names all of its shards with theirs; empty without one."""
        try:
            return hashlib.sha256((self.result / MANIFEST_NAME).read_bytes()).hexdigest()
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        """Close the logs, whose content an entry speaks of or nobody needs."""
        while self._logs:
            self._logs.pop().close()


class AppendLog:
    """A binary file that only grows."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._file = path.open("ab", buffering=_BUFFER)
        self._file.truncate(size)

    def write(self, data: bytes) -> None:
        """Add `data`, sooner or later."""
        self._file.write(data)

    def sync(self) -> None:
        """Bring everything to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. Never raises: what is not on the disk by now is not needed."""
        with suppress(OSError):
            self._file.close()


@contextmanager
def open_journal(out: Path, keep: bool) -> Iterator[Journal]:
    """Open `out`'s `.NAME.partial`, or make it. An exception leaves it if it has entries and `keep` is set.

    Raises:
        UserError: another pack works in it.
    """
    folder = out.with_name(f".{out.name}.{durable.STAGING}")
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    lock = _Lock(folder)
    try:
        lock.take()
        yield journal
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        journal.close()
        # An interrupt may have come between any two lines of taking the lock, or before the entries were read: what
        # lies on the disk says whether the folder is this pack's and of use.
        with suppress(UserError):
            if folder.exists():
                lock.take()
                if not (keep and journal.has_lines()):
                    shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        journal.close()
        lock.release()


class _Lock:
    """The lock of one pack's folder. An interrupted :meth:`take` is taken again, or released, as any other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Make the folder and lock it; once it is held, nothing more. Raises UserError if another pack holds it."""
        path = self._folder / "lock"
        while True:
            self._folder.mkdir(exist_ok=True)
            try:
                self._file = self._file or path.open("ab")
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
                    return
            except BlockingIOError:
                self.release()
                remedy = "wait for it or give another"
                raise UserError(f"{self._folder}: another pack is at work on this output; {remedy}") from None
            except FileNotFoundError:  # the pack that held it has just finished and removes the folder
                pass
            self.release()

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def make_plan(flags: Mapping[str, Any], inputs: Sequence[Input]) -> dict[str, Any]:
    """The plan as JSON types. `flags` are those that matter, by their names on the command line."""
    return {"format": _FORMAT, "flags": dict(flags), "inputs": [[source.name, source.stamp] for source in inputs]}


def check_plan(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Compare the plan of the unfinished pack in `folder` with that of this one. Raises UserError naming a change."""
    change = _change(old, new)
    if change is not None:
        raise UserError(f"{folder} holds an unfinished pack, but {change}; undo that, or give --restart to discard it")


def _change(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    if old["format"] != new["format"]:
        return "another version of deconattn began it"
    for flag, value in new["flags"].items():
        before = old["flags"].get(flag)
        if before != value:
            return f"{flag} was {_shown(before)} and is {_shown(value)}"
    before, now = dict(old["inputs"]), dict(new["inputs"])
    for name, stamp in now.items():
        if name not in before:
            return f"{name} was not among the inputs"
        if before[name] != stamp:
            return f"{name} has changed since"
    for name in before:
        if name not in now:
            return f"{name} is no longer among the inputs"
    return "the inputs are in another order" if list(before) != list(now) else None


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)
