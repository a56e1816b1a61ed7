"""The page of a grid: what it claims of made-up rows whose truth is known, where it is silent, and its numbers."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from deconattn.errors import UserError
from deconattn.probing.claims import CLAIMS
from deconattn.probing.findings import BASELINE, MARGIN, SOLVED, Findings, Kind, Problem, verdicts
from deconattn.probing.page import HTML, SUMMARY, failures, heat_map, html, smallest_rows, summary, write_page
from deconattn.probing.pictures import problem_pictures
from deconattn.probing.results import Row
from deconattn.statistics import family_level, mean_interval, values_needed
from tests.pages.parser import Page
from tests.probing.made_up import rows_of

STANDARD, MLP, TAYLOR = ("standard", "uniform"), ("mlp", "uniform"), ("approximate", "uniform")
MQAR = Problem("mqar", "context=64&alphabet=64")
SPREAD = (-0.004, 0.0, 0.004, 0.002)
CLAIM = {claim.id: claim for claim in CLAIMS}


def means(**of: float | None) -> Callable[[str, str, int, int], float | None]:
    """Give each variant, or variant_pattern, a mean accuracy, about which its seeds lie a little; None fails."""

    def accuracy(variant: str, pattern: str, difficulty: int, seed: int) -> float | None:
        mean = of.get(f"{variant}_{pattern}", of.get(variant))
        return None if mean is None else min(max(mean + SPREAD[seed], 0.0), 1.0)

    return accuracy


def said(rows: Sequence[Row], size: str = "64x2") -> dict[str, str]:
    """What is said of the one problem of some rows."""
    (verdict,) = [one for one in verdicts(Findings(rows)) if one.size == size]
    return dict(verdict.said)


def models(*names: str) -> list[tuple[str, str]]:
    return [(variant, pattern or "uniform") for variant, _, pattern in (name.partition("_") for name in names)]


def test_what_the_intervals_carry_is_said() -> None:
    accuracy = means(standard=0.98, mlp=0.02, approximate=0.981, nonapproximate=0.5)
    names = models("mlp", "standard", "approximate", "nonapproximate")
    found = said(list(rows_of(accuracy, names)))
    assert list(found) == [
        "Solved at every difficulty, pairs = 4, 8, 16", "Solved at no difficulty", "Not better than chance",
        "Worse than standard", "As good as standard, within 5 points",
    ]  # fmt: skip
    assert found["Solved at every difficulty, pairs = 4, 8, 16"] == "standard, approximate"
    assert found["Solved at no difficulty"] == "mlp, nonapproximate"
    assert found["Not better than chance"].startswith("mlp 2.0 % [")
    assert [words.split(" ")[0] for words in found["Worse than standard"].split("], ")] == ["mlp", "nonapproximate"]
    assert "mlp by 96.0 points [" in found["Worse than standard"]
    assert found["As good as standard, within 5 points"].startswith("approximate +0.1 points [")


def test_a_variant_may_be_better_and_solve_some_difficulties() -> None:
    def accuracy(variant: str, pattern: str, difficulty: int, seed: int) -> float:
        return (0.97 if variant == "mlp" else 0.6 if difficulty > 4 else 0.99) + SPREAD[seed]

    found = said(list(rows_of(accuracy, [STANDARD, MLP])))
    assert found["Solved at every difficulty, pairs = 4, 8, 16"] == "mlp"
    assert found["Solved at pairs = 4"] == "standard"
    assert found["Better than standard"].startswith("mlp by 24.0 points [")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (rows_of(means(standard=0.03, mlp=0.02, approximate=0.3), [STANDARD, MLP, TAYLOR]), "not clearly better"),
        (rows_of(means(mlp=0.02, approximate=0.3), [MLP, TAYLOR]), "not trained at this size"),
        (rows_of(means(standard=0.98, mlp=0.02, approximate=0.3), [STANDARD, MLP, TAYLOR], chance=None), "guessing"),
        (rows_of(means(standard=None, mlp=0.02, approximate=0.3), [STANDARD, MLP, TAYLOR]), "failed with seed 0, 1, 2"),
        (rows_of(means(standard=0.98, mlp=0.02, approximate=0.3), [STANDARD, MLP, TAYLOR], seeds=[0]), "one seed"),
    ],
)  # fmt: skip
def test_nothing_is_claimed_without_a_standard_that_learns(rows: Any, why: str) -> None:
    found = said(list(rows))
    assert why in found["Nothing is claimed of the others"]
    assert not {"Not better than chance", "Better than standard", "Worse than standard"} & found.keys()
    assert not any(what.startswith("As good") for what in found)


def test_of_one_seed_nothing_is_claimed() -> None:
    rows = [*rows_of(means(standard=0.98), [STANDARD]), *rows_of(means(mlp=0.02), [MLP], seeds=[0])]
    found = said(rows)
    assert found["Not judged"] == "mlp (one seed: no interval)"
    assert "mlp" not in "".join(words for what, words in found.items() if what != "Not judged")


def test_a_failed_seed_leaves_its_model_unjudged() -> None:
    def accuracy(variant: str, pattern: str, difficulty: int, seed: int) -> float | None:
        return None if (variant, seed) == ("mlp", 2) else 0.98 + SPREAD[seed]

    rows = list(rows_of(accuracy, [STANDARD, MLP], seeds=range(4)))
    found = said(rows)
    assert found["Not judged"] == "mlp (failed with seed 2)"
    assert found["Solved at every difficulty, pairs = 4, 8, 16"] == "standard"
    assert failures(Findings(rows)) == [
        ("mqar, mlp, 64x2, seed 2, learning rate 0.001", "the loss is not a number at step 17")
    ]
    text = " ".join(Page(html(Findings(rows))).text.split())
    assert "1 failed" in text and "the loss is not a number at step 17" in text


def test_a_rate_that_failed_does_not_count_against_the_model() -> None:
    rows = [
        dataclasses.replace(row, state="failed", accuracy=None, loss=None, reason="diverged") if row.lr > 1e-3 else row
        for row in rows_of(means(standard=0.98), [STANDARD], rates=(1e-3, 1e-2))
    ]
    assert said(rows)["Solved at every difficulty, pairs = 4, 8, 16"] == "standard"
    assert [why for _, why in failures(Findings(rows))] == ["diverged"]


def test_seeds_that_all_succeed_have_an_interval_by_what_was_asked() -> None:
    def interval(accuracy: float, asked: int) -> Any:
        rows = rows_of(lambda *_: accuracy, [STANDARD], asked=asked)
        return Findings(rows).cell(MQAR, BASELINE, "64x2").interval(4)

    assert interval(1.0, 2048).low == pytest.approx(1 - 1.96 * (2 / 2052 * 2050 / 2052 / 2052) ** 0.5, abs=1e-6)
    assert interval(1.0, 2048).above(SOLVED) and not interval(1.0, 8).above(SOLVED)
    assert interval(0.0, 2048).high > 0


def test_the_interval_is_that_of_the_seeds_and_of_what_was_asked() -> None:
    values = {0: 0.6, 1: 0.7, 2: 0.74}
    cell = Findings(rows_of(lambda v, p, level, seed: values[seed], [STANDARD], asked=96)).cell(MQAR, BASELINE, "64x2")
    share = (0.68 * 96 + 2) / 100
    error = (share * (1 - share) / 100) ** 0.5
    expected = mean_interval(list(values.values()), shared_error=error)
    found = cell.interval(8)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert cell.error() == pytest.approx(error / 3**0.5)  # three difficulties, asked different samples


def test_undecided_says_how_many_seeds_would_do() -> None:
    drops = {0: 0.05, 1: 0.25, 2: 0.4}
    rows = list(rows_of(lambda v, p, _, s: 0.95 - (drops[s] if v == "mlp" else 0.0), [STANDARD, MLP], asked=10**9))
    found = said(rows)
    assert "Worse than standard" not in found
    difference = Findings(rows).difference(MQAR, Kind(*MLP), "64x2")
    assert difference is not None and difference.shows is None
    level = family_level(1)
    assert difference.interval.mean == pytest.approx(-0.7 / 3) and difference.interval.level == level
    more = difference.more_seeds
    assert more == (values_needed(mean_interval([-0.05, -0.25, -0.4], level), 0.7 / 3) or 0) - 3
    assert found["Undecided at this size"].endswith(f"{more} more {'seed' if more == 1 else 'seeds'} would decide")


def test_comparisons_of_a_task_share_its_level() -> None:
    accuracy = means(standard=0.98, mlp=0.02, approximate=0.97)
    rows = [*rows_of(accuracy, [STANDARD, MLP, TAYLOR]), *rows_of(accuracy, [STANDARD, MLP], task="copy", settings="")]
    findings = Findings(rows)
    for problem, comparisons in ((MQAR, 2), (Problem("copy", ""), 1)):
        difference = findings.difference(problem, Kind(*MLP), "64x2")
        assert difference is not None and difference.interval.level == family_level(comparisons)


def test_a_difficulty_that_one_lacks_is_told_and_not_compared() -> None:
    accuracy = means(standard=0.98, mlp=0.02)
    rows = [*rows_of(accuracy, [STANDARD]), *rows_of(accuracy, [MLP], levels=(4, 8))]
    assert "Not compared with standard, for want of two seeds that both have at all difficulties" in said(rows)
    (_, _), (_, (cell,)) = heat_map(Findings(rows), "64x2")
    assert cell.flags == "2 of 3 difficulties"


def test_settings_tell_problems_apart() -> None:
    accuracy = means(standard=0.98)
    rows = [*rows_of(accuracy, [STANDARD]), *rows_of(accuracy, [STANDARD], settings="context=256&alphabet=64")]
    findings = Findings(rows)
    assert [findings.label(problem) for problem in findings.problems] == [
        "mqar?context=64&alphabet=64", "mqar?context=256&alphabet=64",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"two models of mqar, standard, .* pairs = 4: give tasks"):
        Findings([*rows, *rows_of(accuracy, [STANDARD], levels=(4,))])


def test_the_smallest_size_that_solves() -> None:
    solves = {"16x2": 0.2, "64x2": 0.97, "256x2": 0.99}

    def rows(of: dict[str, float], spread: float = 0.004) -> list[Row]:
        return [
            row
            for size, mean in of.items()
            for row in rows_of(lambda v, p, _, s, m=mean: m + spread * (s - 1), [STANDARD], size=size, levels=(4,))
        ]

    def smallest(of: dict[str, float], spread: float = 0.004) -> str:
        ((*_, text),) = smallest_rows(Findings(rows(of, spread)))
        return text

    assert smallest(dict(reversed(solves.items()))) == "64x2"
    assert smallest({"16x2": 0.9, "64x2": 0.97}) == "\N{LESS-THAN OR EQUAL TO} 64x2"
    assert smallest({"16x2": 0.2, "64x2": 0.3}) == "none"
    assert smallest({"16x2": 0.2, "64x2": 0.9}) == "open"
    assert smallest({"64x2": 0.97}) == "yes" and smallest({"64x2": 0.3}) == "no"
    assert smallest({"64x2": 0.93}, spread=0.05) == "open"


def claimed(claim: str, of: dict[str, dict[str, float | None]], seeds: Sequence[int] = (0, 1, 2)) -> str:
    """Outcome of a claim, from the means of each task's models."""
    rows = [
        row
        for task, accuracies in of.items()
        for row in rows_of(means(**accuracies), models(*accuracies), task=task, settings="", seeds=seeds)
    ]
    judged = CLAIM[claim].judge(Findings(rows), "64x2")
    for task in of if judged.outcome in ("agrees", "disagrees") else ():
        assert task in judged.numbers
    return judged.outcome


