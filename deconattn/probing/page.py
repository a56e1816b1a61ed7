"""The page of a grid, index.html, which needs nothing else, and summary.md, for terminals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deconattn import durable
from deconattn.pages.frame import render
from deconattn.probing.claims import Claim, Judged, judge_all
from deconattn.probing.findings import MARGIN, SOLVED, Cell, Findings, Kind, Problem, percent, verdicts
from deconattn.probing.pictures import problem_pictures
from deconattn.probing.results import Row
from deconattn.shown import markdown_text
from deconattn.statistics import LEVEL

HTML, SUMMARY = "index.html", "summary.md"
TITLE = "Probes: which attention solves which task"
NOTHING = "\N{EN DASH}"
HEAT = "0 114 178"
"""Red, green and blue of a full cell."""
FULL = 0.55
"""Its opacity: text is legible on it, dark on a light page and light on a dark one."""

METHOD = (
    "Intervals are of the mean over seeds, at 95 %, by Student's t, with the error of the number of positions asked "
    f"added. Solved: the whole interval is above {100 * SOLVED:g} %. Not better than chance: it ends less than "
    f"{100 * MARGIN:g} points above. Differences from standard attention are of the mean over difficulties, paired by "
    "seed; their intervals are so wide that all of a task hold together with 95 % (Bonferroni). Nothing is claimed of "
    "a task where standard attention is not clearly better than chance, nor from one seed."
)


@dataclass(frozen=True)
class HeatCell:
    """A cell of the map.

    Attributes:
        accuracy: mean over difficulties and seeds, in per cent.
        error: half its interval's width, or why it has none.
        flags: what is wrong with it, such as failed models.
        says: each difficulty with its interval.
        paint: CSS of its ground: nothing at chance, full at 1.
    """

    accuracy: str = NOTHING
    error: str = ""
    flags: str = ""
    says: str = ""
    paint: str = ""
    sort: float | str = ""


def write_page(rows: Sequence[Row], folder: Path) -> Path:
    """Write the page and the summary of any set of rows, each whole; returns the page's path."""
    findings = Findings(rows)
    durable.write_text(folder / SUMMARY, summary(findings))
    durable.write_text(folder / HTML, html(findings))
    return folder / HTML


def html(findings: Findings) -> str:
    """Return the page, without a reference to anything outside it."""
    return render(
        "deconattn.probing",
        "probes.html.j2",
        title=TITLE,
        lede=lede(findings),
        findings=findings,
        maps=[(size, _problems_of(findings, size), list(heat_map(findings, size))) for size in findings.sizes],
        verdicts=verdicts(findings),
        claims=judge_all(findings),
        smallest=list(smallest_rows(findings)),
        smallest_title=smallest_title(findings),
        sections=list(_sections(findings)),
        failed=failures(findings),
        method=method(findings),
        nothing=NOTHING,
    )


def summary(findings: Findings) -> str:
    """Return the maps and the words in Markdown."""
    parts = [f"# {TITLE}", markdown_text(lede(findings))]
    for size in findings.sizes:
        heading = ["model", "relaxes", *(findings.label(problem) for problem in _problems_of(findings, size))]
        rows = []
        for kind, cells in heat_map(findings, size):
            told = [" ".join(filter(None, (cell.accuracy, cell.error, cell.flags))) for cell in cells]
            rows.append([kind.label, findings.relaxed[kind] or NOTHING, *told])
        parts += [f"## Accuracy, mean over difficulties, per cent: {markdown_text(size)}", _table(heading, rows)]
    parts += ["## What this shows", markdown_text(method(findings))]
    for verdict in verdicts(findings):
        lines = [f"- {markdown_text(what)}: {markdown_text(which)}" for what, which in verdict.said]
        parts += [f"### {markdown_text(f'{findings.label(verdict.problem)}, {verdict.size}')}", "\n".join(lines)]
    parts += ["## Published findings", "\n".join(_claim_line(*told) for told in judge_all(findings))]
    parts.append(f"## {smallest_title(findings)}")
    parts.append(
        _table(["task", "difficulty", *(kind.label for kind in findings.kinds)], list(smallest_rows(findings)))
    )
    if failed := failures(findings):
        parts += ["## What failed", "\n".join(f"- {markdown_text(f'{what}: {why}')}" for what, why in failed)]
    return "\n\n".join(parts) + "\n"


