"""docs/architecture.md and its picture show the floors and the imports that there are."""

import importlib.util
import re
from types import ModuleType

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "docs" / "website" / "architecture_picture.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture_picture", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_up_to_date(script: ModuleType) -> None:
    assert script.PICTURE.read_text(encoding="utf-8") == script.picture(), f"run: python {SCRIPT.relative_to(ROOT)}"


def test_imports_are_seen_wherever_they_stand(script: ModuleType) -> None:
    found = script.imports()
    assert found["train", "config"] is True
    assert found["commands", "model"] is False  # in functions: `--help` must not wait
    assert ("config", "train") not in found


def test_the_table_has_the_floors_of_the_linter(script: ModuleType) -> None:
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## The floors")[1].split("\n## ")[0]
    shown: list[list[str]] = []
    for number, room in re.findall(r"^\| (\d*) ?\| \[([\w\\/]+)(?:\.py|/)?\]", table, re.MULTILINE):
        if number:
            assert int(number) == len(shown) + 1
            shown.append([])
        shown[-1].append(room.replace("\\", "").removesuffix("/"))
    assert [sorted(floor) for floor in shown] == [sorted(floor) for floor in reversed(script.floors())]
