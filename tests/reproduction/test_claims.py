"""What the numbers show, in words: true to them, one way and the other."""

from collections.abc import Sequence
from typing import Any

import pytest

from deconattn.reproduction.cells import cell_of
from deconattn.reproduction.claims import VERDICTS, claims

CHANCE = [
    {"label": "random guess", "ours": {"Wiki ppl": {"value": 3e5}, "Avg": {"value": 0.399}}},
    {"label": "majority", "ours": {"Avg": {"value": 0.45}}},
]


def row(
    variant: str,
    pattern: str = "uniform",
    ppl: float | Sequence[float] | None = 40.0,
    avg: float | Sequence[float] = 0.5,
    skipped: bool = False,
    error: float = 0.01,
) -> Any:
    """A row of seeds 1, 2, ...; one where a number is one."""
    found = {"Wiki ppl": ppl, "Avg": avg} if ppl is not None else {}
    ours = {}
    for title, values in found.items():
        seeds = dict(enumerate([values] if isinstance(values, float) else values, start=1))
        stderr = error if title == "Avg" else None
        ours[title] = cell_of(title, {seed: {"value": value, "stderr": stderr} for seed, value in seeds.items()})
    return {
        "run": f"{variant}-{pattern}", "size": "500m", "key_value_heads": 0, "variant": variant, "pattern": pattern,
        "label": variant, "skipped": skipped, "ours": ours,
    }  # fmt: skip


def verdicts(*rows: Any) -> list[tuple[str, str]]:
    found = claims({"1": {"rows": [*rows, *CHANCE], "columns": []}})
    assert {claim["models"] for claim in found} == {"500M"}
    shows = {"shows": True, "does not show": False}
    assert all(claim["shows"] is shows.get(claim["verdict"]) for claim in found)
    assert {claim["verdict"] for claim in found} <= set(VERDICTS)
    return [(claim["verdict"], claim["numbers"]) for claim in found]


def near(value: float) -> list[float]:
    """Three seeds that differ little."""
    return [0.99 * value, value, 1.01 * value]


def test_the_papers_own_numbers_show_all_of_it() -> None:
    rows = [row("standard", ppl=near(38.1), avg=near(0.519)), row("mlp", ppl=near(993.5))]
    rows += [row("nonapproximate", ppl=near(9e4)), row("rndemb", ppl=near(84.8))]
    rows += [row("mlp", "even", near(39.8), near(0.53)), row("mlp", "even", near(2e5), near(0.378), True)]
    assert [verdict for verdict, _ in verdicts(*rows)] == ["shows"] * 6


def test_one_seed_only_sees_them() -> None:
    rows = [row("standard", ppl=38.1, avg=0.519), row("mlp", ppl=993.5), row("nonapproximate", ppl=9e4)]
    rows += [row("rndemb", ppl=84.8), row("mlp", "even", 45.8, 0.487), row("mlp", "even", 2e5, 0.378, True)]
    found = verdicts(*rows)
    assert [verdict for verdict, _ in found] == ["seen"] * 6
    assert all(numbers.endswith("One seed: there is no interval.") for _, numbers in found)


def test_where_a_finding_does_not_show_it_says_so() -> None:
    rows = [row("standard", ppl=near(40.0), avg=near(0.5)), row("mlp", ppl=near(80.0)), row("rndemb", ppl=near(90.0))]
    rows += [row("mlp", "even", near(58.0), near(0.40)), row("mlp", "even", near(300.0), near(0.4), True)]
    collapse, worst, near_in_perplexity, near_in_accuracy, destroyed = verdicts(*rows)
    assert collapse == (
        "does not show",
        "WikiText perplexity 80.0, 2.00 [2.00, 2.00] times standard attention's 40.0; collapse is 10 times.",
    )
    assert worst == ("does not show", "WikiText perplexity, the worst first: rndemb 90.0, mlp 80.0, standard 40.0.")
    assert near_in_perplexity[0] == near_in_accuracy[0] == destroyed[0] == "does not show"
    assert near_in_perplexity[1].endswith("Not near: mlp even.") and near_in_accuracy[1].endswith("Not near: mlp even.")
    assert destroyed[1].endswith("Not destroyed: mlp even.")


def test_an_interval_that_holds_the_line_is_undecided_and_says_what_would_tell() -> None:
    standard = row("standard", ppl=[40.0, 40.0, 40.0])
    for ratios, more in (([9.0, 14.0, 11.5], "12 more seeds would tell"), ([10.0, 25.0, 4.1], "more seeds alone")):
        ((verdict, numbers), *_) = verdicts(standard, row("mlp", ppl=[40 * ratio for ratio in ratios]))
        assert verdict == "undecided" and "Undecided at this size with 3 seeds" in numbers
        assert more in numbers, numbers
    few = [40 * ratio for ratio in (9.0, 14.0, 11.5)]
    ((verdict, _), *_) = verdicts(row("standard", ppl=[40.0] * 15), row("mlp", ppl=5 * few))
    assert verdict == "shows"  # the number that it named is enough where the others are like the first