def lede(findings: Findings) -> str:
    """Return the opening paragraph: what was trained, on what, and how often."""
    if not findings.rows:
        return "No model is done yet."
    rows = findings.rows
    seeds, rates = {row.seed for row in rows if row.chosen}, sorted({row.lr for row in rows})
    models = {(row.task, row.settings, row.variant, row.pattern, row.size, row.seed, row.lr) for row in rows}

    def parameters(size: str) -> str:
        counts = [row.parameters for row in rows if row.size == size and row.parameters]
        if not counts:
            return size
        span = f"{min(counts):,}" + (f" to {max(counts):,}" if max(counts) > min(counts) else "")
        return f"{size}, {span} parameters"

    span = f"one learning rate, {rates[0]:g}"
    if len(rates) > 1:
        span = f"learning rates from {rates[0]:g} to {rates[-1]:g}, the best of each variant, pattern, size and task"
    return (
        f"{_count(len(models), 'small model')}: {_count(len(findings.kinds), 'kind')} of model at "
        f"{_count(len(findings.sizes), 'size')} ({'; '.join(map(parameters, findings.sizes))}) on "
        f"{_count(len(findings.problems), 'task')}, "
        f"{_count(len(seeds), 'seed')}, {span}; at most {max(row.steps for row in rows):,} steps and "
        f"{max(row.tokens for row in rows):,} tokens each."
    )


def method(findings: Findings) -> str:
    """Return what the words of the verdicts mean, and what the intervals leave open."""
    seeds = len({row.seed for row in findings.rows if row.chosen})
    if seeds < 2:
        return METHOD
    # Clopper and Pearson's bound where none of n fails: (1 - share) ** n = 5 %.
    share = 100 * (1 - (1 - LEVEL) ** (1 / seeds))
    return f"{METHOD} A mean does not tell how often training fails: where {seeds} of {seeds} seeds succeed, up to " + (
        f"{share:.0f} % of all seeds may not."
    )


def heat_map(findings: Findings, size: str) -> Iterator[tuple[Kind, list[HeatCell]]]:
    """Give the cells of each kind of model of a size, in the order of its problems."""
    problems = _problems_of(findings, size)
    for kind in findings.kinds:
        if any((problem, kind, size) in findings.cells for problem in problems):
            yield kind, [_heat_cell(findings, problem, kind, size) for problem in problems]


def smallest_rows(findings: Findings) -> Iterator[list[str]]:
    """Give a row a problem and difficulty: the smallest size of each kind that solves it; or yes, no, open."""
    one = len(findings.sizes) == 1
    for problem in findings.problems:
        for level in findings.difficulties[problem]:
            row = [findings.label(problem), f"{findings.axes[problem]} = {level}"]
            for kind in findings.kinds:
                size, closed = findings.smallest(problem, kind, level)
                if not any((problem, kind, other) in findings.cells for other in findings.sizes):
                    row.append(NOTHING)
                elif size is None:
                    row.append(("no" if one else "none") if closed else "open")
                else:
                    row.append("yes" if one else size if closed else f"\N{LESS-THAN OR EQUAL TO} {size}")
            yield row


def smallest_title(findings: Findings) -> str:
    """Return the heading of :func:`smallest_rows`."""
    several = len(findings.sizes) > 1
    return "The smallest model that solves each difficulty" if several else "Which difficulties are solved"


def failures(findings: Findings) -> list[tuple[str, str]]:
    """Return each model that failed, and why."""
    found: dict[str, str] = {}
    for (problem, kind, size), cell in findings.cells.items():
        for row in cell.failed:
            what = f"{findings.label(problem)}, {kind.label}, {size}, seed {row.seed}, learning rate {row.lr:g}"
            found[what] = row.reason or "no reason is known"
    return list(found.items())


