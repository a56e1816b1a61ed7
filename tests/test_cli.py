"""The frame around every command line."""

from dataclasses import dataclass, field

import pytest

from deconattn.cli import parse, run
from deconattn.errors import UserError


@dataclass(frozen=True)
class Inner:
    """Inside."""

    seq_len: int = 8
    """Tokens."""


@dataclass(frozen=True)
class Outer:
    """Outside."""

    inner: Inner = field(default_factory=Inner)
    name: str = "x"
    """Name."""


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
