"""Charts of the report, from the gathered numbers."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from deconattn.config.pattern import STANDARD
from deconattn.pages.charts import Dot, Series, dot_chart, key, line_chart, thinned
from deconattn.pages.frame import Picture, drawn, legend_of
from deconattn.reproduction.cells import LOSS
from deconattn.reproduction.plans import UNIFORM
from deconattn.reproduction.radar import Shape, radar_chart
from deconattn.reproduction.scaling import law_curve, series_of
from deconattn.reproduction.tables import error_of, layers_of, perplexity, shown, size_name

Data = dict[str, Any]
MEASURES = (("Wiki ppl", "WikiText perplexity", True), ("Avg", "average accuracy (%)", False), (LOSS, LOSS, False))
LINES_A_CHART, SHAPES_A_CHART = 14, 3


def table_pictures(name: str, table: Data, fits: Sequence[Data] = ()) -> list[Picture]:
    """Charts that stand beside a table."""
    rows = [row for row in table["rows"] if "run" in row]
    if name == "4":
        return drawn([_contexts(table | {"rows": rows})])
    scaling = [
        _scaling(*series, *m, fits)
        for series in series_of(table)
        for m in MEASURES
        if name == "figure4" or m[0] == LOSS
    ]
    if name == "figure4" and scaling:
        return drawn(scaling)
    by = "pattern" if name == "figure3" else "variant"
    kinds = dict.fromkeys((row["size"], row["told_tokens"]) for row in rows)
    here = [[row for row in rows if (row["size"], row["told_tokens"]) == kind] for kind in kinds]
    return drawn([*(_dots(some, by, *m) for some in here for m in MEASURES), *scaling])


def loss_pictures(data: Data) -> list[Picture]:
    """Loss over tokens of all runs, a pair of charts for each size; for each variant where they would crowd one."""
    found = []
    for size in dict.fromkeys(run["size"] for run in data["runs"].values()):
        runs = {name: run for name, run in data["runs"].items() if run["size"] == size and not run["trial"]}
        variants = [run["variant"] for run in runs.values()]
        groups = (
            [variants]
            if len({_name(run) for run in runs.values()}) <= LINES_A_CHART
            else [[STANDARD, one] for one in dict.fromkeys(variants) if one != STANDARD]
        )
        for group in groups:
            shown_here = {name: run for name, run in runs.items() if run["variant"] in group}
            label = size_name(size) + (f", {group[-1]}" if len(groups) > 1 else "")
            found += [_losses(data, shown_here, part, label) for part in ("training", "validation")]
    return drawn(found)


def _losses(data: Data, runs: dict[str, Data], part: str, of: str) -> Picture:
    lines, seeds = [], 1
    for label in dict.fromkeys(_name(run) for run in runs.values()):
        same = {name: run for name, run in runs.items() if _name(run) == label}
        run = next(iter(same.values()))
        curves = [data["curves"][name][part] for name in same]
        seeds = max(seeds, sum(bool(curve) for curve in curves))
        points = [(x, y, f"{label}: {y:.3f} at {x:,.0f} tokens") for x, y in thinned(mean_curve(curves))]
        lines.append(Series(label, run["variant"], _look(run, data), points, dots=part == "validation"))
    label = f"{part.capitalize()} loss over tokens, {of}"
    usable = any(len(line.points) > 1 for line in lines)
    chart = line_chart(lines, label, "tokens", f"{part} loss, nats a token") if usable else Markup()
    means = ["means of neighbouring steps"] if part == "training" else []
    means += ["means of seeds, as far as all of them that have begun have come"] if seeds > 1 else []
    how = f" ({'; '.join(means)})" if means else ""
    return Picture(chart, f"{label}{how}.", legend_of(lines))


def mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Average curves at the tokens that all have; those without a point do not count."""
    begun = [{x: y for x, y in curve} for curve in curves if curve]
    shared = sorted(set.intersection(*(set(curve) for curve in begun))) if begun else []
    return [[x, fmean(curve[x] for curve in begun)] for x in shared]


