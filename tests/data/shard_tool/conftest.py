from pathlib import Path
from types import ModuleType

import pytest

from tests.data.shard_tool.shard_corpora import write_tokenizer
from tests.tools import load_tool


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("shards")


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json")
