"""What the rounds of `pack.py` say: speeds, ratios within rounds, and the table."""

from statistics import median
from typing import Any

from benchmarks.machine import markdown_table
from benchmarks.packing.contestants import GIGATOKEN, OURS, TOKENIZERS, WARM, Sample

COLUMNS = [
    "contestant",
    "s",
    "of them start-up",
    "CPU s",
    "M tokens/s",
    "MB/s",
    "ours: times as fast",
    "in CPU time",
    "of bare gigatoken",
    "in CPU time",
    "without start-up",
    "in CPU time",
    "of bare tokenizers",
    "in CPU time",
    "peak GiB",
    "largest process GiB",
]
ON_TERMINAL = (0, 1, 3, 4, 5, 6, 8, 10, 12, 14)
"""Those of them that a terminal has room for."""
Row = dict[str, Any]


def summarize(
    samples: dict[str, list[Sample]], tokens: int, text_bytes: int, startup: dict[str, list[Sample]]
) -> dict[str, Row]:
    """By contestant its figures: medians over the rounds, of ratios the median of the rounds' ratios.

    `ratio` is our speed over its, `of_...` its speed over that of a bare tokenizer, `..._running` the same without
    start-up, as it would be for a corpus without end; None where there is nothing to compare.

    Args:
        samples: of each the rounds in order; all have as many.
        startup: what a corpus of one document took in each round.
    """
    return {
        name: {
            "seconds": median(row["seconds"] for row in rows),
            "startup_seconds": median(row["seconds"] for row in startup[name]) if name in startup else None,
            "cpu_seconds": median(row["cpu_seconds"] for row in rows),
            "tokens_per_second": median(tokens / row["seconds"] for row in rows),
            "mb_per_second": median(text_bytes / 1e6 / row["seconds"] for row in rows),
            "ratio": _ratio(rows, samples.get(OURS), "seconds"),
            "cpu_ratio": _ratio(rows, samples.get(OURS), "cpu_seconds"),
            **_parts("of_gigatoken", samples.get(GIGATOKEN), rows, startup.get(name)),
            **_parts("of_warm_gigatoken", samples.get(WARM), rows, startup.get(name)),
            **_parts("of_tokenizers", samples.get(TOKENIZERS), rows, startup.get(name)),
            "peak_gib": max(row["peak_gib"] for row in rows),
            "largest_gib": max(row["largest_gib"] for row in rows),
        }
        for name, rows in samples.items()
    }


def cells(name: str, row: Row) -> list[str]:
    """A row of the table."""
    return [
        name,
        f"{row['seconds']:.2f}",
        _shown(row["startup_seconds"], ".2f"),
        f"{row['cpu_seconds']:.2f}",
        f"{row['tokens_per_second'] / 1e6:.2f}",
        f"{row['mb_per_second']:.1f}",
        _shown(row["ratio"], ".2f"),
        _shown(row["cpu_ratio"], ".2f"),
        _shown(row["of_gigatoken"], ".0%"),
        _shown(row["of_gigatoken_cpu"], ".0%"),
        _shown(row["of_gigatoken_running"], ".0%"),
        _shown(row["of_gigatoken_running_cpu"], ".0%"),
        _shown(row["of_tokenizers"], ".0%"),
        _shown(row["of_tokenizers_cpu"], ".0%"),
        f"{row['peak_gib']:.2f}",
        f"{row['largest_gib']:.2f}",
    ]


def markdown(result: dict[str, Any], machine: str, command: str) -> str:
    """The whole report."""
    corpus = result["corpus"]
    lines = [
        f"# Packing {corpus['text_bytes'] / 1e6:.1f} MB of text on {result['options']['workers']} cores",
        "",
        f"{corpus['documents']:,} documents, {corpus['tokens']:,} tokens, separators included; {machine};",
        ", ".join(f"{name} {version}" for name, version in result["libraries"].items()) + f". `{command}`",
        "",
        markdown_table(COLUMNS, [cells(name, row) for name, row in result["summary"].items()]),
        *notes(result),
    ]
    return "\n".join(lines) + "\n"


def notes(result: dict[str, Any]) -> list[str]:
    """Who did not take part and why, and how the token streams compare, a line each."""
    lines = [f"- {name}: absent, {reason}" for name, reason in result["absent"].items()]
    for name, failure in result["failures"].items():
        said = failure.strip().splitlines()
        lines.append(f"- {name}: failed, {said[0]} {said[-1] if len(said) > 1 else ''}".rstrip())
    reference = result["reference"]
    identical = [name for name, difference in result["differences"].items() if difference is None]
    if identical:
        lines.append(f"- tokens identical to those of {reference}, document by document: {', '.join(identical)}")
    for name, difference in result["differences"].items():
        if difference is not None:
            lines.append(f"- {name} differs from {reference} in {difference}")
    return lines


def _parts(name: str, bare: list[Sample] | None, rows: list[Sample], startup: list[Sample] | None) -> dict[str, Any]:
    """A contestant's speed over a bare tokenizer's, in wall and CPU time, with and without its start-up."""
    running = [_without(row, first) for row, first in zip(rows, startup, strict=True)] if startup else None
    return {
        name: _ratio(bare, rows, "seconds"),
        f"{name}_cpu": _ratio(bare, rows, "cpu_seconds"),
        f"{name}_running": _ratio(bare, running, "seconds"),
        f"{name}_running_cpu": _ratio(bare, running, "cpu_seconds"),
    }


def _without(row: Sample, startup: Sample) -> Sample:
    return {unit: row[unit] - startup[unit] for unit in ("seconds", "cpu_seconds")}


def _ratio(rows: list[Sample] | None, baseline: list[Sample] | None, unit: str) -> float | None:
    """Median over the rounds; None where one of them did not run, or took no longer than to start."""
    if not rows or not baseline or min(one[unit] for one in baseline) <= 0:
        return None
    return median(row[unit] / one[unit] for row, one in zip(rows, baseline, strict=True))


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
