"""The quick tests with several versions of transformers and torch, as a table: benchmarks/versions.md.

    python benchmarks/versions.py
    python benchmarks/versions.py --only 'transformers==5.15.*'

Each row is an environment of its own (`.ci/quick newest`): the versions that the row names, and the newest releases of
everything else that go with them. It is kept in `results/versions.json` as soon as it is measured, and a row that this
commit has measured is not measured again, so that the same command goes on after a kill. Where PyTorch's wheels are
those for CUDA a row takes several GB of disk, until it is done.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, markdown_table
from deconattn.cli import parse, run
from deconattn.errors import UserError

TORCH = "torch==2.13.*"
ROWS = (
    ("transformers==5.15.*", TORCH),
    ("transformers==5.20.*", TORCH),
    ("transformers==5.23.*", TORCH),
    ("torch==2.11.*",),
    (TORCH,),
    ("torch==2.14.*",),
)
SHOWN = ("torch", "transformers", "tokenizers", "huggingface_hub", "deepspeed")
_VERSIONS = f"""
import importlib.metadata, json, platform
print(json.dumps({{"python": platform.python_version(), **{{n: importlib.metadata.version(n) for n in {SHOWN}}}}}))
"""


@dataclass(frozen=True)
class Arguments:
    """Run the quick tests with several versions of transformers and torch."""

    only: tuple[str, ...] = ()
    """Measure these rows, each named by its first requirement, whether this commit has measured them or not."""
    results: Path = RESULTS / "versions.json"
    """Where the rows are kept."""
    out: Path = ROOT / "benchmarks" / "versions.md"
    """The table."""


def main() -> None:
    """Measure what is missing, and write the table after each row."""
    arguments = parse(Arguments)
    known: dict[str, Any] = json.loads(arguments.results.read_text("utf-8")) if arguments.results.exists() else {}
    commit = _commit()
    for row in chosen(arguments.only, known, commit):
        print(f"{' '.join(row)} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found = measure(row, Path(folder))
        known[row[0]] = found | {"date": date.today().isoformat(), "commit": commit}
        arguments.results.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        arguments.out.write_text(page(known), encoding="utf-8")
        print(found.get("failure") or f"{found['passed']} passed, {len(found['failures'])} failed", flush=True)
    print(f"{arguments.out} has {len(known)} of {len(ROWS)} rows")


def chosen(only: tuple[str, ...], known: dict[str, Any], commit: str) -> list[tuple[str, ...]]:
    """The rows to measure.

    Raises:
        UserError: `only` names a row that does not exist.
    """
    names = [row[0] for row in ROWS]
    for name in only:
        if name not in names:
            raise UserError(f"--only {name}: no such row; the rows are {', '.join(names)}")
    if only:
        return [row for row in ROWS if row[0] in only]
    return [row for row in ROWS if known.get(row[0], {}).get("commit") != commit or commit.endswith("dirty")]


def measure(row: tuple[str, ...], folder: Path, script: Path = ROOT / ".ci" / "quick") -> dict[str, Any]:
    """A row: `versions`, `passed`, `skipped` and the names of the `failures`; or why there are none as `failure`."""
    report, venv = folder / "report.xml", folder / "venv"
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [script, "newest", *row],
        env=kept | {"VENV": str(venv), "PYTEST_ADDOPTS": f"--junitxml={report}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1) or not report.exists():  # 1 is pytest's word for failed tests
        lines = (done.stderr or done.stdout).strip().splitlines() or ["nothing said"]
        return {"failure": f"exit code {done.returncode}: {lines[-1]}"}
    asked = subprocess.run([venv / "bin" / "python", "-c", _VERSIONS], capture_output=True, text=True, check=True)
    return {"versions": json.loads(asked.stdout), **read_report(report)}


def read_report(report: Path) -> dict[str, Any]:
    """`passed`, `skipped` and `failures` of a JUnit report; an error of a test's set-up is a failure."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failures = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    # A test that fails and whose fixtures then fail too is there twice.
    failures = sorted(set(failures))
    names = {f"{case.get('classname')}::{case.get('name')}" for case in cases}
    return {"passed": len(names) - skipped - len(failures), "skipped": skipped, "failures": failures}


def page(known: dict[str, Any]) -> str:
    """The table of the rows that were measured, in the order of :data:`ROWS`, and what failed underneath."""
    rows, below = [], []
    for name, *others in (row for row in ROWS if row[0] in known):
        found = known[name]
        versions = found.get("versions", {})
        counts = [str(found[kind]) if kind in found else "-" for kind in ("passed", "skipped")]
        failed = "all" if "failure" in found else str(len(found["failures"]))
        asked = " ".join(f"`{requirement}`" for requirement in (name, *others))
        shown = [versions.get(package, "-") for package in (*SHOWN, "python")]
        rows.append([asked, *shown, *counts, failed, found["date"], found["commit"]])
        failures = [found["failure"]] if "failure" in found else [f"`{test}`" for test in found["failures"]]
        if failures:
            below.append(f"\n**{asked}** failed:\n\n" + "".join(f"- {line}\n" for line in failures))
    columns = ["asked for", *SHOWN, "Python", "passed", "skipped", "failed", "date", "commit"]
    missing = [f"`{row[0]}`" for row in ROWS if row[0] not in known]
    return (
        "# Versions\n\nMade by `python benchmarks/versions.py`: the tests of `.ci/quick` with what was asked for, and "
        "the newest releases of everything else.\n\n"
        + markdown_table(columns, rows)
        + (f"\nNot measured yet: {', '.join(missing)}.\n" if missing else "")
        + "".join(below)
    )


def _commit() -> str:
    """Of this checkout, `-dirty` where tracked files other than this table's have changes."""
    ours = [":!benchmarks/versions.md", ":!benchmarks/results/versions.json"]
    head = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    changed = subprocess.run(["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", ".", *ours], check=False)
    return f"{commit}-dirty" if changed.returncode else commit


if __name__ == "__main__":
    run(main)
