"""The measurements of operations.py as Markdown: errors, ratios to the baseline, and a table of times a precision."""

from collections.abc import Sequence
from typing import Any

from benchmarks.machine import markdown_table

Row = dict[str, Any]
"""Of one job: `kind`, and with it `case` (or `module`), `precision`, `length`; its result, or `failure`, or `skipped`.
"""
_OURS = "ours"


def add_shares(row: Row, ceilings: Row) -> None:
    """Note which part of the device's bandwidth and of its products' rate each contestant reached with what the
    formula asks for: more than there is where it has found a shorter way. Other formulas ask for something else."""
    for kind in ("forward", "training"):
        for entry in row["contestants"].values():
            if kind in entry and entry["same_formula"]:
                seconds = entry[kind]["seconds"]
                entry[kind]["bandwidth_share"] = row[kind]["bytes"] / seconds / ceilings["bytes_per_second"]
                entry[kind]["compute_share"] = (
                    row[kind]["flops"] / seconds / ceilings["flops_per_second"][row["precision"]]
                )


def line(row: Row) -> str:
    """A job in a line, for the log."""
    label = " ".join(str(row[key]) for key in ("kind", "case", "module", "pass", "precision", "length") if key in row)
    if "skipped" in row or "failure" in row:
        return f"{label}: {row.get('skipped') or 'FAILED: ' + row['failure'].splitlines()[0]}"
    match row["kind"]:
        case "ceilings":
            return f"{label}: {_ceilings(row)}"
        case "check":
            shown = [f"{name} {_worst(entry)}" for name, entry in row["contestants"].items()]
        case "time":
            shown = [f"{name} {_raced(entry)}" for name, entry in row["contestants"].items()]
        case _:
            shown = [f"{row['fastest']} in {row['ratio']:.2f} of the default's time" if row["passed"] else "no default"]
    return f"{label}: {'; '.join(shown)}{'' if row['passed'] else '  FAILED'}"


def measurements(rows: Sequence[Row], precisions: Sequence[str], lengths: Sequence[int]) -> str:
    """The whole report of a run."""
    parts = [f"{_ceilings(row)}\n" for row in rows if "flops_per_second" in row]
    for precision in dict.fromkeys([*precisions, *(row["precision"] for row in rows if "precision" in row)]):
        mine = [row for row in rows if row.get("precision") == precision]
        timed = [row for row in mine if row["kind"] == "time" and "contestants" in row]
        if timed:
            parts += [f"## {precision}\n", _ratios(timed, sorted(lengths)), _times(timed)]
        checked = [row for row in mine if row["kind"] == "check" and "contestants" in row]
        if checked:
            parts += [f"Errors in {precision}, relative to the formula in float64:\n", _errors(checked)]
    return "\n".join([*parts, _unfinished(rows)]).rstrip() + "\n"


def tunings(rows: Sequence[Row]) -> str:
    """The fastest candidate of each kernel module beside its default."""
    table = []
    for row in rows:
        if fastest := row.get("fastest"):
            milliseconds = [f"{row['seconds'][name] * 1e3:.3f}" for name in ("default", fastest)]
            cells = [row["module"], row["pass"], row["precision"], str(row["length"]), *milliseconds, fastest]
            table.append([*cells, f"{row['ratio']:.2f}", f"`{row['launches'][fastest]}`"])
    columns = "module|pass|precision|length|default, ms|fastest, ms|fastest|ratio|launch".split("|")
    return "\n".join([markdown_table(columns, table), _unfinished(rows)]).rstrip() + "\n"


def _ratios(timed: Sequence[Row], lengths: Sequence[int]) -> str:
    table = []
    for name in dict.fromkeys(row["case"] for row in timed):
        ratios = {row["length"]: _ratio(row["contestants"][_OURS]) for row in timed if row["case"] == name}
        table.append([name, *(ratios.get(length, "") for length in lengths)])
    title = "Forward and backward, time of ours over the fastest baseline's (SDPA's, or of all logits at once):\n\n"
    return title + markdown_table(["tokens", *map(str, lengths)], table)


def _times(timed: Sequence[Row]) -> str:
    table = []
    for row in timed:
        for name, entry in row["contestants"].items():
            shown = entry.get("training", {})
            shares = [f"{100 * shown[key]:.0f}" if key in shown else "" for key in ("bandwidth_share", "compute_share")]
            times = [_milliseconds(entry, kind) for kind in ("forward", "training")]
            note = entry.get("failure", entry["note"]).replace("\n", " ").replace("|", "/")[:100]
            cells = [row["case"], str(row["length"]), str(row["rows"]), name, *times, _ratio(entry), *shares, note]
            table.append(cells)
    columns = "case|length|rows|contestant|forward, ms|both, ms|ratio|% of copy|% of matmul|note"
    return markdown_table(columns.split("|"), table)


def _errors(checked: Sequence[Row]) -> str:
    table = [
        [row["case"], name, _worst(entry), f"{row['tolerance']:.0e}", _passed(entry)]
        for row in checked
        for name, entry in row["contestants"].items()
    ]
    return markdown_table(["case", "contestant", "largest relative error", "tolerance", "passed"], table)


def _unfinished(rows: Sequence[Row]) -> str:
    """Whatever has no table: failed as a whole, or not begun in time."""
    return "".join(f"- {line(row)}\n" for row in rows if "failure" in row or "skipped" in row)


def _ceilings(row: Row) -> str:
    rates = (f"{precision} {rate / 1e12:.3g} TFLOP/s" for precision, rate in row["flops_per_second"].items())
    return f"copy {row['bytes_per_second'] / 1e9:.4g} GB/s, matmul {', '.join(rates)}"


def _milliseconds(entry: Row, kind: str) -> str:
    return f"{entry[kind]['seconds'] * 1e3:.3f}" if kind in entry else "failed"


def _ratio(entry: Row) -> str:
    ratio = entry.get("training", {}).get("ratio")
    return "" if ratio is None else f"{ratio:.2f}"


def _worst(entry: Row) -> str:
    return f"{entry['worst']:.1e}" if "worst" in entry else entry["failure"].splitlines()[0][:60]


def _passed(entry: Row) -> str:
    return ("yes" if entry["passed"] else "NO") if entry["ours"] else "a peer"


def _raced(entry: Row) -> str:
    shown = _milliseconds(entry, "training")
    return f"{shown} ms (ratio {_ratio(entry) or 'unknown'})" if "training" in entry else shown
