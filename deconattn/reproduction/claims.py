"""The paper's findings, in words, each beside what was measured here."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deconattn.config.pattern import STANDARD
from deconattn.reproduction.plans import UNIFORM
from deconattn.reproduction.tables import size_name

COLLAPSE = 10.0
"""A perplexity so many times another's: collapsed, or destroyed."""
NEAR_PERPLEXITY, NEAR_POINTS = 1.25, 4.0
"""A hybrid is near standard attention within this factor and so many points of accuracy; in table 1 the farthest,
mlp, is at 1.20 and 3.2."""

COLLAPSING = ("mlp", "nonapproximate")
RANDOM_GUESS = "random guess"
"""The row of a model that gives each token the same probability."""

Row = dict[str, Any]
Claim = dict[str, Any]
"""`finding`, the paper's in words; `shows`: true, false, or None where it was not measured; `numbers`, in words."""


def claims(tables: Mapping[Any, Any]) -> list[Claim]:
    """Judge the paper's findings, one after another, for every size that was measured."""
    rows = [row for name, table in tables.items() if name != "4" for row in table["rows"] if "run" in row]
    unique = list({(row["run"], row["skipped"]): row for row in rows}.values())
    found = []
    for size, heads in dict.fromkeys((row["size"], row["key_value_heads"]) for row in unique):
        here = [row for row in unique if (row["size"], row["key_value_heads"]) == (size, heads)]
        label = size_name(size) + (f", {heads} key/value heads" if heads else "")
        if (untrained := _untrained(here, tables)) is not None:
            found.append({"models": label} | untrained)
            continue
        for judge in (_no_mixing, _nonapproximate, _hybrids, _skip):
            found += [{"models": label} | claim for claim in judge(here)]
    return found + list(_contexts(tables.get("4")))


def _perplexity(row: Row) -> float | None:
    return row["ours"].get("Wiki ppl", {}).get("value")


def _loss(row: Row) -> float | None:
    return row["ours"].get("validation loss", {}).get("value")


def _measure(rows: list[Row]) -> tuple[str, Callable[[Row], float | None]]:
    """WikiText perplexity where all rows have it, else the validation loss."""
    if all(_perplexity(row) is not None for row in rows):
        return "WikiText perplexity", _perplexity
    return "validation loss", _loss


def _untrained(rows: list[Row], tables: Mapping[Any, Any]) -> Claim | None:
    """Instead of all findings where the models have learned too little for a collapse to be seen."""
    baseline = _one(rows, STANDARD)
    guesses = [_perplexity(row) for table in tables.values() for row in table["rows"] if row["label"] == RANDOM_GUESS]
    guess = next((value for value in guesses if value is not None), None)
    standard = None if baseline is None else _perplexity(baseline)
    if guess is None or standard is None or standard * COLLAPSE < guess:
        return None
    numbers = (
        f"WikiText perplexity {_shown(standard)} of standard attention, {_shown(guess)} of a random guess: with less "
        f"than {COLLAPSE:g} times between them nothing can be told. Train longer."
    )
    return {"finding": "Standard attention is far better than a random guess.", "shows": False, "numbers": numbers}


def _no_mixing(rows: list[Row]) -> Iterator[Claim]:
    yield from _collapse(rows, "mlp", "Without any mixing of tokens (uniform mlp) the model collapses.")
    uniform = [row for row in rows if row["pattern"] == UNIFORM]
    collapsing = [row["variant"] for row in uniform if row["variant"] in COLLAPSING]
    if "mlp" not in collapsing or len(uniform) <= len(collapsing):
        return
    verb = "are the two worst" if len(collapsing) > 1 else "is the worst"
    finding = f"{' and '.join(collapsing)} {verb} of the uniform models."
    name, measure = _measure(uniform)
    values = {row["variant"]: value for row in uniform if (value := measure(row)) is not None}
    if len(values) < len(uniform):
        yield {"finding": finding, "shows": None, "numbers": f"{len(values)} of {len(uniform)} models measured."}
        return
    order = sorted(values, key=lambda variant: -values[variant])
    numbers = f"{name}, the worst first: " + ", ".join(f"{one} {_shown(values[one])}" for one in order) + "."
    yield {"finding": finding, "shows": set(order[: len(collapsing)]) == set(collapsing), "numbers": numbers}


def _nonapproximate(rows: list[Row]) -> Iterator[Claim]:
    yield from _collapse(rows, "nonapproximate", "Uniform nonapproximate, one score a token, collapses.")


