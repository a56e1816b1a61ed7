"""From a table of the paper to runs and jobs."""

import dataclasses
from collections import Counter
from typing import Any

import pytest

from deconattn.errors import UserError
from deconattn.reproduction.estimate import deal, read_shard
from deconattn.reproduction.paper import RANDOM_GUESS, printed
from deconattn.reproduction.plans import (
    NINE,
    SIX,
    TRIAL_LIMIT,
    Entry,
    Request,
    Run,
    first_corpus,
    make_plan,
    training_flags,
    with_limit,
)


def request(*table: str, **changes: Any) -> Request:
    return Request(table=table, **changes)  # type: ignore[arg-type]


def test_table_1_is_standard_and_six_variants_uniform_hybrid_and_skipped() -> None:
    plan = make_plan(request("1"))
    rows = [(entry.run.variant, entry.run.pattern, entry.kind) for entry in plan.tables["1"]]
    expected = [("standard", "uniform", "evaluate")]
    for variant in SIX:
        expected += [(variant, "uniform", "evaluate"), (variant, "even", "evaluate"), (variant, "even", "skip")]
    assert rows == expected
    assert len(plan.runs) == 13 and {(run.size, run.tokens) for run in plan.runs} == {("500m", 15_000_000_000)}
    assert Counter(job.kind for job in plan.jobs) == {"train": 13, "evaluate": 13, "skip": 6, "analyze": 13}


def test_a_training_stands_before_what_is_measured_of_it() -> None:
    seen = set()
    for job in make_plan(request("1", "2", "3", "4", "figure3", "figure4")).jobs:
        assert job.kind == "train" or job.run in seen
        seen.add(job.run)


@pytest.mark.parametrize(
    ("table", "runs", "sizes", "tokens"),
    [
        ("2", 7, {"1.7b"}, {45_000_000_000}),
        ("3", 13, {"500m"}, {15_000_000_000}),
        ("4", 7, {"500m"}, {15_000_000_000}),
        ("figure3", 19, {"500m"}, {15_000_000_000}),
        ("figure4", 39, {"70m", "160m", "500m"}, {15_000_000_000}),
    ],
)
def test_the_papers_own_defaults(table: str, runs: int, sizes: set[str], tokens: set[int]) -> None:
    plan = make_plan(request(table))
    assert len(plan.runs) == runs
    assert {run.size for run in plan.runs} == sizes and {run.tokens for run in plan.runs} == tokens
    assert len({run.name for run in plan.runs}) == runs


def test_what_is_particular_to_each_table() -> None:
    assert {run.pattern for run in make_plan(request("2")).runs if run.variant != "standard"} == {"even"}
    assert {run.key_value_heads for run in make_plan(request("3")).runs} == {2}
    assert {job.kind for job in make_plan(request("4")).jobs} == {"train", "contexts", "analyze"}
    figure = [run for run in make_plan(request("figure3")).runs if run.variant != "standard"]
    assert {run.variant for run in figure} == {"rndemb", "nonapproximate"}
    assert [run.pattern for run in figure if run.variant == "rndemb"] == list(NINE)


def test_tables_share_their_runs() -> None:
    both = make_plan(request("1", "4"))
    assert both.runs == make_plan(request("1")).runs
    kinds = [job.kind for job in both.jobs if (job.run.variant, job.run.pattern) == ("mlp", "uniform")]
    assert kinds == ["train", "evaluate", "contexts", "analyze"]


def test_flags_narrow_a_plan() -> None:
    plan = make_plan(request("1", size=("tiny",), tokens=(1000,), variants=("standard", "mlp"), patterns=("1:3",)))
    assert [run.name for run in plan.runs] == ["tiny-standard-uniform", "tiny-mlp-1to3"]
    assert {run.tokens for run in plan.runs} == {1000}
    assert {run.tokens for run in make_plan(request("1", size=("tiny",))).runs} == {None}
    assert "analyze" not in {job.kind for job in make_plan(request("1", analysis=False)).jobs}


def test_the_flags_of_a_run() -> None:
    asked = request("3", data=("a:2", "b"), train="--micro-batch-size 4 --precision 'bf16'")
    flags = training_flags(asked, Run("500m", "mlp", "even", 7, 10, 2))
    assert (
        flags
        == (
            "--size 500m --variant mlp --pattern even --seed 7 --num-key-value-heads 2 --tokens 10 --data a:2 b "
            "--micro-batch-size 4 --precision bf16"
        ).split()
    )
    assert first_corpus(asked) == "a" and first_corpus(request("1")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": (0,)}, "--tokens 0: give 1 or more"),
        ({"limit": -1}, "--limit -1: give 1 or more, or 0 for all documents"),
        ({"table": ()}, "--table names nothing"),
        ({"variants": ("mlp", "mlp")}, "--variants mlp is given twice"),
        ({"train": "--seed 3"}, "--train --seed: the plan gives each run its --seed; leave it out"),
        ({"train": "--size=70m"}, "--train --size"),
        ({"train": "--fixed-text 'a"}, "match its quotes"),
        ({"context_lengths": (0,)}, "--context-lengths 0"),
        ({"key_value_heads": 0}, "--key-value-heads 0"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(dataclasses.replace(Request(), **changes))


def test_tiny_models_are_scored_on_a_part_of_the_documents_unless_told() -> None:
    tiny, older = Request(size=("tiny",)), Request(size=("tiny",), limit=None)
    assert with_limit(tiny, None).limit == with_limit(tiny, with_limit(tiny, None)).limit == TRIAL_LIMIT
    assert with_limit(tiny, older).limit is None  # a folder that was begun when all were scored
    for other in (Request(), Request(size=("tiny", "70m")), Request(size=("tiny",), limit=0)):
        assert with_limit(other, None) == other


def test_shards_are_even_and_all_machines_agree() -> None:
    costs = [9.0, 1.0, 8.0, 2.0, 5.0, 5.0]
    shards = deal(costs, 3)
    assert shards == deal(list(costs), 3) and set(shards) == {1, 2, 3}
    assert [sum(c for c, s in zip(costs, shards, strict=True) if s == n) for n in (1, 2, 3)] == [10.0, 10.0, 10.0]
    assert deal([1.0], 3) == [1] and deal([], 2) == []


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_no_shard(text: str) -> None:
    with pytest.raises(UserError, match=f"--shard {text}: give I/N"):
        read_shard(text)


def test_a_shard() -> None:
    assert read_shard("2/3") == (2, 3)


def test_the_papers_numbers_stand_beside_their_rows() -> None:
    plan = make_plan(request("1", "4", "figure4"))
    beside = {(e.run.variant, e.run.pattern, e.kind): printed("1", e) for e in plan.tables["1"]}
    assert beside["standard", "uniform", "evaluate"] == {
        "Avg": 51.9, "Wiki ppl": 38.1, "LAMBADA ppl": 134.1, "LAMBADA acc": 22.9,
    }  # fmt: skip
    assert beside["fixedseq", "even", "skip"]["Wiki ppl"] == 2e5 and all(beside.values())
    assert [bool(printed("4", entry)) for entry in plan.tables["4"]] == [True, True, False, True, False, False, False]
    assert {e.run.size for e in plan.tables["figure4"] if printed("figure4", e)} == {"500m"}
    assert printed("1", Entry(Run("500m", "mlp", "odd", 1, 1), "evaluate")) == {} and RANDOM_GUESS["Avg"] == 39.9