def _sections(findings: Findings) -> Iterator[dict[str, Any]]:
    """Give what a problem's section shows: charts, and a table of each size."""
    for number, problem in enumerate(findings.problems):
        levels, tables = findings.difficulties[problem], []
        for size in findings.sizes:
            kinds = [kind for kind in findings.kinds if (problem, kind, size) in findings.cells]
            lines = [(kind, findings.cell(problem, kind, size)) for kind in kinds]
            if lines:
                tables.append((size, [_table_line(cell, kind, levels) for kind, cell in lines]))
        yield {
            "id": f"task-{number}",
            "heading": findings.label(problem),
            "settings": problem.settings,
            "axis": findings.axes[problem],
            "levels": levels,
            "pictures": problem_pictures(findings, problem),
            "tables": tables,
        }


def _table_line(cell: Cell, kind: Kind, levels: Sequence[int]) -> dict[str, Any]:
    cells = []
    for level in levels:
        found = cell.interval(level)
        text, _, error = percent(found).partition(" %")
        cells.append((text, error.strip(), "" if found is None else found.mean))
    rates = sorted({row.lr for rows in cell.scores.values() for row in rows.values()})
    stopped = [row.solved_at for row in next(iter(cell.scores.values()), {}).values() if row.solved_at is not None]
    return {
        "kind": kind,
        "cells": cells,
        "seeds": len(cell.seeds),
        "rate": ", ".join(f"{rate:g}" for rate in rates) or NOTHING,
        "failed": len(cell.lost),
        "stopped": f"{sum(stopped) / len(stopped):,.0f}" if stopped else NOTHING,
    }


def _heat_cell(findings: Findings, problem: Problem, kind: Kind, size: str) -> HeatCell:
    cell = findings.cell(problem, kind, size)
    found = cell.interval()
    flags = [f"{len(cell.lost)} failed"] if cell.lost else []
    if found is None and not flags and (problem, kind, size) in findings.cells:
        flags.append("under way")
    if found is None:
        return HeatCell(flags=", ".join(flags))
    levels = findings.difficulties[problem]
    if len(cell.scores) < len(levels):
        flags.append(f"{len(cell.scores)} of {len(levels)} difficulties")
    chance = cell.chance()
    low = 0.0 if chance is None else chance
    share = min(max((found.mean - low) / (1 - low), 0.0), 1.0) if low < 1 else 0.0
    axis = findings.axes[problem]
    says = [f"{axis} = {level}: {percent(cell.interval(level))}" for level in sorted(cell.scores)]
    says += [f"all: {percent(found)}", "chance unknown" if chance is None else f"chance {100 * chance:.1f} %"]
    says.append(_count(found.count, "seed"))
    return HeatCell(
        accuracy=f"{100 * found.mean:.1f}",
        error="1 seed" if found.half is None else f"\N{PLUS-MINUS SIGN} {100 * found.half:.1f}",
        flags=", ".join(flags),
        says=f"{kind.label}, {findings.label(problem)}: {'; '.join(says)}",
        paint=f"background: rgb({HEAT} / {FULL * share:.3f})",
        sort=found.mean,
    )


def _problems_of(findings: Findings, size: str) -> list[Problem]:
    return [one for one in findings.problems if any((one, kind, size) in findings.cells for kind in findings.kinds)]


def _claim_line(claim: Claim, found: Sequence[Judged]) -> str:
    lines = [f"  - **{markdown_text(judged.title)}.** {markdown_text(judged.numbers)}".rstrip() for judged in found]
    words = f"{claim.words} Judged by: {claim.judges}. Source: {claim.source}."
    return "\n".join([f"- {markdown_text(words)}", *lines])


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[markdown_text(cell) for cell in line] for line in (heading, *rows)]
    lines.insert(1, ["---"] * len(heading))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
