"""Commands are named as they can be typed where we are."""

import shlex
import sys
from pathlib import Path

import pytest

from deconattn import program
from tests.conftest import ROOT, TOOLS


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOLS / "pack.py"), "x"])


@pytest.mark.usefixtures("called")
def test_in_a_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert program.command("pack") == "python tools/pack.py"
    assert program.command("export") == "python tools/export_hf.py"
    assert program.command("train") == "./launch.sh"
    assert program.installation("plot") == "pip install -e '.[plot]'"
    monkeypatch.chdir(ROOT.parent)
    assert program.command("train") == f"{ROOT.name}/launch.sh"
    assert program.installation("plot") == f"pip install -e '{ROOT.name}[plot]'"
    monkeypatch.chdir(tmp_path)
    assert program.command("pack") == f"python {ROOT}/tools/pack.py"
    assert program.command("train") == f"{ROOT}/launch.sh"


def test_every_file_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deconattn.commands import COMMANDS

    monkeypatch.chdir(tmp_path)
    for name in COMMANDS:
        assert Path(shlex.split(program.command(name))[-1]).is_file()
        assert Path(program.process(name)[-1]).is_file()
    assert {path.name for path in TOOLS.glob("*.py")} == {Path(program.process(name)[-1]).name for name in COMMANDS} - {
        "launch.sh"
    }


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("/venv/bin/deconattn", "deconattn pack"),
        (f"{ROOT}/deconattn/__main__.py", "python -m deconattn pack"),
        (f"{ROOT}/deconattn/launch/worker.py", "deconattn pack"),
    ],
)
def test_as_it_was_called(called: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [called, "train"])
    assert program.command("pack") == expected


@pytest.mark.usefixtures("called")
def test_without_a_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_CLONE", None)
    assert program.command("train") == "deconattn train"
    assert program.process("train") == [sys.executable, "-m", "deconattn", "train"]
    assert program.installation("plot") == "pip install 'deconattn[plot]'"


def test_paths_are_relative_where_they_can_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert program.quoted(tmp_path / "runs" / "a b") == "'runs/a b'"
    assert program.quoted(tmp_path.parent / "a") == str(tmp_path.parent / "a")
    assert program.quoted(Path("runs/a")) == "runs/a"


@pytest.mark.usefixtures("called")
def test_errors_say_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deconattn.data import read_manifest
    from deconattn.errors import UserError

    for called, expected in ((str(TOOLS / "shards.py"), f"python {TOOLS}/pack.py"), ("deconattn", "deconattn pack")):
        monkeypatch.setattr(sys, "argv", [called])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=f"nowhere: no such folder; pack a corpus with {expected}$"):
            read_manifest(Path("nowhere"))
