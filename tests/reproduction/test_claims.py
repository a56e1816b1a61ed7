"""What the numbers show, in words: true to them, one way and the other."""

from typing import Any

import pytest

from deconattn.reproduction.claims import claims


def row(
    variant: str, pattern: str = "uniform", ppl: float | None = 40.0, avg: float = 0.5, skipped: bool = False
) -> Any:
    ours = {} if ppl is None else {"Wiki ppl": {"value": ppl}, "Avg": {"value": avg}}
    return {
        "run": f"{variant}-{pattern}", "size": "500m", "key_value_heads": 0, "variant": variant, "pattern": pattern,
        "label": variant, "skipped": skipped, "ours": ours,
    }  # fmt: skip


def verdicts(*rows: Any) -> list[tuple[bool | None, str]]:
    found = claims({"1": {"rows": [*rows, {"label": "majority", "ours": {}}], "columns": []}})
    assert {claim["models"] for claim in found} == {"500M"}
    return [(claim["shows"], claim["numbers"]) for claim in found]


def test_the_papers_own_numbers_show_all_of_it() -> None:
    rows = [row("standard", ppl=38.1, avg=0.519), row("mlp", ppl=993.5), row("nonapproximate", ppl=9e4)]
    rows += [row("rndemb", ppl=84.8), row("mlp", "even", 45.8, 0.487), row("mlp", "even", 2e5, 0.378, True)]
    assert [shows for shows, _ in verdicts(*rows)] == [True] * 5


def test_where_a_finding_does_not_show_it_says_so() -> None:
    rows = [row("standard", ppl=40.0, avg=0.5), row("mlp", ppl=80.0), row("rndemb", ppl=90.0)]
    rows += [row("mlp", "even", 44.0, 0.45), row("mlp", "even", 300.0, 0.4, True)]
    collapse, worst, near, destroyed = verdicts(*rows)
    assert collapse == (
        False, "WikiText perplexity 80.0, 2.00 times standard attention's 40.0; collapse is 10 times.",
    )  # fmt: skip
    assert worst == (False, "WikiText perplexity, the worst first: rndemb 90.0, mlp 80.0, standard 40.0.")
    assert near[0] is False and near[1].endswith("Not near: mlp even.")
    assert destroyed[0] is False and destroyed[1].endswith("Not destroyed: mlp even.")


@pytest.mark.parametrize(("guess", "learned"), [(399.0, False), (401.0, True)])
def test_models_that_have_learned_nothing_show_nothing(guess: float, learned: bool) -> None:
    rows = [row("standard", ppl=40.0), row("mlp", "even", 41.0)]
    rows.append({"label": "random guess", "ours": {"Wiki ppl": {"value": guess}}})
    (found,) = claims({"1": {"rows": rows, "columns": []}})
    assert (found["shows"], found["finding"].startswith("Every hybrid")) == (learned, learned)
    assert learned or found["numbers"].endswith("nothing can be told. Train longer.")


def test_what_is_not_measured_is_left_open() -> None:
    rows = [row("standard"), row("mlp", ppl=None), row("mlp", "even", None), row("mlp", "even", None, skipped=True)]
    assert {shows for shows, _ in verdicts(*rows)} == {None}


@pytest.mark.parametrize(("standard", "mlp", "shows"), [(38.0, 993.5, [True, True]), (69.0, 500.0, [False, False])])
def test_contexts(standard: float, mlp: float, shows: list[bool]) -> None:
    rows = []
    for variant, last, first in (("standard", standard, 69.9), ("mlp", mlp, 993.5)):
        ours = {"128": {"value": first}, "2048": {"value": last}}
        rows.append(row(variant) | {"ours": ours})
    found = claims({"4": {"rows": rows, "columns": ["128", "2048"]}})
    assert [claim["shows"] for claim in found] == shows
