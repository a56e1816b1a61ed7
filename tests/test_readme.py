"""What the README and docs/ say is what the code does."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from deconattn.config.flag_table import with_table
from deconattn.mixers import mixer_class, variant_names, zoo_names
from deconattn.mixers.plugins import load_plugins

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_table_of_flags_is_up_to_date() -> None:
    text = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert text == with_table(text), "run: python -m deconattn.config.flag_table docs/flags.md"


def test_the_table_of_variants_is_complete() -> None:
    named = re.findall(r"^\| `(\w+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) >= {name for name in variant_names() if mixer_class(name).__module__.startswith("deconattn.")}


def test_the_readme_names_the_zoo() -> None:
    text = re.search(r"\*\*Beyond the paper\*\*.*?\n\n", README.read_text(encoding="utf-8"), re.DOTALL)
    assert text is not None
    assert set(re.findall(r"`([a-z][a-z0-9-]*)`", text[0])) <= set(zoo_names())


def test_the_mixer_that_the_docs_show_is_the_one_that_runs() -> None:
    shown = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8").split("```python\n")[2].split("```")[0]
    assert shown in (ROOT / "deconattn" / "mixers" / "zoo" / "sigmoid.py").read_text(encoding="utf-8")


def example() -> str:
    """The README's plugin."""
    [source] = re.findall(r"```python\n(from deconattn.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return source


def test_the_example_plugin_registers(tmp_path: Path) -> None:
    source = example()
    plugin = tmp_path / "readme_plugin.py"
    plugin.write_text(source)
    load_plugins([plugin])
    assert mixer_class("mean").__name__ == "Mean"


@pytest.mark.slow
def test_the_contract_suite_runs_on_the_example_plugin(tmp_path: Path) -> None:
    plugin = tmp_path / "mean.py"
    plugin.write_text(example())
    suite = [sys.executable, "-m", "pytest", "-n", "0", "-k", "mean", "--plugin", str(plugin), "tests/mixers"]
    done = subprocess.run(suite, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) > 30, done.stdout[-2000:]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


@pytest.mark.parametrize(
    "page", sorted({*PAGES, *ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md"}), ids=lambda page: page.name
)
def test_links_within_the_repository_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http", "mailto:", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link
