"""Folders that `save_to_disk` of Hugging Face's `datasets` wrote: which Arrow files they hold, in which order."""

import json
from pathlib import Path, PurePosixPath

from deconattn.errors import UserError

_STATE = "state.json"
_SPLITS = "dataset_dict.json"
_OWN = {_STATE, _SPLITS, "dataset_info.json"}


def is_saved_dataset(names: list[str]) -> bool:
    """Whether a folder with files of these names is one, or holds several splits of one."""
    return _SPLITS in names or _STATE in names


def holds_splits(names: list[str]) -> bool:
    """Whether a folder with files of these names holds several splits."""
    return _SPLITS in names


def dataset_files(folder: Path, split: str | None) -> tuple[list[Path], list[str]]:
    """The Arrow files in order, and the names of what lies beside them and belongs to nothing.

    Args:
        split: which of several splits is wanted.

    Raises:
        UserError: a data set that is not whole, that names files elsewhere, or whose splits are to be chosen from.
    """
    part = folder / _chosen(folder, split) if (folder / _SPLITS).exists() else folder
    names = _listed(part / _STATE, "_data_files", "filename")
    for name in names:
        _check_inside(part / _STATE, name, ".arrow")
        if not (part / name).is_file():
            raise UserError(f"{part / name}: missing, though {part / _STATE} names it; save the data set again")
    known = {*names, *_OWN}
    strangers = [path.name for path in part.iterdir() if path.name not in known]
    return [part / name for name in names], sorted(strangers)


def _chosen(folder: Path, split: str | None) -> str:
    names = _listed(folder / _SPLITS, "splits", None)
    for name in names:
        _check_inside(folder / _SPLITS, name, "")
    if split is None and len(names) == 1:
        return names[0]
    if split in names:
        return split
    fault = f"has no split {split}" if split is not None else "is a data set of several splits"
    raise UserError(f"{folder} {fault}; choose one of {', '.join(names) or 'none'} with --split")


def _check_inside(path: Path, name: str, end: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or not name.endswith(end):
        what = "Arrow file" if end else "folder"
        raise UserError(f"{path} names {name!r}, no {what} of the data set; save it again, or name its .arrow files")


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
