"""What the races of `decode.py` say: times a token, ratios to the peer, and the tables."""

from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.kernels.clock import ratio
from benchmarks.machine import markdown_table

Case = dict[str, Any]
"""`kind`, `batch`, `length` (tokens held before the first step); `samples`, seconds a token by contestant, a group of
contestants that raced together each; `contestants`, what :func:`summarize` says of each, or its `failure`."""
TITLES = {
    "step": "A step from a cache that grows",
    "static": "A step from a static cache, compiled",
    "generate": "`generate`, greedy, prompt included",
    "generate static": "`generate` with a static cache, greedy, prompt included",
    "overhead": "A step of the smallest model from one token: what the host takes",
}
"""Kinds of cases, in the order of the report."""


def summarize(samples: dict[str, list[float]], batch: int, peer: str) -> dict[str, dict[str, Any]]:
    """By contestant its figures; `ratio` is its speed over the peer's, the median of the rounds' ratios.

    Args:
        samples: seconds a step, a round each.
    """
    baseline = samples.get(peer)
    return {
        name: {
            "ms_a_token": 1e3 * median(seconds),
            "fastest_ms": 1e3 * min(seconds),
            "slowest_ms": 1e3 * max(seconds),
            "tokens_per_second": batch / median(seconds),
            "ratio": ratio(baseline, seconds) if baseline else None,
        }
        for name, seconds in samples.items()
    }


def progress(case: Case) -> str:
    """A case in a line."""
    shown = [f"{name} {_time(row)}" for name, row in case["contestants"].items()]
    return f"{case['kind']}, {case['batch']} x {case['length']}, ms a token: {', '.join(shown)}"


def tables(cases: list[Case], peer: str) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows: a table of times a kind, and one of the growing caches' bytes."""
    found = []
    for kind, title in TITLES.items():
        chosen = [case for case in cases if case["kind"] == kind]
        if chosen:
            found.append(_table(f"{title}: ms a token (times as fast as {peer})", chosen, _time))
        if kind == "step" and chosen:
            found.append(_table("Cache: MiB of the batch (+ MiB once for all rows)", chosen, _memory))
    return found


def markdown(cases: list[Case], peer: str) -> str:
    """All tables."""
    return "\n".join(f"**{title}**\n\n{markdown_table(columns, rows)}" for title, columns, rows in tables(cases, peer))


def _table(
    title: str, cases: list[Case], cell: Callable[[dict[str, Any]], str]
) -> tuple[str, list[str], list[list[str]]]:
    cases = sorted(cases, key=lambda case: (case["batch"], case["length"]))
    names = dict.fromkeys(name for case in cases for name in case["contestants"])
    columns = ["contestant", *(f"{case['batch']} x {case['length']}" for case in cases)]
    rows = [
        [name, *(cell(case["contestants"][name]) if name in case["contestants"] else "" for case in cases)]
        for name in names
    ]
    return title, columns, rows


def _time(row: dict[str, Any]) -> str:
    return "failed" if "failure" in row else time_and_ratio(row["ms_a_token"], row["ratio"])


def _memory(row: dict[str, Any]) -> str:
    return "" if "failure" in row else mebibytes(row["cache_bytes"], row["fixed_bytes"])


def time_and_ratio(milliseconds: float, speed: float | None) -> str:
    """Such as `11.42 (2.23)`."""
    return f"{milliseconds:.2f}" + (f" ({speed:.2f})" if speed else "")


def mebibytes(of_batch: int, of_model: int) -> str:
    """Such as `1,536.0 + 96.0`; what is held once for all rows is left out where there is nothing."""
    shown = [
        f"{held / 2**20:,.1f}" if held == 0 or held >= 2**20 else f"{held / 2**20:.2g}" for held in (of_batch, of_model)
    ]
    return " + ".join(shown if of_model else shown[:1])
