"""Inputs to read: files, folders, patterns, URLs (s3, gs, hf, https, ..., through fsspec) and standard input."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

from deconattn.data.reading.encodings import decode_head
from deconattn.data.reading.kinds import EXTENSIONS, HIDDEN, classify, ending
from deconattn.data.reading.saved_dataset import dataset_files, holds_splits, is_saved_dataset
from deconattn.errors import UserError
from deconattn.program import installation

STDIN = "-"
_HEAD = 1 << 20  # bytes of a folder's .json file in which its text is looked for


@dataclass(frozen=True)
class Input:
    """One file, URL or stdin.

    Attributes:
        name: a path, a URL, or "-", as messages show it.
        kind: "text" (the file is one document), "json" (JSON lines; an array or a single object where the content
            says so), "parquet" or "arrow".
        codec: None, "gzip", "zstd", "bz2" or "xz".
        size: bytes of the file as it lies there; 0 where unknown.
        stamp: changes when the file does; empty for stdin.
    """

    name: str
    kind: str
    codec: str | None
    size: int
    stamp: str


def find_inputs(
    inputs: Sequence[str],
    text_field: str | None = "text",
    split: str | None = None,
    left_out: Counter[str] | None = None,
) -> list[Input]:
    """Expand files, folders (recursive, sorted, hidden entries left out), patterns, URLs and "-" into inputs.

    Links are followed, wherever they lead. A folder that `datasets` saved gives its Arrow files in their order. A
    plain .json file in a folder is taken if a text is in its first MiB, otherwise it is metadata.

    Args:
        text_field: the field of JSON objects that holds the text; None takes no .json file of a folder.
        split: which one to take of data sets of several splits.
        left_out: counts the files of folders that are not taken, by ending.

    Raises:
        UserError: a missing input, an empty match, a file of an unknown kind, a file given twice under whatever
            names, a split that is to be chosen.
    """
    search = _Search(text_field, split)
    found: dict[str, Input] = {}
    for given in inputs:
        for key, source in search.expand(given):
            if key in found:
                other = "" if found[key].name == source.name else f" (as {found[key].name} too)"
                raise UserError(f"{source.name}: duplicate inputs: it is given twice{other}; name each file once")
            found[key] = source
    if split is not None and not search.split_used:
        raise UserError(f"--split {split}: no input is a data set of several splits; leave it out")
    if left_out is not None:
        left_out.update(search.left_out)
    return list(found.values())


def counted_kinds(left_out: Counter[str]) -> str:
    """What was left out, the most frequent first: "3 .md, 1 hidden"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(left_out.items(), key=lambda item: (-item[1], item)))


def stamp_of(path: str) -> tuple[int, str]:
    """A local file's size and stamp. Raises OSError."""
    status = os.stat(path)
    return status.st_size, f"{status.st_size}-{status.st_mtime_ns}"