def _collapse(rows: list[Row], variant: str, finding: str) -> Iterator[Claim]:
    baseline = _one(rows, STANDARD)
    row = _one(rows, variant)
    if row is None or baseline is None:
        return
    ours, standard = _perplexity(row), _perplexity(baseline)
    if ours is None or standard is None:
        yield {"finding": finding, "shows": None, "numbers": "Not measured yet."}
        return
    numbers = (
        f"WikiText perplexity {_shown(ours)}, {_times(ours / standard)} standard attention's {_shown(standard)}; "
        f"collapse is {COLLAPSE:g} times."
    )
    yield {"finding": finding, "shows": ours >= COLLAPSE * standard, "numbers": numbers}


def _hybrids(rows: list[Row]) -> Iterator[Claim]:
    baseline = _one(rows, STANDARD)
    hybrids = [row for row in rows if row["pattern"] != UNIFORM and not row["skipped"]]
    if baseline is None or not hybrids:
        return
    finding = "Every hybrid comes within a few points of standard attention."
    standard, average = _perplexity(baseline), baseline["ours"].get("Avg", {}).get("value")
    known = [row for row in hybrids if _perplexity(row) is not None]
    if standard is None or len(known) < len(hybrids):
        yield {"finding": finding, "shows": None, "numbers": f"{len(known)} of {len(hybrids)} hybrids measured."}
        return
    far, worst = [], max(known, key=lambda row: _perplexity(row) or 0.0)
    for row in known:
        own = row["ours"].get("Avg", {}).get("value")
        points = 0.0 if own is None or average is None else 100 * (average - own)
        if (_perplexity(row) or 0.0) > NEAR_PERPLEXITY * standard or points > NEAR_POINTS:
            far.append(f"{row['variant']} {row['pattern']}")
    numbers = (
        f"The farthest in WikiText perplexity is {worst['variant']} {worst['pattern']}, "
        f"{_shown(_perplexity(worst) or 0.0)} to standard attention's {_shown(standard)}; near is up to "
        f"{NEAR_PERPLEXITY:g} times, and {NEAR_POINTS:g} points of average accuracy."
    )
    if far:
        numbers += f" Not near: {', '.join(far)}."
    yield {"finding": finding, "shows": not far, "numbers": numbers}


def _skip(rows: list[Row]) -> Iterator[Claim]:
    skipped = [row for row in rows if row["skipped"]]
    if not skipped:
        return
    finding = "Leaving a hybrid's variant layers out destroys it: they do work, though they look redundant."
    whole = {row["run"]: _perplexity(row) for row in rows if not row["skipped"]}
    ratios = {}
    for row in skipped:
        before, after = whole.get(row["run"]), _perplexity(row)
        if before is not None and after is not None:
            ratios[f"{row['variant']} {row['pattern']}"] = after / before
    if len(ratios) < len(skipped):
        numbers = f"{len(ratios)} of {len(skipped)} measured."
        yield {"finding": finding, "shows": None, "numbers": numbers}
        return
    least = min(ratios, key=lambda name: ratios[name])
    kept = [name for name, ratio in ratios.items() if ratio < COLLAPSE]
    numbers = (
        f"WikiText perplexity grows least for {least}, to {_times(ratios[least])} its own; "
        f"destroyed is {COLLAPSE:g} times."
    )
    if kept:
        numbers += f" Not destroyed: {', '.join(kept)}."
    yield {"finding": finding, "shows": not kept, "numbers": numbers}


def _contexts(table: dict[str, Any] | None) -> Iterator[Claim]:
    if table is None or len(table["columns"]) < 2:
        return
    first, last = table["columns"][0], table["columns"][-1]
    for variant, finding, judge in (
        (STANDARD, "Standard attention gains from a longer context.", lambda ratio: ratio > 1.05),
        ("mlp", "Without mixing the length of the context does not matter.", lambda ratio: 0.95 < ratio < 1.05),
    ):
        for row in (row for row in table["rows"] if row["variant"] == variant and row["pattern"] == UNIFORM):
            ends = [row["ours"].get(length, {}).get("value") for length in (first, last)]
            claim: Claim = {"models": size_name(row["size"]), "finding": finding, "shows": None}
            if None in ends:
                yield claim | {"numbers": "Not measured yet."}
                continue
            numbers = f"WikiText perplexity {_shown(ends[0])} at {first} tokens, {_shown(ends[1])} at {last}."
            yield claim | {"shows": judge(ends[0] / ends[1]), "numbers": numbers}


def _one(rows: list[Row], variant: str) -> Row | None:
    found = [row for row in rows if row["variant"] == variant and row["pattern"] == UNIFORM and not row["skipped"]]
    return found[0] if found else None


def _shown(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.3g}".replace("e+0", "e")


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 10 else f"{ratio:.0f} times" if ratio < 1e4 else f"{ratio:.0e} times"
