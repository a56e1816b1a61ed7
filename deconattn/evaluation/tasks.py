"""The paper's nine benchmarks, and the columns of its table 1."""

from dataclasses import dataclass

from deconattn.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """One task of the harness.

    Attributes:
        name: the harness's.
        folder: below the harness's `lm_eval/tasks`, where it is defined.
        split: the scored split of the hub's data set; `test` where the harness has one, else `validation`.
        file: name in a local folder, less `.jsonl` or `.jsonl.zst`.
        fields: what the harness reads of a document.
    """

    name: str
    folder: str
    split: str
    file: str
    fields: tuple[str, ...]


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("arc_easy", "arc", "test", "arc_easy.test", ("question", "choices", "answerKey")),
        Benchmark("boolq", "super_glue/boolq", "validation", "boolq.validation", ("passage", "question", "label")),
        Benchmark(
            "copa",
            "super_glue/copa",
            "validation",
            "copa.validation",
            ("premise", "choice1", "choice2", "question", "label"),
        ),
        Benchmark("piqa", "piqa", "validation", "piqa.validation", ("goal", "sol1", "sol2", "label")),
        Benchmark(
            "sciq",
            "sciq",
            "test",
            "sciq.test",
            ("support", "question", "distractor1", "distractor2", "distractor3", "correct_answer"),
        ),
        Benchmark("rte", "glue/rte", "validation", "rte.validation", ("sentence1", "sentence2", "label")),
        Benchmark(
            "hellaswag",
            "hellaswag",
            "validation",
            "hellaswag.validation",
            ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        ),
        Benchmark("wikitext", "wikitext", "test", "wikitext2.test.pages", ("page",)),
        Benchmark("lambada_openai", "lambada", "test", "lambada_openai.test", ("text",)),
    )
}


@dataclass(frozen=True)
class Column:
    """A figure of table 1.

    Attributes:
        percent: an accuracy, shown in per cent; else a perplexity.
        averaged: one of the seven accuracies that `Avg` is made of.
    """

    title: str
    task: str
    metric: str
    percent: bool = True
    averaged: bool = True


COLUMNS = (
    Column("ARC-E", "arc_easy", "acc"),
    Column("BoolQ", "boolq", "acc"),
    Column("COPA", "copa", "acc"),
    Column("PIQA", "piqa", "acc"),
    Column("SciQ", "sciq", "acc"),
    Column("RTE", "rte", "acc"),
    Column("HellaSwag", "hellaswag", "acc"),
    Column("Wiki ppl", "wikitext", "word_perplexity", percent=False, averaged=False),
    Column("LAMBADA ppl", "lambada_openai", "perplexity", percent=False, averaged=False),
    Column("LAMBADA acc", "lambada_openai", "acc", averaged=False),
)
"""Columns in the table's order; `Avg` stands after those that it averages."""


def benchmarks(names: str) -> list[Benchmark]:
    """Parse a comma-separated list of benchmarks; returned in the table's order, all nine for an empty list.

    Raises:
        UserError: a name that is none of them.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in BENCHMARKS:
            raise UserError(f"--tasks: there is no task {name!r} here: choose from {', '.join(BENCHMARKS)}")
    return [benchmark for name, benchmark in BENCHMARKS.items() if not wanted or name in wanted]
