"""The report: whole, self-contained, escaped, and true to the data."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from deconattn.pages.axis import Axis, labels, short
from deconattn.pages.charts import Dot, Series, dot_chart, line_chart, thinned
from deconattn.pages.palette import COLOURS
from deconattn.reproduction.pages import html, markdown
from deconattn.reproduction.tables import duration, lines_of, perplexity
from tests.reproduction.conftest import data_of, reproduce

VOID = {"meta", "link", "br"}
FAILING = "tiny-mlp-even:skip"


class Page(HTMLParser):
    """Elements, checked to be closed in order, and the tables' cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text += data
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data


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
    cells = {" ".join(text.split()) for row in page.rows for text in row}
    for table in data["tables"].values():
        for line in lines_of(table):
            for cell in line.cells:
                error = f" ± {cell.error}" if cell.error else ""
                assert f"{cell.ours}{error}{cell.paper}" in cells
    assert {len(row) for row in page.rows} == {14, 4, 10}
    for name in data["runs"]:
        assert name in cells


def test_nothing_outside_the_page_is_needed(data: dict[str, Any]) -> None:
    page = Page(html(data))
    for tag, name, value in page.attributes:
        assert name not in ("src", "srcset", "action", "xlink:href") and not name.startswith("on"), (tag, name)
        assert name != "href" or value == "data:,"
    text = html(data)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp", text)


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


def test_axes() -> None:
    axis = Axis.over([10, 1000], 0, 100, log=True)
    assert axis(100) == pytest.approx(50) and axis.ticks() == [10, 100, 1000]
    assert Axis.over([3.0, 3.0], 0, 100)(3.0) == pytest.approx(50)
    for low, high in ((1.5, 2.5), (0.0, 1e9), (38.1, 38.2), (60, 140)):
        for log in (False, low > 0):
            axis = Axis.over([low, high], 0, 100, log)
            assert 2 <= len(axis.ticks()) <= 8
            assert all(0 <= axis(tick) <= 100 for tick in axis.ticks())


def test_ticks_are_told_apart() -> None:
    assert labels([7.1601, 7.1602, 7.16]) == ["7.1601", "7.1602", "7.16"]
    assert labels([1.0, 2.0]) == ["1", "2"] and len(set(labels([13_100_100.0, 13_100_200.0]))) == 2


def test_a_chart_leaves_out_what_cannot_be_drawn() -> None:
    points = [(1.0, 2.0, "two"), (0.0, 3.0, "three"), (4.0, float("inf"), "four")]
    drawn = line_chart([Series("a", "mlp", 0, points)], "label", "x", "y")
    assert "two" in drawn and "three" not in drawn and "four" not in drawn
    assert line_chart([Series("a", "mlp", 0, points[1:])], "label", "x", "y") == ""
    assert dot_chart([("a", [Dot(0.0, "mlp", 0, "zero")])], "label", "x", True, None) == ""


def test_thinned_curves_keep_their_ends_and_their_mean() -> None:
    points = [[float(x), 5.0] for x in range(1, 5000)]
    kept = thinned(points)
    assert 40 <= len(kept) <= 80 and kept[0][0] == 1.0 and {y for _, y in kept} == {5.0}
    assert thinned(points[:10]) == [(x, y) for x, y in points[:10]]
    assert thinned([*points, [5000.0, 500.0]])[-1][1] < 10.0  # one step is not the end of a curve


def test_data_are_plain_json(data: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads(json.dumps(data, allow_nan=False)) == data