def sweep_pictures(data: Data) -> list[Picture]:
    """Validation loss over learning rate, a chart for each size."""
    found = []
    for size in dict.fromkeys(sweep["size"] for sweep in data["sweeps"]):
        lines, ends, lost = [], [], []
        for sweep in (sweep for sweep in data["sweeps"] if sweep["size"] == size):
            name = _name(sweep)
            losses = {float(lr): loss for lr, loss in sorted(sweep["losses"].items(), key=lambda item: float(item[0]))}
            points = [
                (lr, loss, f"{name}: {loss:.3f} at {lr:g}{', chosen' if lr == sweep['chosen'] else ''}")
                for lr, loss in losses.items()
                if loss is not None
            ]
            lines.append(Series(name, sweep["variant"], _look(sweep, data), points, dots=True))
            if sweep["chosen"] is not None:
                ends += [name] if sweep["chosen"] in (min(losses), max(losses)) else []
                lost += [f"{name} at {lr:g}" for lr, loss in losses.items() if loss is None]
        label = f"Validation loss over learning rate, {size_name(size)}"
        words = [f"{label}: trials of the first seed. The lowest of each is taken, which flatters that seed a little."]
        words += [f"At an end of the sweep, so that a wider one may do better: {'; '.join(ends)}."] if ends else []
        words += [f"No loss, failed or diverged: {'; '.join(lost)}."] if lost else []
        chart = line_chart(lines, label, "learning rate", "validation loss, nats a token")
        found.append(Picture(chart, " ".join(words), legend_of(lines)))
    return drawn(found)


def radar_pictures(data: Data) -> list[Picture]:
    """A radar chart for each variant of each size, for each run where a variant has many; standard attention behind."""
    found = []
    runs = {name: run for name, run in data["runs"].items() if name in data["radar"]}
    for size, variant in dict.fromkeys((run["size"], run["variant"]) for run in runs.values()):
        here = {name: run for name, run in runs.items() if run["size"] == size}
        own = [name for name, run in here.items() if run["variant"] == variant]
        behind = [name for name, run in here.items() if run["variant"] == STANDARD]
        if variant == STANDARD:
            if len(own) < len(here):
                continue
            behind = []
        for group in [own] if len(own) <= SHAPES_A_CHART else [[name] for name in own]:
            shapes = [
                Shape(_name(runs[name]), runs[name]["variant"], _look(runs[name], data), data["radar"][name])
                for name in (*behind, *group)
            ]
            legend = [(key(shape.variant, shape.look), shape.label) for shape in shapes]
            caption = f"{variant if len(group) > 1 else _name(runs[group[0]])}, {size_name(size)}"
            found.append(Picture(radar_chart(shapes, f"Attention indicators of {caption}"), f"{caption}.", legend))
    return found


def _dots(rows: list[Data], by: str, title: str, words: str, log: bool) -> Picture:
    others = {"pattern": "variant", "variant": "layers"}
    looks: dict[str, int] = {}
    named: dict[str, list[Dot]] = {}
    reference = None
    for row in rows:
        layers = "skipped" if row["skipped"] else row["pattern"]
        if by == "pattern" and row["variant"] == STANDARD:
            if title in row["ours"]:
                value = _drawn(title, row["ours"][title]["value"])
                reference = (value, f"standard: {shown(title, row['ours'][title]['value'])}")
            continue
        look = looks.setdefault(row["variant"] if by == "pattern" else layers, len(looks))
        dots = named.setdefault(row[by], [])
        label = f"{row['label']}, {layers_of(row)}" if row["variant"] != STANDARD else row["label"]
        if row["ours"].get(title, {}).get("value") is not None:
            cell, value = row["ours"][title], row["ours"][title]["value"]
            low, high = cell.get("low"), cell.get("high")
            span = None if low is None else (_drawn(title, low), _drawn(title, high))
            says = f"{label}: {shown(title, value)} {error_of(title, cell)}".rstrip()
            dots.append(Dot(_drawn(title, value), row["variant"], look, says, interval=span))
            if by == "variant" and row["variant"] == STANDARD:
                reference = (_drawn(title, value), f"standard: {shown(title, value)}")
        if title in row["paper"]:
            printed = row["paper"][title]
            text = perplexity(printed) if log else f"{printed:.1f}"
            dots.append(Dot(printed, row["variant"], look, f"{label}: {text} in the paper", hollow=True))
    size = size_name(rows[0]["size"])
    size += f", {rows[0]['told_tokens']:,} tokens" if rows[0]["told_tokens"] else ""
    intervals = any(dot.interval for dots in named.values() for dot in dots)
    hollow = any(dot.hollow for dots in named.values() for dot in dots)
    ours = any(not dot.hollow for dots in named.values() for dot in dots)
    chart = dot_chart(list(named.items()), f"{words} by {by}, {size}", words, log, reference) if ours else Markup()
    legend = [(key(name if by == "pattern" else STANDARD, look, dots=True), name) for name, look in looks.items()]
    caption = f"{words[0].upper()}{words[1:]} by {by}, {size}; shapes tell {others[by]} apart"
    caption += ", lines are 95 % intervals" if intervals else ""
    caption += ", hollow marks are the paper's" if hollow else ""
    return Picture(chart, caption + (", the dashed line is standard attention." if reference else "."), legend)


