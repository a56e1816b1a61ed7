"""The report: report.html, which needs nothing else, report.md and data.json."""

import json
from pathlib import Path
from typing import Any

from deconattn import durable
from deconattn.pages.frame import render
from deconattn.reproduction import paper
from deconattn.reproduction.cells import LOSS
from deconattn.reproduction.pictures import loss_pictures, radar_pictures, sweep_pictures, table_pictures
from deconattn.reproduction.progress_view import KINDS, NOTHING
from deconattn.reproduction.scaling import fit_words
from deconattn.reproduction.tables import (
    HEADINGS,
    TableRow,
    differences_of,
    duration,
    layers_of,
    lines_of,
    shown,
    size_name,
)
from deconattn.shown import markdown_text, one_line
from deconattn.statistics import LEVEL

HTML, MARKDOWN, DATA = "report.html", "report.md", "data.json"

PAPER_TOKENS = 15_000_000_000
FITTED = (
    "Fits of validation loss = floor + A · x^(-exponent), x being parameters or tokens, to the means over seeds, with "
    "95 % intervals over the seeds' own fits:"
)

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
            "caption": _caption(name, table, data),
            "columns": table["columns"],
            "lines": lines_of(table),
            "differences": differences_of(table),
            "compared": compared(table),
            "pictures": table_pictures(name, table, data["fits"].get(name, ())),
            "fits": [fit_words(fit) for fit in data["fits"].get(name, ())],
        }
        for name, table in data["tables"].items()
    ]
    return render(
        "deconattn.reproduction",
        "report.html.j2",
        title=title(data),
        lede=lede(data),
        sections=sections,
        sweeps=sweep_pictures(data),
        losses=loss_pictures(data),
        radars=radar_pictures(data),
        data=data,
        verdict=verdict,
        duration=duration,
        nothing=NOTHING,
        kinds=KINDS,
        fitted=FITTED,
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
        caption = markdown_text(_caption(name, table, data))
        parts += [f"## {HEADINGS[name]}", caption, _markdown_table(table["columns"], lines_of(table))]
        if differences := differences_of(table):
            parts += [markdown_text(compared(table)), _markdown_table(table["columns"], differences)]
        if fits := data["fits"].get(name):
            parts += [FITTED, "\n".join(f"- {markdown_text(fit_words(fit))}" for fit in fits)]
    if data["sweeps"]:
        parts += ["## Learning rates", _markdown_sweeps(data["sweeps"])]
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
    models = {(run["size"], run["variant"], run["pattern"], run["key_value_heads"]) for run in runs}
    seeds = "" if len(data["seeds"]) == 1 else f" with each of {len(data['seeds'])} seeds"
    words = [
        f"{len(models)} {'model' if len(models) == 1 else 'models'} ({sizes}), each trained on {span} tokens{seeds}."
    ]
    if data["sweeps"]:
        rates = ", ".join(data["sweeps"][0]["losses"])
        words.append(f"The learning rate of each is the best of {rates} with the first seed.")
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


def _caption(name: str, table: Data, data: Data) -> str:
    """Caption of a table: the units of its cells, and what stands beside them."""
    several = len(data["seeds"]) > 1
    ours = "mean over seeds and its 95 % interval" if several else "ours ± standard error"
    units = "WikiText perplexity" if name == "4" else "accuracies in per cent"
    words = [f"{ours[0].upper()}{ours[1:]}, {units}"]
    if several and name != "4":
        words.append("in the intervals is the standard error of the documents scored, where the benchmark has one")
    words.append(
        "perplexities are averaged in logarithms" if several else "one seed, so there is no interval over seeds"
    )
    if any(row["paper"] for row in table["rows"]):
        words.append(f"beneath, in grey, what the paper prints of its {size_name(paper.SIZE)} models")
    return "; ".join(words) + "."


def compared(table: Data) -> str:
    """Caption of a table of differences."""
    rows = [row for row in table["rows"] if row.get("differences")]
    if not rows:
        return ""
    level = next(iter(rows[0]["differences"].values()))["level"]
    count = round((1 - LEVEL) / (1 - level))
    return (
        "Differences from standard attention, paired by seed: points of accuracy, nats, and ratios of perplexities. "
        f"Intervals are at {100 * level:.4g} %, so that all {count} of a column hold together with {100 * LEVEL:g} %; "
        "bold where the interval is all on one side of none."
    )


def verdict(claim: Data) -> str:
    """The verdict on a finding of the paper, in two or three words."""
    return {"seen": "Seen in one run", "not seen": "Not seen in one run"}.get(
        claim["verdict"], claim["verdict"].capitalize()
    )


def _markdown_sweeps(sweeps: list[Data]) -> str:
    rates = list(dict.fromkeys(lr for sweep in sweeps for lr in sweep["losses"]))
    rows = ["| model | layers | " + " | ".join(rates) + " | taken |", "| --- | --- |" + " ---: |" * (len(rates) + 1)]
    for sweep in sweeps:
        losses = [shown(LOSS, sweep["losses"][lr]) for lr in rates]
        model = [sweep["variant"], layers_of(sweep | {"run": "", "skipped": False}, True)]
        taken = NOTHING if sweep["chosen"] is None else f"{sweep['chosen']:g}"
        rows.append("| " + " | ".join(markdown_text(text) for text in (*model, *losses, taken)) + " |")
    return "\n".join(rows)


def _markdown_table(columns: list[str], lines: list[TableRow]) -> str:
    rows = ["| model | layers | " + " | ".join(columns) + " |", "| --- | --- |" + " ---: |" * len(columns)]
    for line in lines:
        layers = line.layers if line.state == "done" else f"{line.layers} ({line.state})"
        cells = [markdown_text(line.label), markdown_text(layers)]
        for cell in line.cells:
            words = " ".join(filter(None, (cell.ours, cell.error, f"(paper {cell.paper})" if cell.paper else "")))
            cells.append(f"**{markdown_text(words)}**" if cell.clear else markdown_text(words))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)
