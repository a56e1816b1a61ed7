"""The frame around every command line."""

import errno
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deconattn.cli import parse, run
from deconattn.errors import UserError


@dataclass(frozen=True)
class Inner:
    """Inside."""

    seq_len: int = 8
    """Tokens."""


@dataclass(frozen=True)
class Documented:
    """With more to say."""

    name: str = "x"
    """Name, which a second line
    (of the docstring) goes on to tell of."""


@dataclass(frozen=True)
class Outer:
    """Outside."""

    inner: Inner = field(default_factory=Inner)
    name: str = "x"
    """Name."""


def test_help_fills_its_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(Documented, ["--help"], program="tool")
    assert "Name, which a second line (of the docstring) goes on to tell of" in capsys.readouterr().out


def test_nested_dataclasses_give_flat_flags() -> None:
    assert parse(Outer, ["--seq-len", "9", "--name", "y"]) == Outer(Inner(9), "y")
    assert parse(Outer, ["--seq-len", "9"], default=Outer(Inner(1), "z")) == Outer(Inner(9), "z")


@pytest.mark.parametrize(("arguments", "named"), [("--sequence 9", "--sequence"), ("--seq-len nine", "nine")])
def test_a_wrong_flag_is_one_line(arguments: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        parse(Outer, arguments.split(), program="tool")
    assert "\n" not in str(caught.value)
    assert "│" not in str(caught.value)


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(Outer, ["--help"], program="tool")
    assert not leaving.value.code
    assert "Tokens." in capsys.readouterr().out


@pytest.mark.parametrize(("program", "name"), [("./launch.sh", "launch.sh"), ("python tools/pack.py", "pack.py")])
def test_completion_is_for_the_file_alone(program: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Outer, ["--tyro-print-completion", "bash"], program=program)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("complete ")]
    assert line.split()[-1] == name and "python" not in line.split()


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise UserError("no such thing: choose another")

    for command, code in ((lambda: None, 0), (lambda: 3, 3), (wrong, 2)):
        with pytest.raises(SystemExit) as leaving:
            run(command)
        assert leaving.value.code == code
    assert capsys.readouterr().err == "error: no such thing: choose another\n"


def test_a_disk_that_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def unreadable() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "hidden"))

    def through_a_file() -> None:
        (tmp_path / "file").touch()
        (tmp_path / "file" / "below").read_text()

    for command, message in (
        (full, "no space left"),
        (unreadable, "hidden: no permission"),
        (through_a_file, "file/below: Not a directory"),
    ):
        with pytest.raises(SystemExit) as leaving:
            run(command)
        assert leaving.value.code == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback() -> None:
    def wrong() -> None:
        raise OSError("of no file")

    with pytest.raises(OSError, match="of no file"):
        run(wrong)
