"""The tool, called in this process, and what it looks into."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deconattn.checkpoint.stored_model import StoredModel
from deconattn.cli import run
from deconattn.commands import analyze as tool
from tests.generation.conftest import byte_level  # noqa: F401  (a fixture)

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the tool in this process: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            run(lambda: tool.main([str(word) for word in words]))
        out, err = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, out, err

    return call


@pytest.fixture
def refused(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Run the tool, which must stop at one line before it reads a weight, and write nothing; the line."""

    def load(*_: object) -> None:
        pytest.fail("the weights were read before everything was checked")

    def refused(*words: object) -> str:
        out = tmp_path / "refused"
        with monkeypatch.context() as patch:
            patch.setattr(StoredModel, "load", load)
            code, printed, err = call(*words, *([] if "--out" in words else ["--out", out]))
        assert (code, printed) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert not out.exists()
        return err

    return refused
