"""The limit of open files: raised, and told where it cannot be raised far enough."""

import resource

import pytest

from deconattn.launch import limits


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A soft and a hard limit that are not this process's."""
    pair = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(pair))
    monkeypatch.setattr(resource, "setrlimit", lambda which, new: pair.__setitem__(slice(None), new))
    return pair


def test_it_is_raised_to_the_hard_limit(system: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    limits.say_if_too_low(1024, rank=0)
    assert system == [4096, 4096]
    assert capsys.readouterr().err == ""


def test_rank_0_says_where_that_is_too_low(system: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    limits.say_if_too_low(4096, rank=1)
    assert capsys.readouterr().err == ""
    limits.say_if_too_low(4096, rank=0)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "warning: a process may have 4096 files open here, and one of 4096 ranks may need 8448: raise"
    )


def test_a_system_that_refuses_is_left_as_it_is(system: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, new: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert limits.raise_open_files(4) is None
    assert limits.raise_open_files(4096) is not None