@pytest.mark.parametrize(
    ("claim", "of", "outcome"),
    [
        ("softmax-recalls", {"mqar": {"standard": 0.98}}, "agrees"),
        ("softmax-recalls", {"mqar": {"standard": 0.7}}, "disagrees"),
        ("softmax-recalls", {"mqar": {"standard": 0.9}}, "undecided"),
        ("softmax-recalls", {"copy": {"standard": 0.98}}, "not measured"),
        ("taylor-recalls-less", {"mqar": {"standard": 0.98, "approximate": 0.6}}, "agrees"),
        ("taylor-recalls-less", {"mqar": {"standard": 0.98, "approximate": 0.97}}, "disagrees"),
        ("taylor-recalls-less", {"mqar": {"standard": 0.98, "approximate": 0.9}}, "undecided"),
        ("taylor-recalls-less", {"mqar": {"standard": 0.6, "approximate": 0.1}}, "undecided"),
        ("taylor-recalls-less", {"mqar": {"standard": 0.98, "approximate_even": 0.6}}, "not measured"),
        ("no-mixing", {"mqar": {"standard": 0.98, "mlp": 0.02}, "memorise": {"standard": 1, "mlp": 1}}, "agrees"),
        ("no-mixing", {"mqar": {"standard": 0.98, "mlp": 0.97}, "memorise": {"standard": 1, "mlp": 1}}, "disagrees"),
        ("no-mixing", {"mqar": {"standard": 0.98, "mlp": 0.02}, "memorise": {"standard": 1, "mlp": 0.2}}, "disagrees"),
        ("no-mixing", {"mqar": {"standard": 0.98, "mlp": 0.02}}, "undecided"),
        ("no-mixing", {"memorise": {"standard": 1, "mlp": 1}}, "undecided"),
        ("no-mixing", {"mqar": {"standard": 0.98, "mlp": 0.97}}, "disagrees"),
        ("no-mixing", {"parity": {"standard": 0.5, "mlp": 0.5}}, "undecided"),
        ("one-score", {"mqar": {"standard": 0.98, "nonapproximate": 0.1}}, "agrees"),
        ("one-score", {"mqar": {"standard": 0.98, "nonapproximate": 0.95}}, "disagrees"),
        ("one-score", {"copy": {"standard": 0.98, "nonapproximate": 0.1}}, "not measured"),
        ("fixed-maps", {"mqar": {"standard": 0.98, "rndemb": 0.1, "fixedseq": 0.1, "staticemb": 0.2}}, "agrees"),
        ("fixed-maps", {"mqar": {"standard": 0.98, "rndemb": 0.1, "staticemb": 0.97}}, "disagrees"),
        ("fixed-maps", {"mqar": {"standard": 0.98, "rndemb": 0.1, "staticemb": None}}, "undecided"),
        ("hybrids-recall", {"mqar": {"standard": 0.98, "rndemb_even": 0.97, "rndemb": 0.1}}, "agrees"),
        ("hybrids-recall", {"mqar": {"standard": 0.98, "rndemb_even": 0.97, "fixedseq_even": 0.3}}, "disagrees"),
        ("hybrids-recall", {"mqar": {"standard": 0.98, "rndemb": 0.1, "mlp_even": 0.1}}, "not measured"),
        ("parity", {"parity": {"standard": 0.55, "mlp": 0.5}}, "agrees"),
        ("parity", {"parity": {"standard": 0.55, "mlp": 0.97}}, "disagrees"),
        ("parity", {"parity": {"standard": 0.55, "mlp": 0.9}}, "undecided"),
        ("s5", {"s5": {"standard": 0.1}}, "agrees"),
        ("s5", {"parity": {"standard": 0.1}}, "not measured"),
    ],
)  # fmt: skip
def test_published_claims(claim: str, of: dict[str, dict[str, float | None]], outcome: str) -> None:
    assert claimed(claim, of) == outcome
    if outcome in ("agrees", "disagrees"):
        assert claimed(claim, of, seeds=[0]) == "undecided"


