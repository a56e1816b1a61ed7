from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.tokenizing.kinds import build

Kind = Callable[[str], Path]


@pytest.fixture(scope="session")
def kind(demo_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Kind:
    """The folder of a kind's tokenizer, built once. Do not write into it."""
    built: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in built:
            built[name] = build(name, demo_texts[:4], tmp_path_factory.mktemp(name))
        return built[name]

    return make