@pytest.mark.parametrize(
    ("average", "error", "verdict"),
    [
        ([0.50, 0.52, 0.51], 0.01, "shows"),
        ([0.44, 0.46, 0.45], 0.01, "not judged"),
        ([0.50, 0.52, 0.51], 0.04, "not judged"),
    ],
)
def test_near_to_chance_is_no_finding(average: list[float], error: float, verdict: str) -> None:
    rows = [row("standard", avg=average, error=error), row("mlp", "even", near(40.0), average, error=0.001)]
    rows += [row("mlp", ppl=near(993.5))]
    *_, (found, numbers) = verdicts(*rows)
    assert found == verdict and "Average accuracy of standard attention" in numbers


@pytest.mark.parametrize(("mlp", "verdict"), [(41.0, "not judged"), (48.0, "not judged"), (993.5, "shows")])
def test_near_in_perplexity_is_of_worth_where_a_model_without_mixing_is_not(mlp: float, verdict: str) -> None:
    rows = [row("standard", ppl=near(40.0)), row("mlp", ppl=near(mlp)), row("rndemb", "even", near(40.0))]
    found = claims({"1": {"rows": [*rows, *CHANCE], "columns": []}})
    (hybrids,) = [claim for claim in found if claim["finding"].endswith("in perplexity.")]
    assert hybrids["verdict"] == verdict


def test_documents_that_all_seeds_share_are_not_told_apart_by_seeds() -> None:
    rows = [row("standard", avg=[0.52, 0.52, 0.53]), row("mlp", ppl=near(993.5))]
    rows.append(row("mlp", "even", near(40.0), [0.49, 0.49, 0.50], error=0.02))
    *_, (verdict, numbers) = verdicts(*rows)
    assert verdict == "undecided" and "more seeds alone would not tell" in numbers


@pytest.mark.parametrize(("guess", "learned"), [(399.0, False), (401.0, True)])
def test_models_that_have_learned_nothing_show_nothing(guess: float, learned: bool) -> None:
    rows = [row("standard", ppl=40.0), row("mlp", ppl=41.0)]
    rows.append({"label": "random guess", "ours": {"Wiki ppl": {"value": guess}}})
    found = claims({"1": {"rows": rows, "columns": []}})[0]
    assert (found["verdict"], found["finding"].startswith("Without")) == ("not seen", learned)
    assert learned or "nothing can be told. Train longer." in found["numbers"]
    rows[0] = row("standard", ppl=[30.0, 40.0, 35.0])
    found = claims({"1": {"rows": [*rows[:2], *CHANCE[1:], rows[2]], "columns": []}})[0]
    assert found["verdict"] == "undecided" and found["finding"].startswith("Standard")


def test_what_is_not_measured_is_left_open() -> None:
    rows = [row("standard"), row("mlp", ppl=None), row("mlp", "even", None), row("mlp", "even", None, skipped=True)]
    assert {verdict for verdict, _ in verdicts(*rows)} == {"open"}


@pytest.mark.parametrize(
    ("standard", "mlp", "expected"),
    [
        (38.0, 993.5, ["shows", "shows"]),
        (69.0, 500.0, ["does not show", "does not show"]),
        (5e4, 5e4, ["does not show"]),
    ],
)
def test_contexts(standard: float, mlp: float, expected: list[str]) -> None:
    rows = []
    for variant, last, first in (("standard", standard, 69.9), ("mlp", mlp, 993.5)):
        found = {length: near(value) for length, value in (("128", first), ("2048", last))}
        ours = {
            length: cell_of(length, {seed: {"value": x, "stderr": None} for seed, x in enumerate(values)})
            for length, values in found.items()
        }
        rows.append(row(variant) | {"ours": ours})
    guess = {"label": "random guess", "ours": {length: {"value": 3e5} for length in ("128", "2048")}}
    claimed = claims({"4": {"rows": [*rows, guess], "columns": ["128", "2048"]}})
    assert [claim["verdict"] for claim in claimed] == expected


def test_half_the_seeds_still_to_come_are_judged_by_those_that_both_have() -> None:
    rows = [row("standard", ppl=[40.0, 41.0]), row("mlp", ppl=[900.0])]
    assert verdicts(*rows)[0][0] == "seen"
    rows[1]["ours"]["Wiki ppl"]["seeds"] = {3: 900.0}
    assert [verdict for verdict, _ in verdicts(*rows, row("rndemb"))] == ["open", "open"]