def test_a_task_that_standard_attention_does_not_solve_says_nothing_to_a_claim() -> None:
    solved = {"mqar": {"standard": 0.98, "nonapproximate": 0.1}}
    assert claimed("one-score", solved | {"needle": {"standard": 0.98, "nonapproximate": 0.95}}) == "disagrees"
    rows = [
        row
        for task, of in (solved | {"needle": {"standard": 0.3, "nonapproximate": 0.95}}).items()
        for row in rows_of(means(**of), models(*of), task=task, settings="")
    ]
    judged = CLAIM["one-score"].judge(Findings(rows), "64x2")
    assert (
        judged.outcome == "agrees"
        and "needle: standard attention itself clearly solves no difficulty" in judged.numbers
    )


def grid() -> list[Row]:
    """Two tasks, hybrids, a sweep, a model that failed and one of a single seed."""
    accuracy = means(
        standard=0.98, mlp=0.02, approximate=0.9, rndemb=0.1, rndemb_even=0.97, fixedseq=None, nonapproximate=0.3
    )
    names = models("standard", "mlp", "approximate", "rndemb", "rndemb_even", "fixedseq")
    rates = (1e-3, 3e-3)
    return [
        *rows_of(accuracy, names, rates=rates),
        *rows_of(accuracy, names, task="parity", axis="bits", settings="", chance=0.5, rates=rates),
        *rows_of(accuracy, [("nonapproximate", "uniform")], seeds=[0], rates=rates),
    ]


