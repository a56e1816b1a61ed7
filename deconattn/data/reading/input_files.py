"""Inputs to read: files, folders, patterns, URLs (s3, gs, hf, https, ..., through fsspec) and standard input."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO

from deconattn.errors import UserError
from deconattn.program import installation

STDIN = "-"
_KINDS = {
    ".txt": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_COMPRESSIBLE = ("text", "json")
EXTENSIONS = ", ".join(_KINDS) + f" (text and JSON also with {', '.join(_CODECS)})"
_STATE = "state.json"  # of a Hugging Face dataset saved on disk
_SPLITS = "dataset_dict.json"  # of several splits of one


@dataclass(frozen=True)
class Input:
    """One file, URL or stdin.

    Attributes:
        name: a path, a URL, or "-", as messages show it.
        kind: "text" (the file is one document), "json" (JSON lines), "parquet" or "arrow".
        codec: None, "gzip", "zstd" or "bz2".
        size: bytes of the file as it lies there; 0 where unknown.
        stamp: changes when the file does; empty for stdin.
    """

    name: str
    kind: str
    codec: str | None
    size: int
    stamp: str


def find_inputs(inputs: Sequence[str]) -> list[Input]:
    """Expand files, folders (recursive, sorted, hidden entries left out), patterns, URLs and "-" into inputs.

    A folder that `datasets` saved gives its Arrow files in their order, split after split. A plain .json file is
    read where it is named or matches a pattern; in a folder it is taken for metadata.

    Raises:
        UserError: a missing input, an empty match, a file of an unknown kind, a file given twice.
    """
    found: dict[str, Input] = {}
    for given in inputs:
        for key, source in _expand(given):
            if key in found:
                other = "" if found[key].name == source.name else f" (as {found[key].name} too)"
                raise UserError(f"{source.name}: duplicate inputs: it is given twice{other}; name each file once")
            found[key] = source
    return list(found.values())


def stamp_of(path: str) -> tuple[int, str]:
    """A local file's size and stamp. Raises OSError."""
    status = os.stat(path)
    return status.st_size, f"{status.st_size}-{status.st_mtime_ns}"


def _expand(given: str) -> Iterator[tuple[str, Input]]:
    """Inputs, each with what tells it from others."""
    if given == STDIN:
        yield STDIN, Input(STDIN, "json", None, 0, "")
    elif is_url(given):
        for name, size, stamp in find_remote(given, _is_listed, EXTENSIONS):
            yield name, _input(name, size, stamp)
    else:
        for path in _files(given):
            try:
                size, stamp = stamp_of(str(path))
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
            if not path.is_file():
                raise UserError(f"{path}: neither a file nor a folder; pipe JSON lines into stdin and give -")
            yield os.path.realpath(path), _input(str(path), size, stamp)


def _input(name: str, size: int, stamp: str) -> Input:
    if "\n" in name or name != name.encode(errors="replace").decode():
        raise UserError(f"{name!r}: the file's name is not UTF-8 or has several lines; rename it")
    kind = _classify(name)
    if kind is None:
        raise UserError(f"{name}: unknown kind of file; give one of {EXTENSIONS}")
    return Input(name, *kind, size, stamp)


def _classify(name: str) -> tuple[str, str | None] | None:
    """Kind and codec by the name's end."""
    stem, last = os.path.splitext(name.lower())
    codec = _CODECS.get(last)
    kind = _KINDS.get(os.path.splitext(stem)[1] if codec else last)
    return None if kind is None or (codec and kind not in _COMPRESSIBLE) else (kind, codec)


def _is_listed(name: str) -> bool:
    """Whether a file of a folder is an input."""
    return not name.startswith(".") and _classify(name) is not None and not name.lower().endswith(".json")


def _files(given: str) -> list[Path]:
    try:
        path = Path(given)
        if path.is_dir():
            found = _files_below(path)
        elif path.exists():
            found = [path]
        elif any(mark in given for mark in "*?["):
            found = _files_of_pattern(given)
        else:
            raise UserError(f"{given}: no such file or folder; check the path")
    except OSError as error:
        raise UserError(f"{error.filename or given}: cannot be read ({error.strerror}); check the path") from None
    if not found:
        named = " (a plain .json file must be named)" if any(Path(given).glob("**/*.json")) else ""
        raise UserError(f"{given}: the folder holds no {EXTENSIONS} file{named}; check the path")
    return found


def _files_of_pattern(pattern: str) -> list[Path]:
    matches = [Path(match) for match in sorted(glob(pattern, recursive=True))]
    if not matches:
        raise UserError(f"{pattern}: the pattern matches nothing; check the path")
    found: dict[Path, None] = {}  # ** gives a folder and again each file in it
    for match in matches:
        found.update(dict.fromkeys(_files_below(match) if match.is_dir() else [match]))
    return list(found)


def _files_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    units: list[tuple[Path, list[Path]]] = []  # a file, or a data set whose order is its own
    seen: set[str] = set()  # folders, to which links may lead again
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        if _SPLITS in names or _STATE in names:
            folders.clear()
            units.append((Path(parent), _saved_dataset(Path(parent))))
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        units += [(path, [path]) for name in names if _is_listed(name) and (path := Path(parent, name))]
    return [file for _, files in sorted(units) for file in files]


def _saved_dataset(folder: Path) -> list[Path]:
    """The Arrow files of a data set that `datasets` saved, in order."""
    splits = folder / _SPLITS
    parts = [folder / name for name in _listed(splits, "splits", None)] if splits.exists() else [folder]
    files = []
    for part in parts:
        for name in _listed(part / _STATE, "_data_files", "filename"):
            if not (part / name).is_file():
                raise UserError(f"{part / name}: missing, though {part / _STATE} names it; save the data set again")
            files.append(part / name)
    return files


def _listed(path: Path, field: str, subfield: str | None) -> list[str]:
    try:
        entries = json.loads(path.read_bytes())[field]
        names = [entry[subfield] if subfield else entry for entry in entries]
        if all(isinstance(name, str) for name in names):
            return names
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    except FileNotFoundError:
        raise UserError(f"{path}: missing, so the data set is not whole; save it again") from None
    raise UserError(f"{path}: not what the datasets library writes; save the data set again, or name its .arrow files")


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
