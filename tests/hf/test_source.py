"""The code that an export carries: flat, complete, its own."""

import ast
import re
from pathlib import Path

import pytest

from deconattn.errors import UserError
from deconattn.hf.source import exported_source
from tests.hf.models import PLUGIN

STANDARD_LIBRARY_AND_KNOWN = {"torch", "transformers", "flash_attn"}


def test_every_import_stays_in_the_folder(tmp_path: Path) -> None:
    plugin = tmp_path / "running-mean.py"
    plugin.write_text(PLUGIN)
    files = exported_source([plugin])
    followed = {
        f"{name}.py" for text in files.values() for name in re.findall(r"^\s*from\s+\.(\S+)\s+import", text, re.M)
    }
    assert followed | {"modeling_deconattn.py"} == set(files)
    assert {"plugin_running_mean.py", "mixers_standard.py", "ops_reference.py"} < set(files)
    for text in files.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert node.module is not None
                assert not node.module.startswith("deconattn")


def test_only_imports_are_rewritten(tmp_path: Path) -> None:
    plugin = tmp_path / "running-mean.py"
    plugin.write_text(PLUGIN)
    written = exported_source([plugin])["plugin_running_mean.py"]

    def code(text):
        kept = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        return [n.name for n in kept]

    assert code(written) == code(PLUGIN)
    assert "from .mixers import ProjectedMixer, register\n" in written
    assert "from . import ops_prefix_average as averaging\n" in written
    assert "        from .mixers_base import MixerContext as Context\n" in written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import deconattn.mixers\n", "from deconattn"),
        ("from . import helper\n", "one file"),
        ("from deconattn.nowhere import x\n", "no module deconattn.nowhere"),
        ("x = 1; from deconattn.mixers import register\n", "line of its own"),
    ],
)
def test_what_cannot_be_carried_is_refused(text: str, message: str, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(text)
    with pytest.raises(UserError, match=message):
        exported_source([plugin])


def test_missing_and_doubled_plugins_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        exported_source([tmp_path / "gone.py"])
    paths = [tmp_path / folder / "same.py" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("")
    with pytest.raises(UserError, match=r"same\.py"):
        exported_source(paths)