def test_numbers_on_the_page_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = grid()
    assert write_page(rows, tmp_path) == tmp_path / HTML
    page = Page((tmp_path / HTML).read_text())
    cells = page.cells()
    chosen = [row for row in rows if row.chosen and row.accuracy is not None]
    for key in {(row.task, row.variant, row.pattern, row.difficulty) for row in chosen}:
        values = [row.accuracy for row in chosen if (row.task, row.variant, row.pattern, row.difficulty) == key]
        mean = sum(values) / len(values)
        interval = (
            Findings(rows)
            .cell(Problem(key[0], MQAR.settings if key[0] == "mqar" else ""), Kind(key[1], key[2]), "64x2")
            .interval(key[3])
        )
        assert interval is not None
        ends = "" if interval.low is None else f" [{100 * max(interval.low, 0):.1f}, {100 * min(interval.high, 1):.1f}]"
        assert f"{100 * mean:.1f}{ends}" in cells
    ((_, standard), *_) = heat_map(Findings(rows), "64x2")
    assert f"{standard[0].accuracy} {standard[0].error}" in cells and standard[0].accuracy == "98.0"
    assert "29.6 1 seed" in cells and "\N{EN DASH} 3 failed" in cells
    assert all(f"{name}" in cells for name in ("standard", "rndemb even", "nonapproximate"))
    text = (tmp_path / SUMMARY).read_text()
    assert f"| standard | nothing | {standard[0].accuracy} {standard[0].error} |" in text
    assert "the loss is not a number at step 17" in text


