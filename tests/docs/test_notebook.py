"""The notebook runs from a clone, and what is stored of it is small and of no machine."""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "first_look.ipynb"
SCRIPT = ROOT / "docs" / "website" / "run_notebook.py"


def test_what_is_stored_ran_from_top_to_bottom_and_names_no_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not re.search(r"/(tmp|home|root|Users|usr|opt|work)/", text)
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)", NOTEBOOK.read_text(encoding="utf-8")):
        assert (NOTEBOOK.parent / link).exists(), link


@pytest.fixture
def script() -> ModuleType:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    spec = importlib.util.spec_from_file_location("run_notebook", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_runs(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = script.executed(tmp_path)
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    losses = [float(loss) for loss in re.findall(r"validation loss ([\d.]+)", said)]
    assert len(losses) == 4 and max(losses[1], losses[3]) < 7
    spread = [float(number) for number in re.findall(r"over rows: ([\d.]+)", said)]
    assert spread[0] > 0.01 and spread[1] < 1e-3
    accuracy = [float(number) for number in re.findall(r"accuracy ([\d.]+)", said)]
    assert accuracy[0] > accuracy[1] + 0.2
    difference = re.search(r"run and export: (\S+)", said)
    assert difference is not None and float(difference[1]) < 1e-4
