"""`versions.py`: what is read from a row's tests, which rows are measured, and the page."""

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import versions
from deconattn.errors import UserError

REPORT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.a" name="test_good"/>
<testcase classname="tests.a" name="test_left_out"><skipped/></testcase>
<testcase classname="tests.a" name="test_wrong[x]"><failure message="no"/></testcase>
<testcase classname="tests.a" name="test_wrong[x]"><error message="at teardown"/></testcase>
<testcase classname="tests.b" name="test_set_up"><error message="no"/></testcase>
</testsuite></testsuites>"""
ROW = versions.ROWS[0]


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


def row(failures: list[str], **changes: Any) -> dict[str, Any]:
    found = {"versions": {"torch": "2.13.0", "python": "3.11.7"}, "passed": 9, "skipped": 1, "failures": failures}
    return found | {"date": "2026-01-02", "commit": "abc"} | changes


def test_a_report_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text(REPORT)
    failures = ["tests.a::test_wrong[x]", "tests.b::test_set_up"]
    assert versions.read_report(tmp_path / "x.xml") == {"passed": 1, "skipped": 1, "failures": failures}


def test_a_row_is_what_its_environment_says(tmp_path: Path) -> None:
    """With failed tests, exit code 1, from the environment that the script was told to make."""
    (tmp_path / "source.xml").write_text(REPORT)
    body = f"""
[ "$*" = "newest {" ".join(ROW)}" ] || exit 3
mkdir -p "$VENV/bin"
printf '#!/bin/sh\nexec {sys.executable} "$@"\n' > "$VENV/bin/python"; chmod +x "$VENV/bin/python"
cp {tmp_path / "source.xml"} "${{PYTEST_ADDOPTS#--junitxml=}}"
exit 1"""
    found = versions.measure(ROW, tmp_path, script(tmp_path / "quick", body))
    assert found["passed"] == 1 and len(found["failures"]) == 2
    assert found["versions"]["python"] == sys.version.split()[0]


@pytest.mark.parametrize("code", [1, 4])
def test_an_environment_that_cannot_be_made_is_no_row_of_zeros(tmp_path: Path, code: int) -> None:
    failing = script(tmp_path / "quick", f"echo 'no such version' >&2; exit {code}")
    assert versions.measure(ROW, tmp_path, failing) == {"failure": f"exit code {code}: no such version"}


def test_what_this_commit_has_measured_is_left_out() -> None:
    known = {ROW[0]: row([])}
    assert versions.chosen((), known, "abc") == list(versions.ROWS[1:])
    assert versions.chosen((), known, "def") == list(versions.ROWS)
    assert versions.chosen((), {ROW[0]: row([], commit="abc-dirty")}, "abc-dirty") == list(versions.ROWS)
    assert versions.chosen((ROW[0],), known, "abc") == [ROW]
    with pytest.raises(UserError, match=r"--only torch==1: no such row; the rows are transformers==5\.15"):
        versions.chosen(("torch==1",), known, "abc")


def test_the_page_names_what_failed_and_what_is_missing() -> None:
    other = versions.ROWS[3][0]
    known = {other: {"failure": "exit code 1: no such version", "date": "2026-01-02", "commit": "abc"}}
    text = versions.page(known | {ROW[0]: row(["tests.a::test_wrong"])})
    assert f"| `{ROW[0]}` `{versions.TORCH}` | 2.13.0 | - | - | - | - | 3.11.7 | 9 | 1 | 1 | 2026-01-02 | abc |" in text
    assert f"| `{other}` | - | - | - | - | - | - | - | - | all | 2026-01-02 | abc |" in text
    assert "failed:\n\n- `tests.a::test_wrong`\n" in text and "- exit code 1: no such version\n" in text
    assert f"Not measured yet: `{versions.ROWS[1][0]}`, " in text
    assert "failed:" not in versions.page({ROW[0]: row([])})