def _scaling(by: str, at: Any, rows: list[Data], title: str, words: str, log: bool, fits: Sequence[Data]) -> Picture:
    """A measure over the sizes or the tokens of models."""
    models = dict.fromkeys((row["variant"], row["pattern"]) for row in rows)
    looks = {pattern: look for look, pattern in enumerate(dict.fromkeys(pattern for _, pattern in models))}
    laws = {(fit["variant"], fit["pattern"]): fit for fit in fits if (fit["by"], fit["at"]) == (by, at)}
    lines = []
    for variant, pattern in models:
        found = [row for row in rows if (row["variant"], row["pattern"]) == (variant, pattern)]
        points = sorted(
            (
                row[by],
                _drawn(title, cell["value"]),
                f"{variant}, {layers_of(row, True)}: {shown(title, cell['value'])} {error_of(title, cell)}".rstrip(),
            )
            for row in found
            if (cell := row["ours"].get(title, {})).get("value") is not None
        )
        law = laws.get((variant, pattern), {})
        curve = law_curve(law, [x for x, *_ in points]) if title == LOSS and "E" in law else ()
        name = variant if variant == STANDARD else f"{variant}, {layers_of(found[0] | {'told_tokens': None})}"
        lines.append(Series(name, variant, looks[pattern], points, dots=True, curve=curve))
    of = "" if at is None else f", {size_name(at)}" if by == "tokens" else f", {at:,} tokens"
    label = f"{words[0].upper()}{words[1:]} by {'size' if by == 'parameters' else by}{of}"
    fitted = "; lines are the fits below" if any(line.curve for line in lines) else ""
    return Picture(line_chart(lines, label, by, words, y_log=log), f"{label}{fitted}.", legend_of(lines))


def _contexts(table: Data) -> Picture:
    lines = []
    several = len({row["size"] for row in table["rows"]}) > 1
    patterns = list(dict.fromkeys(row["pattern"] for row in table["rows"]))
    for row in table["rows"]:
        points = [
            (float(length), row["ours"][length]["value"], f"{row['label']}, {length} tokens: {value}")
            for length in table["columns"]
            if row["ours"].get(length, {}).get("value") is not None
            and (value := perplexity(row["ours"][length]["value"]))
        ]
        name = ", ".join(filter(None, (row["label"], layers_of(row, several))))
        lines.append(Series(name, row["variant"], patterns.index(row["pattern"]), points, dots=True))
    label = "WikiText perplexity by length of context"
    ticks = [float(length) for length in table["columns"]]
    chart = line_chart(lines, label, "tokens of context", "WikiText perplexity", y_log=True, x_ticks=ticks)
    return Picture(chart, f"{label}.", legend_of(lines))


def _drawn(title: str, value: float) -> float:
    """Accuracies are drawn in per cent."""
    return 100 * value if title == "Avg" else value


def _name(run: Data) -> str:
    return ", ".join(filter(None, (run["variant"], layers_of(run | {"run": "", "skipped": False}))))


def _look(run: Data, data: Data) -> int:
    """Index of a pattern's dash, the same in all charts; uniform models are drawn solid."""
    patterns = dict.fromkeys([UNIFORM, *(other["pattern"] for other in data["runs"].values())])
    return list(patterns).index(run["pattern"])
