"""The site: every page is reached from the navigation, and links of the repository are links of the site."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

HOOK = ROOT / "docs" / "website" / "repository_pages.py"


def test_every_page_is_in_the_navigation_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"^ +- [^:\n]+: ([\w/.-]+\.md)$", text.split("\nnav:")[1].split("\n\n")[0], re.MULTILINE)
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(page for page in named if not page.startswith(("repository/", "index"))) == sorted(pages)


@pytest.fixture
def hook() -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("repository_pages", HOOK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_are_rewritten_to_where_the_site_has_it(hook: ModuleType) -> None:
    code = "\n```\n](../x.md)\n```\n"
    text = "[a](../README.md#variants) [b](../deconattn/cli.py) [c](data.md) [d](../tools) [e](../none.py)"
    assert hook.rewritten("docs/runs.md", text + code) == (
        "[a](index.md#variants) [b](repository/deconattn/cli.py.md) [c](data.md) [d](repository/tools/index.md) "
        f"[e](../none.py){code}"
    )
    assert hook.rewritten("README.md", "[a](docs/data.md) [b](benchmarks)") == (
        "[a](data.md) [b](repository/benchmarks/README.md)"
    )
    assert "deconattn/cli.py" in hook.outside() and "docs/data.md" not in hook.outside()


def test_docstrings_lose_their_roles_and_make_no_links(hook: ModuleType) -> None:
    assert hook.without_roles("see :class:`~deconattn.mixers.Mixer` and :mod:`.slices`") == "see `Mixer` and `slices`"
    assert "\\[" in hook.docstring(ROOT / "deconattn" / "commands" / "demo.py")


@pytest.mark.slow
def test_it_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "deconattn.mixers.Mixer" in (tmp_path / "site" / "reference" / "mixers" / "index.html").read_text("utf-8")
