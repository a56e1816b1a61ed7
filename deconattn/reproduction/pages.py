"""The report: report.html, which needs nothing else, report.md and data.json."""

import json
from pathlib import Path
from typing import Any

from deconattn import durable
from deconattn.pages.frame import render
from deconattn.reproduction import paper
from deconattn.reproduction.pictures import loss_pictures, radar_pictures, table_pictures
from deconattn.reproduction.progress_view import KINDS, NOTHING
from deconattn.reproduction.tables import HEADINGS, TableRow, duration, lines_of, size_name
from deconattn.shown import markdown_text, one_line

HTML, MARKDOWN, DATA = "report.html", "report.md", "data.json"

PAPER_TOKENS = 15_000_000_000

Data = dict[str, Any]


def write_pages(data: Data, out: Path) -> Path:
    """Write all three, each whole; returns the page's path."""
    durable.write_text(out / DATA, json.dumps(data, indent=1, allow_nan=False) + "\n")
    durable.write_text(out / MARKDOWN, markdown(data))
    durable.write_text(out / HTML, html(data))
    return out / HTML


def html(data: Data) -> str:
    """The page, without a reference to anything outside it."""
    sections = [
        {
            "id": f"table-{name}",
            "heading": HEADINGS[name],
            "caption": _caption(name, table),
            "columns": table["columns"],
            "lines": lines_of(table),
            "pictures": table_pictures(name, table),
        }
        for name, table in data["tables"].items()
    ]
    return render(
        "deconattn.reproduction",
        "report.html.j2",
        title=title(data),
        lede=lede(data),
        sections=sections,
        losses=loss_pictures(data),
        radars=radar_pictures(data),
        data=data,
        verdict=verdict,
        duration=duration,
        nothing=NOTHING,
        kinds=KINDS,
        unmeasured=dict.fromkeys(("seconds", "tokens_per_second", "memory_gib", "environment")),
    )


def markdown(data: Data) -> str:
    """The tables and the words."""
    parts = [f"# {title(data)}", markdown_text(lede(data)), "## What this shows"]
    parts.append(
        "\n".join(
            f"- **{verdict(claim)}** ({markdown_text(claim['models'])}): "
            + markdown_text(f"{claim['finding']} {claim['numbers']}")
            for claim in data["claims"]
        )
        or "Nothing yet."
    )
    for name, table in data["tables"].items():
        parts += [f"## {HEADINGS[name]}", _markdown_table(table["columns"], lines_of(table))]
    parts.append("## Runs")
    heading = (
        "| run | state | parameters | tokens | wall time | tokens/s | memory, GiB |\n| --- | --- |" + " ---: |" * 5
    )
    rows = []
    for name, run in data["runs"].items():
        found = run["training"]
        speed, memory = found.get("tokens_per_second"), found.get("memory_gib")
        cells = [markdown_text(name), run["state"], f"{run['parameters']:,}", f"{run['planned_tokens']:,}"]
        cells += [duration(found.get("seconds")), f"{speed:,.0f}" if speed else NOTHING]
        rows.append("| " + " | ".join([*cells, f"{memory:.1f}" if memory else NOTHING]) + " |")
    parts.append("\n".join([heading, *rows]))
    for failure in data["failed"]:
        log = "\n".join(f"    {one_line(line)}" for line in failure["lines"])
        what = f"{failure['run']}, {KINDS[failure['kind']]} ({failure['reason']})"
        parts.append(f"Failed: {markdown_text(what)}\n\n{log}")
    versions = ", ".join(f"{name} {' / '.join(v)}" for name, v in data["versions"].items())
    parts.append(f"Versions: {markdown_text(versions)}")
    return "\n\n".join(parts) + "\n"


def title(data: Data) -> str:
    """Title of the report: the tables that were reproduced."""
    names = [HEADINGS[name].split(":")[0].lower() for name in data["tables"]]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"Deconstructing Attention: {listed}, reproduced"


def lede(data: Data) -> str:
    """Opening paragraph: the models, what is missing, and how far the numbers compare."""
    jobs, runs = data["jobs"], data["runs"].values()
    tokens = sorted({run["planned_tokens"] for run in runs})
    sizes = ", ".join(dict.fromkeys(size_name(run["size"]) for run in runs))
    span = f"{tokens[0]:,}" if len(tokens) == 1 else f"{tokens[0]:,} to {tokens[-1]:,}"
    words = [f"{len(runs)} {'model' if len(runs) == 1 else 'models'} ({sizes}), each trained on {span} tokens."]
    if tokens[-1] < PAPER_TOKENS:
        words.append(
            "The paper's saw 15 billion and more: compare the order of the rows and their distances, not the "
            "numbers themselves."
        )
    if not data["comparable"]:
        words.append("Benchmarks were cut to their first documents (--limit): the scores compare with no others.")
    if jobs["done"] < jobs["all"]:
        words.append(f"{jobs['done']} of {jobs['all']} jobs are done; failed: {len(data['failed'])}.")
    return " ".join(words)


def _caption(name: str, table: Data) -> str:
    """Caption of a table: the units of its cells."""
    words = ["WikiText perplexity" if name == "4" else "Ours ± standard error, accuracies in per cent"]
    if any(row["paper"] for row in table["rows"]):
        words.append(f"beneath, in grey, what the paper prints of its {size_name(paper.SIZE)} models")
    return "; ".join(words) + "."


def verdict(claim: Data) -> str:
    """Whether the paper's finding shows here, in two or three words."""
    return {True: "Shows", False: "Does not show", None: "Open"}[claim["shows"]]


def _markdown_table(columns: list[str], lines: list[TableRow]) -> str:
    rows = ["| model | layers | " + " | ".join(columns) + " |", "| --- | --- |" + " ---: |" * len(columns)]
    for line in lines:
        cells = [line.label, line.layers if line.state == "done" else f"{line.layers} ({line.state})"]
        for cell in line.cells:
            error = f" ± {cell.error}" if cell.error else ""
            cells.append(cell.ours + error + (f" (paper {cell.paper})" if cell.paper else ""))
        rows.append("| " + " | ".join(markdown_text(text) for text in cells) + " |")
    return "\n".join(rows)