def test_the_ground_of_a_cell_is_relative_to_chance() -> None:
    def paint(accuracy: float, chance: float | None) -> float:
        rows = rows_of(means(standard=accuracy), [STANDARD], chance=chance, seeds=[1])
        ((_, (cell,)),) = heat_map(Findings(rows), "64x2")
        return float(cell.paint.split("/")[1].strip(" )"))

    assert paint(0.5, 0.5) == paint(0.4, 0.5) == 0.0
    assert paint(0.75, 0.5) == pytest.approx(paint(1.0, 0.5) / 2, abs=1e-3)
    assert paint(0.5, None) == pytest.approx(paint(0.75, 0.5), abs=1e-3)


def test_rates_are_shown_and_an_edge_is_told() -> None:
    (accuracies, rates) = problem_pictures(Findings(rows_of(means(standard=0.9), [STANDARD], rates=(1e-2, 1e-3))), MQAR)
    assert "standard: 90.0 % [" in accuracies.chart and "chance: 2.0 % at pairs = 4" in accuracies.chart
    assert "standard: 89.6 % at rate 0.01, taken" in rates.chart and "standard: 44.8 % at rate 0.001<" in rates.chart
    assert "Best at the edge of what was tried, so that another rate might do better: standard." in rates.caption
    perfect = Findings(rows_of(means(standard=1.0), [STANDARD], rates=(1e-2, 1e-3)))
    assert "edge" not in problem_pictures(perfect, MQAR)[1].caption
    inner = Findings(rows_of(means(standard=0.9), [STANDARD], rates=(3e-3, 1e-3, 1e-2)))
    assert "edge" not in problem_pictures(inner, MQAR)[1].caption
    assert len(problem_pictures(Findings(rows_of(means(standard=0.9), [STANDARD])), MQAR)) == 1


