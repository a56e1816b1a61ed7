"""Runs notebooks/first_look.ipynb in a temporary folder and stores it with its new outputs: some two minutes.

pip install -e '.[docs,plot]' && python docs/website/run_notebook.py
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nbformat
from nbclient import NotebookClient

from deconattn import durable

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "first_look.ipynb"


def executed(folder: Path) -> Any:
    """Return the notebook after every cell has run, in order, with `folder` as the working directory.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, resources=place, coalesce_streams=True).execute()
    return notebook


def plain(notebook: Any) -> Any:
    """Return a notebook without what differs from one machine or minute to the next, beside what cells print."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell["id"] = {}, f"cell-{number}"
        if cell.cell_type == "code":  # warnings and bars of libraries are of one machine's versions
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        result = plain(executed(Path(folder)))
    durable.write_text(NOTEBOOK, nbformat.writes(result) + "\n")
