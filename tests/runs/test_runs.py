"""The command runs."""

import io
import os
import shutil
from pathlib import Path

import pytest

from deconattn import locks
from deconattn.checkpoint.in_use import Hold
from deconattn.commands.runs import main
from deconattn.errors import UserError
from deconattn.runs.listing import bytes_of, disk_size, runs_in
from tests.runs.conftest import Maker, step_row


@pytest.fixture
def folder(trained: Path, made: Maker, tmp_path: Path) -> Path:
    """A folder with runs and other things."""
    shutil.copytree(trained, tmp_path / "trained")
    worse = [step_row(1, 2.0), {"step": 1, "val_loss": 99.0}]
    os.utime(made("worse", worse, "--variant", "mlp") / "metrics.jsonl", (0, 0))
    made("new", [])
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "away").symlink_to(trained)
    return tmp_path


def test_a_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder)])
    lines = capsys.readouterr().out.splitlines()
    rows = {cells[0]: cells[1:] for line in lines if len(cells := [c.strip() for c in line.split("│")[1:-1]]) > 1}
    assert list(rows) == ["away (link)", "new", "trained", "worse"]
    model, parameters, state, tokens, loss, best, disk, changed = rows["trained"]
    assert (model, state, tokens) == ("tiny standard", "stopped at step 5 of 6", "640")
    assert float(best) > 4 and float(loss) > 4 and parameters.endswith(("M", "00", "84")) and disk.endswith("kB")
    assert changed.endswith("ago")
    assert rows["worse"][0] == "tiny mlp uniform" and rows["worse"][5] == "99.0000"
    assert rows["new"][2] == "stopped before its first checkpoint, at step 0 of 6" and rows["new"][4] == "-"


def test_orders(folder: Path) -> None:
    (folder / "away").unlink()

    def order(sort: str) -> list[str]:
        return [one.run.name for one in runs_in(folder, sort)]

    assert order("name") == ["new", "trained", "worse"]
    assert order("loss") == ["trained", "worse", "new"]
    assert order("size")[0] == "trained"
    assert order("age")[-1] == "worse"


def test_sizes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a").write_bytes(b"x" * 1500)
    (tmp_path / "link").symlink_to("/")
    assert bytes_of(tmp_path) == 1500
    assert [disk_size(size) for size in (10, 1500, 2_500_000, 10**12)] == ["10 B", "1.5 kB", "2.5 MB", "1000.0 GB"]


def test_no_runs(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path} holds no runs\n"
    with pytest.raises(UserError, match="nowhere is no folder: give one that holds runs"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=f"is a run: give the folder that holds it, {trained.parent}"):
        main([str(trained)])


def test_what_is_named_is_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(folder.iterdir())
    assert main([str(folder), "--remove", "trained", "new", "--yes"]) is None
    assert before - set(folder.iterdir()) == {folder / "trained", folder / "new"}
    assert "removed: " in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("\n", False), ("no\n", False), ("", False)])
def test_it_asks(answer: str, gone: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert main([str(folder), "--remove", "trained"]) == (None if gone else 1)
    assert (folder / "trained").exists() is not gone


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--yes"], "--yes is of --remove"),
        (["--remove", "trained"], "--remove asks first, and nobody can answer here: add --yes"),
        (["--remove", "trained", "gone", "--yes"], "--remove gone: .* has no such run"),
        (["--remove", "trained", "notes", "--yes"], "notes is no run folder"),
        (["--remove", "trained", "away", "--yes"], "--remove away: .* is a link"),
        (["--remove", "../runs/trained", "--yes"], "give the name of a run in .*, without a path"),
        (["--remove", "..", "--yes"], "give the name of a run in"),
        (["--remove", "file", "--yes"], "--remove file: .* has no such run"),
    ],
)
def test_what_is_not_removed(words: list[str], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(UserError, match=says):
        main([str(folder), *words])
    assert (folder / "trained/checkpoints/step-5").is_dir() and (folder / "away").is_symlink()


def test_a_run_in_use_stays(folder: Path) -> None:
    run = folder / "trained"
    lock = locks.FolderLock(run, "training")
    with pytest.raises(UserError, match="trained is in use by pid"):
        main([str(folder), "--remove", "new", "trained", "--yes"])
    lock.release()
    hold = Hold(run / "checkpoints/step-5")
    with pytest.raises(UserError, match="step-5 is being read"):
        main([str(folder), "--remove", "new", "trained", "--yes"])
    assert (folder / "new").is_dir() and (run / "checkpoints/step-5/checkpoint.json").is_file()
    assert not (run / ".lock").exists()
    del hold
    main([str(folder), "--remove", "trained", "--yes"])
    assert not run.exists()


def test_what_links_point_to_stays(folder: Path) -> None:
    treasure = folder / "notes/treasure"
    treasure.write_text("gold")
    (folder / "trained/notes").symlink_to(folder / "notes")
    main([str(folder), "--remove", "trained", "--yes"])
    assert treasure.read_text() == "gold"


def test_a_killed_removal_is_finished_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remove_tree = shutil.rmtree

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        main([str(folder), "--remove", "trained", "--yes"])
    monkeypatch.setattr(shutil, "rmtree", remove_tree)
    assert not (folder / "trained").exists() and list(folder.glob(".trained.removed-*"))
    main([str(folder)])
    assert "note: a killed removal has left" in capsys.readouterr().err
    main([str(folder), "--remove", "new", "--yes"])
    assert "which a killed removal had left" in capsys.readouterr().out
    assert not list(folder.glob(".*removed*"))