def test_difficulties_that_are_trained_apart_have_a_rate_each() -> None:
    rows = [
        dataclasses.replace(row, chosen=(row.lr == 1e-3) == (row.difficulty == 4))
        for row in rows_of(lambda *_: 0.9, [STANDARD], seeds=[0], rates=(1e-3, 1e-2), levels=(4, 8))
    ]
    chart = problem_pictures(Findings(rows), MQAR)[1].chart
    assert "taken at pairs = 4<" in chart and "taken at pairs = 8<" in chart


def test_the_page_is_whole_and_labelled() -> None:
    page = Page(html(Findings(grid())))
    page.assert_self_contained()
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value for _, name, value in page.attributes if name == "aria-labelledby"} <= set(ids)
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == len(set(labels)) == 4


def test_names_and_reasons_are_escaped() -> None:
    hostile = {
        "task": "<i>mqar</i>", "variant": '"><img src=x>', "settings": "<b>&</b>", "axis": "<u>pairs</u>",
        "pattern": "<s>even</s>", "size": "<q>64x2</q>", "reason": "<script>alert(1)</script> | [a](b)",
    }  # fmt: skip
    told = [row for row in grid() if row.task == "mqar" and row.variant in ("standard", "mlp")]
    failed = [row for row in grid() if row.task == "mqar" and row.variant == "fixedseq"]
    rows = [dataclasses.replace(row, **(hostile if row.variant == "mlp" else {})) for row in told]
    findings = Findings([*rows, *(dataclasses.replace(row, **(hostile | {"variant": "x"})) for row in failed)])
    for text in (html(findings), summary(findings)):
        for tag in ("<i>", "<img", "<b>", "<u>", "<s>", "<q>", "<script>alert"):
            assert tag not in text
        assert "&lt;img" in text
    assert "\\[a\\](b)" in summary(findings)
    Page(html(findings)).assert_self_contained()


def test_any_part_of_the_rows_is_a_page() -> None:
    rows = grid()
    for part in ([], rows[:1], rows[:7], [row for row in rows if not row.chosen],
                 [row for row in rows if row.state == "failed"], rows[::5]):  # fmt: skip
        Page(html(Findings(part)))
        summary(Findings(part))
    assert "No model is done yet." in html(Findings([]))


def test_the_words_say_what_they_mean() -> None:
    text = summary(Findings(grid()))
    assert f"{100 * MARGIN:g} points" in text and f"above {100 * SOLVED:g} %" in text
    assert "where 3 of 3 seeds succeed, up to 63 % of all seeds may not" in text
    assert "may not" not in summary(Findings(rows_of(means(standard=0.9), [STANDARD], seeds=[0])))
    swept = [dataclasses.replace(row, chosen=False) for row in rows_of(means(standard=0.9), [STANDARD], seeds=[0])]
    assert "under way" in summary(Findings(swept))


def test_variants_that_relax_the_same_stand_together() -> None:
    names = ["rndemb", "mlp", "staticemb", "approximate", "fixedseq", "standard", "nonapproximate", "of a plugin"]
    findings = Findings(rows_of(means(**dict.fromkeys(names, 0.5)), [(name, "uniform") for name in names]))
    order = [kind.variant for kind in findings.kinds]
    assert order[0] == "standard" and set(order) == set(names)
    assert abs(order.index("rndemb") - order.index("fixedseq")) == 1
    assert abs(order.index("approximate") - order.index("nonapproximate")) == 1
    told = [line.split(" | ")[:2] for line in summary(findings).splitlines() if line.startswith("| ")]
    assert ["| rndemb", "sequence dependency"] in told and ["| of a plugin", "\N{EN DASH}"] in told
    assert ["| standard", "nothing"] in told and ["| mlp", "token mixing"] in told


def test_charts_are_by_what_is_relaxed_where_one_would_be_crowded() -> None:
    names = [*(f"mine {number}" for number in range(12)), "mlp", "rndemb", "fixedseq", "standard"]
    findings = Findings(rows_of(means(**dict.fromkeys(names, 0.5)), [(name, "uniform") for name in names]))
    captions = [picture.caption for picture in problem_pictures(findings, findings.problems[0])]
    by_difficulty = [caption for caption in captions if "accuracy by pairs" in caption]
    assert len(by_difficulty) == 3
    assert any("relaxing sequence dependency" in caption for caption in by_difficulty)
    assert any("relaxing what nobody has said" in caption for caption in by_difficulty)
