"""The page of a measurement and its search, index.html, which needs nothing else, and what the terminal is told."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deconattn import durable
from deconattn.mixers import relaxed_by
from deconattn.pages.frame import render
from deconattn.statistics import Interval
from deconattn.surgery.assignments import as_flag, kept_layers
from deconattn.surgery.comparison import FOUND, RANDOM, Line
from deconattn.surgery.results import Findings

HTML = "index.html"
TITLE = "Which layers need attention"
NOTHING = "\N{EN DASH}"
HEAT, GAIN = "213 94 0", "0 114 178"
"""Red, green and blue of a full cell: of the largest increase, and of as large a decrease."""
FULL = 0.55
"""Its opacity: text is legible on it, dark on a light page and light on a dark one."""
METHOD = (
    "Each cell: one layer's mixer is replaced, the replacement's own parameters are fitted to that layer's output on "
    "other text, and the loss of the held-out sequences is measured with this one layer replaced. Increases are in "
    "nats a token, paired by sequence; intervals are of the mean over sequences, at 95 %, by Student's t."
)


@dataclass(frozen=True)
class HeatCell:
    """A cell of the map: its number, its interval, what it says when pointed at, CSS of its ground, and its order."""

    text: str = NOTHING
    error: str = ""
    flag: str = ""
    says: str = ""
    paint: str = ""
    sort: float | str = ""


def write_page(findings: Findings, commands: Sequence[str], folder: Path) -> Path:
    """Write the page, whole; return its path."""
    durable.write_text(folder / HTML, html(findings, commands))
    return folder / HTML


def html(findings: Findings, commands: Sequence[str]) -> str:
    """Return the page, without a reference to anything outside it."""
    variants = findings.asked.request.variants
    return render(
        "deconattn.surgery",
        "search.html.j2",
        title=f"{TITLE}: {findings.asked.label}",
        lede=lede(findings),
        method=METHOD,
        nothing=NOTHING,
        variants=[(variant, relaxed_by(variant)) for variant in variants],
        map=list(heat_map(findings)),
        head_maps=list(head_maps(findings)),
        ranking=list(ranking(findings)),
        pairs=list(pair_lines(findings)),
        hybrids=list(hybrid_lines(findings)),
        budget=findings.comparison.budget.words if findings.comparison and findings.comparison.budget else "",
        steps=list(step_lines(findings)),
        commands=list(commands),
        failed=failures(findings),
    )


def lede(findings: Findings) -> str:
    """Return the opening paragraph: what was replaced, fitted and measured on what."""
    request, own = findings.asked.request, findings.own
    loss = sum(own.held_out) / len(own.held_out)
    depth = len(findings.asked.variants)
    return (
        f"{findings.asked.label}, {depth} layers, loss {loss:.3f} nats a token: {len(findings.cells)} replacements of "
        f"one layer by {len(request.variants)} variants, each fitted on "
        f"{request.fit_sequences * request.seq_len:,} tokens and measured on {len(own.held_out)} sequences of "
        f"{request.seq_len}."
    )


def heat_map(findings: Findings) -> Iterator[tuple[int, str, list[HeatCell]]]:
    """Give each layer's number, its own variant, and a cell a variant."""
    variants = findings.asked.request.variants
    found = {place: findings.increase(*place) for place in findings.cells}
    largest = max((abs(one.mean) for one in found.values() if one is not None), default=0.0)
    for layer, own in enumerate(findings.asked.variants):
        cells = []
        for variant in variants:
            cell = findings.cells.get((layer, variant))
            if cell is None:
                cells.append(HeatCell(flag="its own" if variant == own else "open"))
            elif cell.losses is None:
                cells.append(HeatCell(flag="failed", says=cell.reason or ""))
            else:
                says = f"layer {layer + 1}, {variant}: error {cell.error:.4f} of the output's mean square"
                cells.append(_heat_cell(findings.increase(layer, variant), largest, says))
        yield layer + 1, own, cells


def head_maps(findings: Findings) -> Iterator[tuple[str, list[tuple[int, list[HeatCell]]]]]:
    """Give each variant with heads a map, layer by head."""
    from deconattn.surgery.results import increase_of

    for variant in findings.asked.request.variants:
        found = {
            layer: [increase_of(losses, findings.own) for losses in heads.losses]
            for (layer, name), heads in findings.heads.items()
            if name == variant and heads.losses is not None
        }
        largest = max((abs(one.mean) for heads in found.values() for one in heads), default=0.0)
        lines = []
        for layer, heads in sorted(found.items()):
            told = [f"layer {layer + 1}, head {head}" for head in range(1, len(heads) + 1)]
            cells = [_heat_cell(one, largest, says) for one, says in zip(heads, told, strict=True)]
            lines.append((layer + 1, cells))
        if lines:
            yield variant, lines


