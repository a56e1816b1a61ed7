"""What several test folders share: a small packed corpus, made once."""

from pathlib import Path

import pytest

from deconattn.data import PackConfig
from deconattn.data.pack import pack

DEMO = Path(__file__).parents[1] / "deconattn" / "data" / "demo" / "shakespeare.jsonl"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first third of the bundled corpus, packed with a SentencePiece vocabulary of 512."""
    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "part.jsonl"
    lines = DEMO.read_text(encoding="utf-8").splitlines(keepends=True)
    text.write_text("".join(lines[: len(lines) // 3]), encoding="utf-8")
    out = folder / "packed"
    pack(PackConfig(inputs=(str(text),), tokenizer="train:512", out=out, workers=1, val_fraction=0.05))
    return out
