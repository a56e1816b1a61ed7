"""Charts of the report, from the gathered numbers."""

from typing import Any

from markupsafe import Markup

from deconattn.config.pattern import STANDARD
from deconattn.pages.charts import Dot, Series, dot_chart, key, line_chart, thinned
from deconattn.pages.frame import Picture, drawn, legend_of
from deconattn.reproduction.plans import UNIFORM
from deconattn.reproduction.radar import Shape, radar_chart
from deconattn.reproduction.tables import LOSS, layers_of, perplexity, shown, size_name

Data = dict[str, Any]
MEASURES = (("Wiki ppl", "WikiText perplexity", True), ("Avg", "average accuracy (%)", False), (LOSS, LOSS, False))
LINES_A_CHART, SHAPES_A_CHART = 14, 3


def table_pictures(name: str, table: Data) -> list[Picture]:
    """Charts that stand beside a table."""
    if name == "4":
        return drawn([_contexts(table)])
    rows = [row for row in table["rows"] if "run" in row]
    if name == "figure4":
        return drawn([_sizes(rows, *measure) for measure in MEASURES])
    by = "pattern" if name == "figure3" else "variant"
    sizes = dict.fromkeys(row["size"] for row in rows)
    return drawn([_dots([r for r in rows if r["size"] == size], by, *m) for size in sizes for m in MEASURES])


def loss_pictures(data: Data) -> list[Picture]:
    """Loss over tokens of all runs, a pair of charts for each size; for each variant where they would crowd one."""
    found = []
    for size in dict.fromkeys(run["size"] for run in data["runs"].values()):
        runs = {name: run for name, run in data["runs"].items() if run["size"] == size}
        variants = [run["variant"] for run in runs.values()]
        groups = (
            [variants]
            if len(runs) <= LINES_A_CHART
            else [[STANDARD, one] for one in dict.fromkeys(variants) if one != STANDARD]
        )
        for group in groups:
            shown_here = {name: run for name, run in runs.items() if run["variant"] in group}
            label = size_name(size) + (f", {group[-1]}" if len(groups) > 1 else "")
            found += [_losses(data, shown_here, part, label) for part in ("training", "validation")]
    return drawn(found)


def _losses(data: Data, runs: dict[str, Data], part: str, of: str) -> Picture:
    lines = [
        Series(
            _name(run),
            run["variant"],
            _look(run, data),
            [(x, y, f"{_name(run)}: {y:.3f} at {x:,.0f} tokens") for x, y in thinned(data["curves"][name][part])],
            dots=part == "validation",
        )
        for name, run in runs.items()
    ]
    label = f"{part.capitalize()} loss over tokens, {of}"
    usable = any(len(line.points) > 1 for line in lines)
    chart = line_chart(lines, label, "tokens", f"{part} loss, nats a token") if usable else Markup()
    return Picture(chart, f"{label}{' (means of neighbouring steps)' if part == 'training' else ''}.", legend_of(lines))


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
            value = row["ours"][title]["value"]
            dots.append(Dot(_drawn(title, value), row["variant"], look, f"{label}: {shown(title, value)}"))
            if by == "variant" and row["variant"] == STANDARD:
                reference = (_drawn(title, value), f"standard: {shown(title, value)}")
        if title in row["paper"]:
            printed = row["paper"][title]
            text = perplexity(printed) if log else f"{printed:.1f}"
            dots.append(Dot(printed, row["variant"], look, f"{label}: {text} in the paper", hollow=True))
    size = size_name(rows[0]["size"])
    hollow = any(dot.hollow for dots in named.values() for dot in dots)
    ours = any(not dot.hollow for dots in named.values() for dot in dots)
    chart = dot_chart(list(named.items()), f"{words} by {by}, {size}", words, log, reference) if ours else Markup()
    legend = [(key(name if by == "pattern" else STANDARD, look, dots=True), name) for name, look in looks.items()]
    caption = f"{words[0].upper()}{words[1:]} by {by}, {size}; shapes tell {others[by]} apart"
    caption += ", hollow marks are the paper's" if hollow else ""
    return Picture(chart, caption + (", the dashed line is standard attention." if reference else "."), legend)


def _sizes(rows: list[Data], title: str, words: str, log: bool) -> Picture:
    models = dict.fromkeys((row["variant"], row["pattern"]) for row in rows)
    looks = {pattern: look for look, pattern in enumerate(dict.fromkeys(pattern for _, pattern in models))}
    lines = []
    for variant, pattern in models:
        found = [row for row in rows if (row["variant"], row["pattern"]) == (variant, pattern)]
        points = [
            (row["parameters"], _drawn(title, value), f"{variant}, {layers_of(row, True)}: {shown(title, value)}")
            for row in found
            if (value := row["ours"].get(title, {}).get("value")) is not None
        ]
        name = variant if variant == STANDARD else f"{variant}, {layers_of(found[0])}"
        lines.append(Series(name, variant, looks[pattern], points, dots=True))
    label = f"{words[0].upper()}{words[1:]} by size"
    return Picture(line_chart(lines, label, "parameters", words, y_log=log), f"{label}.", legend_of(lines))


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
