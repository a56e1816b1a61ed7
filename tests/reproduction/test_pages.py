"""The report: whole, self-contained, escaped, and true to the data."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from deconattn.pages.axis import short
from deconattn.pages.palette import COLOURS
from deconattn.reproduction.pages import html, markdown
from deconattn.reproduction.tables import duration, lines_of, perplexity
from tests.pages.parser import Page
from tests.reproduction.conftest import data_of, reproduce

FAILING = "tiny-mlp-even:skip"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a reproduction with one job that failed."""
    out = tmp_path_factory.mktemp("pages")
    assert reproduce(out, FAKE_FAILS=FAILING)[0] == 1
    found = data_of(out)
    assert (out / "report.html").read_text() == html(found) and (out / "report.md").read_text() == markdown(found)
    return found


def test_every_cell_is_there(data: dict[str, Any]) -> None:
    page = Page(html(data))
    cells = page.cells()
    for table in data["tables"].values():
        for line in lines_of(table):
            for cell in line.cells:
                error = f" {cell.error}" if cell.error else ""
                assert f"{cell.ours}{error}{cell.paper}" in cells
    assert {len(row) for row in page.rows} == {14, 4, 10}
    for name in data["runs"]:
        assert name in cells


def test_nothing_outside_the_page_is_needed(data: dict[str, Any]) -> None:
    Page(html(data)).assert_self_contained()


def test_what_came_from_elsewhere_is_escaped(data: dict[str, Any]) -> None:
    text = html(data)
    assert "&lt;script&gt;alert(&#39;no such thing&#39;)&lt;/script&gt; &amp; more" in text
    assert "<script>alert" not in text and "<b>" not in text and "&lt;b&gt;" in text
    assert text.count("<script>") == 1
    hostile = copy.deepcopy(data)
    for row in hostile["tables"]["1"]["rows"]:
        row["label"] = '"><img src=x>'
        if "run" in row:
            row["pattern"] = "<i>even</i>"
    assert "<img" not in html(hostile) and "<i>" not in html(hostile)


def test_the_page_is_labelled(data: dict[str, Any]) -> None:
    page = Page(html(data))
    assert ("html", "lang", "en") in page.attributes
    assert ("meta", "name", "viewport") in page.attributes
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == sum(value == "img" for tag, name, value in page.attributes if (tag, name) == ("svg", "role"))
    assert len(labels) == len(set(labels)) == 6
    assert sum(value == "col" for tag, name, value in page.attributes if (tag, name) == ("th", "scope")) == 14 + 4 + 10


def test_one_colour_a_variant(data: dict[str, Any]) -> None:
    text = html(data)
    assert f'style="background:{COLOURS["mlp"]}"' in text and f'stroke="{COLOURS["mlp"]}"' in text
    assert COLOURS["fixedseq"] not in text


def test_what_failed_is_told_with_its_log(data: dict[str, Any]) -> None:
    page = Page(html(data))
    assert "tiny-mlp-even, without variant layers: exit code 1" in page.text
    assert "hybrid, even, skipped failed" in " ".join(page.text.split())
    text = markdown(data)
    assert "(failed)" in text and "Traceback: <script>" in text
    assert "11 of 12 jobs are done; failed: 1." in text


def test_markdown_has_the_table(data: dict[str, Any]) -> None:
    (row,) = [line for line in markdown(data).splitlines() if line.startswith("| standard | ") and "51.9" in line]
    value = data["tables"]["1"]["rows"][0]["ours"]["Avg"]["value"]
    assert f"| {100 * value:.1f} (paper 51.9) |" in row


def test_nothing_done_yet_is_a_page_too(data: dict[str, Any]) -> None:
    empty = copy.deepcopy(data)
    for table in empty["tables"].values():
        for row in table["rows"]:
            row["ours"], row["state"] = {}, "missing"
    for run in empty["runs"].values():
        run["training"], run["hosts"], run["state"] = {}, [], "missing"
    empty |= {"radar": {}, "failed": [], "curves": {name: {"training": [], "validation": []} for name in data["runs"]}}
    Page(html(empty))
    markdown(empty)


def test_numbers_in_words() -> None:
    assert [perplexity(value) for value in (38.14, 993.5, 6402.2, 1e5, 2e6)] == ["38.1", "993.5", "6402", "1e5", "2e6"]
    assert [duration(seconds) for seconds in (None, 59.6, 3725)] == ["\N{EN DASH}", "0:01:00", "1:02:05"]
    assert [short(value) for value in (0, 0.5, 1500, 2e6, 1.5e10, 1e-5)] == ["0", "0.5", "1,500", "2 M", "15 B", "1e-5"]


def test_data_are_plain_json(data: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads(json.dumps(data, allow_nan=False)) == data
