"""Folders that are replaced whole, and what killed commands leave beside them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deconattn import durable
from deconattn.durable import exchange, put_in_place, staged_folder
from deconattn.errors import UserError


def folder_with(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def anything(out: Path) -> None:
    """Let whatever is there be replaced."""


@pytest.fixture(params=["swapped at once", "in two steps"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems that can swap two folders, and others."""
    if request.param == "in two steps":
        monkeypatch.setattr(durable, "exchange", lambda one, other: False)


@pytest.mark.parametrize("before", ["folder", "empty", "file", "link", "nothing"])
def test_what_is_there_is_replaced(before: str, system: None, tmp_path: Path) -> None:
    out, staging = tmp_path / "out", folder_with(tmp_path / "new", "new")
    match before:
        case "folder":
            folder_with(out, "old")
        case "empty":
            out.mkdir()
        case "file":
            out.write_text("old")
        case "link":
            out.symlink_to("nowhere")
    put_in_place(staging, out)
    assert (out / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_are_swapped_or_left(tmp_path: Path) -> None:
    one, other = folder_with(tmp_path / "one", "1"), folder_with(tmp_path / "other", "2")
    swapped = exchange(one, other)
    assert [(path / "file").read_text() for path in (one, other)] == (["2", "1"] if swapped else ["1", "2"])
    with pytest.raises(FileNotFoundError):
        if not exchange(one, tmp_path / "nowhere"):
            raise FileNotFoundError


def test_the_next_command_removes_what_a_killed_one_left(system: None, tmp_path: Path) -> None:
    out, leftover = tmp_path / "out", folder_with(tmp_path / ".out.partial-abcd_123", "half")
    folder_with(tmp_path / ".out.replaced-abcd_123", "")
    kept = [".out.partial", ".out.partial-abcd_1234", ".out.partial-ABCD_123", ".other.partial-abcd_123", "x.out"]
    for name in kept:
        folder_with(tmp_path / name, "not ours to remove")
    (tmp_path / ".out.partial-12345678").symlink_to(tmp_path / "x.out")
    with staged_folder(out, anything) as staging:
        assert not leftover.exists()
        with staged_folder(out, anything) as second:  # another command at work is no leftover
            assert staging.is_dir() and second != staging
            (second / "file").write_text("second")
        assert (out / "file").read_text() == "second"
        (staging / "file").write_text("first")
    assert (out / "file").read_text() == "first"
    assert {path.name for path in tmp_path.iterdir()} == {*kept, ".out.partial-12345678", "out"}


def test_what_was_replaced_is_back_after_a_kill_between_the_two_steps(tmp_path: Path) -> None:
    out, retired = tmp_path / "out", tmp_path / ".out.replaced-abcd_123"
    retired.mkdir()
    folder_with(retired / "out", "old")

    def occupied(out: Path) -> None:
        if out.exists():
            raise UserError("in use")

    with pytest.raises(UserError, match="in use"), staged_folder(out, occupied):
        pass
    assert (out / "file").read_text() == "old"


@pytest.mark.parametrize("ending", [KeyboardInterrupt, UserError, OSError])
def test_nothing_is_left_of_a_command_that_fails(ending: Callable[[str], BaseException], tmp_path: Path) -> None:
    out = folder_with(tmp_path / "out", "old")
    with pytest.raises((KeyboardInterrupt, UserError)), staged_folder(out, anything) as staging:
        (staging / "file").write_text("half")
        raise ending("stop")
    assert os.listdir(tmp_path) == ["out"] and (out / "file").read_text() == "old"