def ranking(findings: Findings) -> Iterator[tuple[int, str, str, float]]:
    """Give the layers, the one that needs its mixer most first: number, best variant, its increase, order."""
    best: list[tuple[float, int, str, Interval]] = []
    for layer in range(len(findings.asked.variants)):
        options = [
            (found, name) for name in findings.asked.request.variants if (found := findings.increase(layer, name))
        ]
        if options:
            found, name = min(options, key=lambda option: option[0].mean)
            best.append((found.mean, layer + 1, name, found))
    for mean, layer, name, found in sorted(best, reverse=True):
        yield layer, name, told(found), mean


def pair_lines(findings: Findings) -> Iterator[tuple[str, str, str, str, str]]:
    """Give pairs: layers, variants, the increase of both together, the sum of each, and what the two differ by."""
    for pair in findings.pairs:
        lower, upper = (layer + 1 for layer in pair.layers)
        more = pair.both.mean - pair.sum
        yield f"{lower} and {upper}", " and ".join(pair.variants), told(pair.both), f"{pair.sum:+.4f}", f"{more:+.4f}"


def hybrid_lines(findings: Findings) -> Iterator[tuple[str, str, str, str, str, str, float]]:
    """Give the rows of the comparison: name, layers kept, loss, increase, loss beyond the found hybrid's, pattern (or
    what was drawn), order.
    """
    comparison, found = findings.comparison, found_line(findings)
    for line in comparison.lines if comparison and found else ():
        kept = {len(kept_layers(one, findings.asked.variants)) for one in line.assignments}
        what = as_flag(line.assignments[0])
        if line.name == RANDOM:
            what = f"{len(line.assignments)} draws; median {_median(line):+.4f}, best {_least(line):+.4f}"
        cost = "" if line.part is None else f", {line.part:.3f} of the cost"
        assert found is not None
        beyond = NOTHING if line is found else told(line.beyond(found.losses[0]))
        numbers = told(line.loss, ""), told(line.increase), beyond
        yield line.name, f"{max(kept)}{cost}", *numbers, what, line.increase.mean


def step_lines(findings: Findings) -> Iterator[tuple[str, str, str]]:
    """Give the steps of the search: what was changed, the loss on the held-out sequences, whether it was taken."""
    for step in findings.comparison.choice.steps if findings.comparison else ():
        yield step.words, f"{step.loss:.4f}", "taken" if step.taken else ""


def failures(findings: Findings) -> list[tuple[str, str]]:
    """Return what failed, and why."""
    cells = [(f"layer {layer + 1}, {name}", cell.reason) for (layer, name), cell in findings.cells.items()]
    heads = [(f"layer {layer + 1}, {name}, heads", one.reason) for (layer, name), one in findings.heads.items()]
    return [(what, why) for what, why in (*cells, *heads) if why is not None]


def summary(findings: Findings) -> list[tuple[str, list[list[str]]]]:
    """Return tables for the terminal: a title and rows, the columns' names first."""
    variants = findings.asked.request.variants
    layers = [["layer", *variants]]
    layers += [[str(layer), *(cell.flag or cell.text for cell in cells)] for layer, _, cells in heat_map(findings)]
    tables = [("Increase of the loss with one layer replaced, nats a token", layers)]
    hybrids = [list(line[:5]) for line in hybrid_lines(findings)]
    if hybrids:
        tables.append(
            (
                "Hybrids, on the tested sequences",
                [["hybrid", "layers kept", "loss", "increase", "beyond found"], *hybrids],
            )
        )
    return tables


def told(found: Interval, sign: str = "+") -> str:
    """Return a mean and half its interval."""
    half = "" if found.half is None else f" \N{PLUS-MINUS SIGN} {found.half:.4f}"
    return f"{found.mean:{sign}.4f}{half}"


def found_line(findings: Findings) -> Line | None:
    """Return the found hybrid's row; None: there was no search."""
    lines = findings.comparison.lines if findings.comparison else []
    return next((line for line in lines if line.name == FOUND), None)


def _heat_cell(found: Interval | None, largest: float, says: str) -> HeatCell:
    assert found is not None
    share = abs(found.mean) / largest if largest else 0.0
    colour = HEAT if found.mean > 0 else GAIN
    # The square root, so that a few layers that matter much do not make all others look alike.
    paint = f"background: rgb({colour} / {FULL * share**0.5:.3f})"
    error = "" if found.half is None else f"\N{PLUS-MINUS SIGN} {found.half:.4f}"
    return HeatCell(f"{found.mean:+.4f}", error, says=says, paint=paint, sort=found.mean)


def _means(line: Line) -> list[float]:
    own = sum(line.own) / len(line.own)
    return sorted(sum(losses) / len(losses) - own for losses in line.losses)


def _median(line: Line) -> float:
    means = _means(line)
    return (means[(len(means) - 1) // 2] + means[len(means) // 2]) / 2


def _least(line: Line) -> float:
    return _means(line)[0]
