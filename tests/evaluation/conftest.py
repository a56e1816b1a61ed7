"""Exports and a run with the tests' small tokenizer, the tests' documents, and the tool in this process."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deconattn.checkpoint.stored_model import StoredModel
from deconattn.cli import run
from deconattn.commands import evaluate as tool
from deconattn.evaluation import harness
from deconattn.layers.config import ModelConfig
from tests.evaluation.documents import write_documents
from tests.generation.conftest import byte_level, hf_tokenizer, write_run
from tests.hf.models import exported, small_config, trained

# As the tool does: the `datasets` library looks when it is first imported.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
__all__ = ["byte_level", "hf_tokenizer"]  # fixtures that are shared

CONTEXT = 128
HYBRID = ("fixedseq", "standard", "nonapproximate", "standard")
RESAMPLES = 1000
Evaluate = Callable[..., tuple[int, str, str]]


def config_of(*variants: str) -> ModelConfig:
    return small_config(*variants, max_position_embeddings=CONTEXT)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard errors of perplexities from fewer resamples, in this process."""
    monkeypatch.setattr(harness, "BOOTSTRAP_RESAMPLES", RESAMPLES)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="session")
def qwen(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock Qwen2 export."""
    out = tmp_path_factory.mktemp("models") / "qwen"
    return exported(trained(config_of("standard", "standard")), out, tokenizer_folder=byte_level)


@pytest.fixture(scope="session")
def hybrid(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "hybrid"
    return exported(trained(config_of(*HYBRID)), out, tokenizer_folder=byte_level)


@pytest.fixture(scope="session")
def hybrid_run(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose newest checkpoint, step 7, is the same model."""
    out = tmp_path_factory.mktemp("models") / "hybrid-run"
    return write_run(trained(config_of(*HYBRID)), byte_level, out, "--precision fp32")


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """Run the tool in this process: exit code, standard output, standard error."""

    def evaluate(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            run(lambda: tool.main([str(word) for word in words]))
        out, err = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, out, err

    return evaluate


@pytest.fixture
def results(evaluate: Evaluate, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the tool, which must succeed; the content of results.json."""

    def results(*words: object) -> dict[str, Any]:
        code, _, err = evaluate(*words, "--out", tmp_path / "out", "--overwrite")
        assert code == 0, err
        content: dict[str, Any] = json.loads((tmp_path / "out" / "results.json").read_text())
        return content

    return results


@pytest.fixture
def refused(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the tool, which must stop at one line before it reads a weight; the line."""

    def load(*_: object) -> None:
        pytest.fail("the weights were read before everything was checked")

    def refused(*words: object) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(StoredModel, "load", load)
            code, out, err = evaluate(*words)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return refused
