from pathlib import Path
from types import ModuleType

import pytest

from deconattn.commands import shards
from tests.data.corpus_tools.shard_corpora import write_tokenizer


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return shards


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json")