class _Search:
    """One search for inputs; `left_out` counts the files of folders that it passed over."""

    def __init__(self, text_field: str | None, split: str | None) -> None:
        self.left_out: Counter[str] = Counter()
        self.split_used = False
        self._split = split
        spellings = {json.dumps(text_field), json.dumps(text_field, ensure_ascii=False)}
        self._text = re.compile("|".join(map(re.escape, spellings)) + r"\s*:\s*\"") if text_field is not None else None

    def expand(self, given: str) -> Iterator[tuple[str, Input]]:
        """Inputs, each with what tells it from others."""
        if given == STDIN:
            yield STDIN, Input(STDIN, "json", None, 0, "")
        elif is_url(given):
            for name, size, stamp in find_remote(given, self._is_listed, EXTENSIONS):
                yield name, _input(name, size, stamp)
        else:
            for path in self._files(given):
                try:
                    size, stamp = stamp_of(str(path))
                except OSError as error:
                    raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
                if not path.is_file():
                    raise UserError(f"{path}: neither a file nor a folder; pipe JSON lines into stdin and give -")
                yield _identity(path), _input(str(path), size, stamp)

    def _is_listed(self, name: str) -> bool:
        """Whether a file of a folder, a path or a URL, is an input; counts those that are not."""
        base = name.rpartition("/")[2]
        if base.startswith(".") or classify(base) is None or (base.lower().endswith(".json") and not self._read(name)):
            self.left_out[ending(base)] += 1
            return False
        return True

    def _read(self, name: str) -> bool:
        """Whether a .json file holds texts; what cannot be opened does, so that it is named in the end."""
        if self._text is None:
            return False
        try:
            if is_url(name):
                with open_remote(name) as file:
                    head = file.read(_HEAD)
            elif os.path.isfile(name):  # not a pipe, which never ends
                with open(name, "rb") as file:
                    head = file.read(_HEAD)
            else:
                return True
        except OSError:
            return True
        return self._text.search(decode_head(head)) is not None

    def _files(self, given: str) -> list[Path]:
        before = self.left_out.copy()
        try:
            path = Path(given)
            if path.is_dir():
                found = self._files_below(path)
            elif path.exists():
                found = [path]
            elif any(mark in given for mark in "*?["):
                found = self._files_of_pattern(given)
            else:
                raise UserError(f"{given}: no such file or folder; check the path")
        except OSError as error:
            raise UserError(f"{error.filename or given}: cannot be read ({error.strerror}); check the path") from None
        if not found:
            others = self.left_out - before
            named = f" (but {counted_kinds(others)})" if others else ""
            plain = "; a .json file must be named, or have the --text-field" if others[".json"] else "; check the path"
            raise UserError(f"{given}: the folder holds no {EXTENSIONS} file{named}{plain}")
        return found

    def _files_of_pattern(self, pattern: str) -> list[Path]:
        matches = [Path(match) for match in sorted(glob(pattern, recursive=True))]
        if not matches:
            raise UserError(f"{pattern}: the pattern matches nothing; check the path")
        found: dict[Path, None] = {}  # ** gives a folder and again each file in it
        for match in matches:
            found.update(dict.fromkeys(self._files_below(match) if match.is_dir() else [match]))
        return list(found)

    def _files_below(self, folder: Path) -> list[Path]:
        def refuse(error: OSError) -> None:
            raise error

        units: list[tuple[Path, list[Path]]] = []  # a file, or a data set whose order is its own
        seen: set[str] = set()  # folders, to which links may lead again
        for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                continue
            seen.add(real)
            if is_saved_dataset(names):
                folders.clear()
                files, strangers = dataset_files(Path(parent), self._split)
                self.split_used |= holds_splits(names)
                self.left_out.update(map(ending, strangers))
                units.append((Path(parent), files))
                continue
            self.left_out.update(HIDDEN for name in folders if name.startswith("."))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            units += [(path, [path]) for name in names if self._is_listed(str(path := Path(parent, name)))]
        return [file for _, files in sorted(units) for file in files]


def _identity(path: Path) -> str:
    """What is the same for all names of a file, links of both kinds included."""
    status = os.stat(path)
    return f"{status.st_dev}:{status.st_ino}" if status.st_nlink > 1 else os.path.realpath(path)


def _input(name: str, size: int, stamp: str) -> Input:
    if "\n" in name or name != name.encode(errors="replace").decode():
        raise UserError(f"{name!r}: the file's name is not UTF-8 or has several lines; rename it")
    kind = classify(name)
    if kind is None:
        raise UserError(f"{name}: unknown kind of file; give one of {EXTENSIONS}")
    return Input(name, *kind, size, stamp)


_STAMPS = ("ETag", "etag", "blob_id", "md5Hash", "sha256", "mtime", "LastModified", "last_modified", "created")
"""Keys under which file systems report a mark of a file's content, best first."""


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
            below = sorted(system.find(path))
            if holds_splits([name.rpartition("/")[2] for name in below]):
                raise UserError(f"{given}: a data set of several splits; give the URL of one split's folder")
            paths = [name for name in below if is_listed(system.unstrip_protocol(name))]
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
    """Return the error for a failure of a protocol's package."""
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
