"""Figures as the paper prints them."""

import json
import math
from pathlib import Path

import pytest

from deconattn.evaluation.results import Row, Score, write_results
from deconattn.evaluation.tables import benchmark_cells, context_cells
from deconattn.shown import markdown_table


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (38.14, "38.1"),
        (999.94, "999.9"),
        (6402.4, "6402"),
        (99_999.4, "99999"),
        (234_567.0, "2e5"),
        (9.7e6, "1e7"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_perplexities(value: float, shown: str) -> None:
    assert context_cells([128], [("a", [value])])[1] == ["a", shown]


def test_accuracies_and_what_is_missing() -> None:
    row = Row("a", {"RTE": Score(0.5271, 0.0301), "LAMBADA acc": Score(0.0), "Wiki ppl": Score(38.1, 0.26)})
    heading, cells = benchmark_cells([row])
    shown = dict(zip(heading, cells, strict=True))
    assert (shown["RTE"], shown["LAMBADA acc"], shown["Wiki ppl"], shown["COPA"]) == (
        "52.7 ± 3.0",
        "0.0",
        "38.1 ± 0.3",
        "-",
    )
    assert shown["Avg"] == "-"


def test_a_bar_in_a_name_breaks_no_table() -> None:
    assert markdown_table("T", [["", "x"], ["a|b", "1"]]) == "## T\n\n|  | x |\n| --- | ---: |\n| a\\|b | 1 |\n"


def test_what_json_has_not(tmp_path: Path) -> None:
    write_results(tmp_path / "x.json", {"a": [math.inf, 1.5], 3: {"b": math.nan}, "c": Path("d")})
    content = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert content == {"a": ["inf", 1.5], "3": {"b": "nan"}, "c": "d"}
