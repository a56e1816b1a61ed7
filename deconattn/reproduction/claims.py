"""The paper's findings, in words, each beside what was measured here.

A finding rests on margins: figures, such as the logarithm of a ratio of perplexities less that of ten, that are above
zero where it holds. It shows where the interval over seeds of every margin is above zero, and does not where that of
one is below. All must hold for it to show, so those intervals are at 95 % each; one suffices against it, so that these
are such that all hold together with 95 %.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from deconattn.config.pattern import STANDARD
from deconattn.reproduction.cells import LOSS, document_error, logs
from deconattn.reproduction.plans import UNIFORM
from deconattn.reproduction.tables import size_name
from deconattn.statistics import LEVEL, family_level, mean_interval, values_needed

COLLAPSE = 10.0
"""A perplexity so many times another's: collapsed, or destroyed."""
NEAR_PERPLEXITY, NEAR_POINTS = 1.25, 4.0
"""A hybrid is near standard attention within this factor, or so many points of accuracy; in table 1 the farthest, mlp,
is at 1.20 and 3.2."""
LONGER = 1.05
"""A perplexity that falls by this factor has gained from a longer context."""

COLLAPSING = ("mlp", "nonapproximate")
RANDOM_GUESS = "random guess"
"""The row of a model that gives each token the same probability."""
WIKI, AVERAGE = "Wiki ppl", "Avg"
WIKITEXT = "WikiText perplexity"

Row = dict[str, Any]
Claim = dict[str, Any]
"""`finding`, the paper's in words; `verdict`, one of `VERDICTS`; `shows`, true or false where it is the first or the
second of them, else None; `numbers`, in words."""
VERDICTS = ("shows", "does not show", "undecided", "seen", "not seen", "open", "not judged")
"""`seen` and `not seen` are of one seed, which has no interval; `open` is not measured yet."""


@dataclass(frozen=True)
class Margin:
    """By how much a finding holds, by seed: above zero it does.

    Attributes:
        of: the model that it is of.
        error: standard error that all seeds share.
    """

    of: str
    values: dict[int, float]
    error: float = 0.0

    @property
    def mean(self) -> float:
        return fmean(self.values.values())

    def holds(self, level: float = LEVEL) -> bool:
        return mean_interval(list(self.values.values()), level, self.error).above(0)

    def fails(self, level: float = LEVEL) -> bool:
        return mean_interval(list(self.values.values()), level, self.error).below(0)

    def clearly(self) -> bool:
        """Tell whether it is above zero beyond doubt; of one seed, beyond the error of its documents."""
        return self.holds() if len(self.values) > 1 else bool(self.values) and self.mean > 2 * self.error

    def seeds_needed(self, level: float) -> int | None:
        """How many seeds would tell it from zero, going by what these are like; None: no number of them."""
        margin = self.mean**2 - (2 * self.error) ** 2  # what more seeds do not make smaller is taken off
        return values_needed(mean_interval(list(self.values.values()), level), math.sqrt(max(margin, 0.0)))


def claims(tables: Mapping[Any, Any]) -> list[Claim]:
    """Judge the paper's findings, one after another, for every size that was measured."""
    rows = [row for name, table in tables.items() if name != "4" for row in table["rows"] if "run" in row]
    chance = [row for name, table in tables.items() if name != "4" for row in table["rows"] if "run" not in row]
    unique = list({(row["run"], row["skipped"]): row for row in rows}.values())
    found = []
    for kind in dict.fromkeys(_kind(row) for row in unique):
        here = [row for row in unique if _kind(row) == kind]
        label = _label(*kind)
        if (untrained := _untrained(_one(here, STANDARD), chance, WIKI)) is not None:
            found.append({"models": label} | untrained)
            continue
        judged = [*_no_mixing(here), *_nonapproximate(here), *_hybrids(here, chance), *_skip(here)]
        found += [{"models": label} | claim for claim in judged]
    return found + list(_contexts(tables.get("4")))


def _untrained(baseline: Row | None, chance: list[Row], title: str) -> Claim | None:
    """Instead of all findings where the models have learned too little for a collapse to be seen."""
    guess = next((value for row in chance if row["label"] == RANDOM_GUESS and (value := _value(row, title))), None)
    if guess is None or baseline is None or not _values(baseline, title):
        return None
    margin = Margin(STANDARD, {seed: math.log(guess / COLLAPSE) - x for seed, x in _values(baseline, title).items()})
    if margin.clearly():
        return None
    numbers = (
        f"{WIKITEXT} {_shown(_mean(baseline, title))} of standard attention, {_shown(guess)} of a random guess: with "
        f"not clearly more than {COLLAPSE:g} times between them nothing can be told. Train longer."
    )
    return _judged("Standard attention is far better than a random guess.", [margin], numbers)


def _no_mixing(rows: list[Row]) -> Iterator[Claim]:
    yield from _collapse(rows, "mlp", "Without any mixing of tokens (uniform mlp) the model collapses.")
    uniform = [row for row in rows if row["pattern"] == UNIFORM]
    collapsing = [row for row in uniform if row["variant"] in COLLAPSING]
    others = [row for row in uniform if row["variant"] not in COLLAPSING]
    if "mlp" not in (row["variant"] for row in collapsing) or not others:
        return
    verb = "are the two worst" if len(collapsing) > 1 else "is the worst"
    finding = f"{' and '.join(row['variant'] for row in collapsing)} {verb} of the uniform models."
    name, title = (WIKITEXT, WIKI) if all(_values(row, WIKI) for row in uniform) else (LOSS, LOSS)
    measured = [row for row in uniform if _values(row, title)]
    if len(measured) < len(uniform):
        yield _open(finding, f"{len(measured)} of {len(uniform)} models measured.")
        return
    margins = [
        Margin(f"{bad['variant']} to {other['variant']}", _apart(bad, other, title))
        for bad in collapsing
        for other in others
    ]
    order = sorted(measured, key=lambda row: -_mean(row, title))
    numbers = f"{name}, the worst first: " + ", ".join(f"{one['variant']} {_shown(_mean(one, title))}" for one in order)
    yield _judged(finding, margins, numbers + ".")


def _nonapproximate(rows: list[Row]) -> Iterator[Claim]:
    yield from _collapse(rows, "nonapproximate", "Uniform nonapproximate, one score a token, collapses.")


def _collapse(rows: list[Row], variant: str, finding: str) -> Iterator[Claim]:
    baseline, row = _one(rows, STANDARD), _one(rows, variant)
    if row is None or baseline is None:
        return
    if not (apart := _apart(row, baseline, WIKI)):
        yield _open(finding)
        return
    numbers = (
        f"{WIKITEXT} {_shown(_mean(row, WIKI))}, {_times(apart)} standard attention's {_shown(_mean(baseline, WIKI))}; "
        f"collapse is {COLLAPSE:g} times."
    )
    yield _judged(finding, [_beyond(variant, apart, COLLAPSE)], numbers)


def _hybrids(rows: list[Row], chance: list[Row]) -> Iterator[Claim]:
    """Near is of worth only by a measure that tells a model which mixes nothing from standard attention."""
    baseline, mlp = _one(rows, STANDARD), _one(rows, "mlp")
    hybrids = [row for row in rows if row["pattern"] != UNIFORM and not row["skipped"]]
    if baseline is None or not hybrids:
        return
    guess = _best_guess(chance)
    yield _near_in_perplexity(baseline, mlp, hybrids, _above_chance(baseline, guess))
    if any(_values(row, AVERAGE) for row in (baseline, *hybrids)):
        yield _near_in_accuracy(baseline, hybrids, guess)


def _near_in_perplexity(baseline: Row, mlp: Row | None, hybrids: list[Row], above_chance: bool) -> Claim:
    finding = "Every hybrid comes near standard attention in perplexity."
    apart = {_name(row): found for row in hybrids if (found := _apart(row, baseline, WIKI))}
    if len(apart) < len(hybrids):
        return _open(finding, f"{len(apart)} of {len(hybrids)} hybrids measured.")
    worst = max(apart, key=lambda name: fmean(apart[name].values()))
    numbers = (
        f"The farthest in {WIKITEXT} is {worst}, {_times(apart[worst])} standard attention's "
        f"{_shown(_mean(baseline, WIKI))}; near is up to {NEAR_PERPLEXITY:g} times."
    )
    if mlp is not None:
        if not (nothing := _apart(mlp, baseline, WIKI)):
            return _open(finding, "Uniform mlp, by which to see what is far, is not measured yet.")
        if not _beyond("mlp", nothing, NEAR_PERPLEXITY).clearly():
            words = f"Uniform mlp, which mixes nothing, has {_times(nothing)} standard attention's {WIKITEXT} itself"
            return _not_judged(finding, f"{words}: not clearly far, which is {NEAR_PERPLEXITY:g} times. Train longer.")
        numbers += f" Uniform mlp, which mixes nothing, has {_times(nothing)}."
    elif not above_chance:
        words = (
            "There is no model that mixes nothing (uniform mlp), to see what is far, and standard attention's accuracy"
        )
        return _not_judged(finding, f"{words} is not clearly above chance.")
    return _judged(finding, [_within(name, found, NEAR_PERPLEXITY) for name, found in apart.items()], numbers, "near")


def _near_in_accuracy(baseline: Row, hybrids: list[Row], guess: tuple[str, float] | None) -> Claim:
    finding = "Every hybrid comes within a few points of standard attention's accuracy."
    lost = {_name(row): found for row in hybrids if (found := _apart(baseline, row, AVERAGE))}
    if len(lost) < len(hybrids):
        return _open(finding, f"{len(lost)} of {len(hybrids)} hybrids measured.")
    ours = f"Average accuracy of standard attention is {100 * _mean(baseline, AVERAGE):.1f} %"
    if not _above_chance(baseline, guess):
        beside = f"{100 * guess[1]:.1f} % of chance ({guess[0]})" if guess else "chance, which is not known"
        return _not_judged(
            finding, f"{ours}, not clearly above the {beside}: to be near it says nothing. Train longer."
        )
    margins = [
        Margin(
            _name(row),
            {seed: NEAR_POINTS / 100 - x for seed, x in lost[_name(row)].items()},
            math.hypot(*(document_error(AVERAGE, one["ours"][AVERAGE]) for one in (row, baseline))),
        )
        for row in hybrids
    ]
    worst = max(lost, key=lambda name: fmean(lost[name].values()))
    farthest = f"the farthest below is {worst}, by {100 * fmean(lost[worst].values()):.1f} points"
    return _judged(finding, margins, f"{ours}; {farthest}; near is up to {NEAR_POINTS:g}.", "near")


def _best_guess(chance: list[Row]) -> tuple[str, float] | None:
    """Name and average accuracy of the better of the ways to answer without a model."""
    guesses = {row["label"]: value for row in chance if (value := _value(row, AVERAGE)) is not None}
    return max(guesses.items(), key=lambda item: item[1]) if guesses else None


def _above_chance(baseline: Row, guess: tuple[str, float] | None) -> bool:
    """Tell whether standard attention's average accuracy is clearly above chance."""
    if guess is None or not (values := _values(baseline, AVERAGE)):
        return False
    error = document_error(AVERAGE, baseline["ours"][AVERAGE])
    return Margin(STANDARD, {seed: x - guess[1] for seed, x in values.items()}, error).clearly()


def _skip(rows: list[Row]) -> Iterator[Claim]:
    skipped = [row for row in rows if row["skipped"]]
    if not skipped:
        return
    finding = "Leaving a hybrid's variant layers out destroys it: they do work, though they look redundant."
    whole = {row["run"]: row for row in rows if not row["skipped"]}
    apart = {_name(row): found for row in skipped if (found := _apart(row, whole[row["run"]], WIKI))}
    if len(apart) < len(skipped):
        yield _open(finding, f"{len(apart)} of {len(skipped)} measured.")
        return
    least = min(apart, key=lambda name: fmean(apart[name].values()))
    numbers = f"{WIKITEXT} grows least for {least}, to {_times(apart[least])} its own; destroyed is {COLLAPSE:g} times."
    yield _judged(finding, [_beyond(name, found, COLLAPSE) for name, found in apart.items()], numbers, "destroyed")


def _contexts(table: dict[str, Any] | None) -> Iterator[Claim]:
    if table is None or len(table["columns"]) < 2:
        return
    first, last = table["columns"][0], table["columns"][-1]
    chance = [row for row in table["rows"] if "run" not in row]
    rows = [row for row in table["rows"] if "run" in row and row["pattern"] == UNIFORM]
    for kind in dict.fromkeys(_kind(row) for row in rows):
        here, models = [row for row in rows if _kind(row) == kind], {"models": _label(*kind)}
        baseline, mlp = ([row for row in here if row["variant"] == variant] for variant in (STANDARD, "mlp"))
        if untrained := _untrained(baseline[0] if baseline else None, chance, last):
            yield models | untrained
            continue
        gained = {}
        for row in (*baseline, *mlp):
            early, late = _values(row, first), _values(row, last)
            gained[row["variant"]] = {seed: early[seed] - late[seed] for seed in early.keys() & late.keys()}
        for row in (*baseline, *mlp):
            finding, margins = (
                ("Standard attention gains from a longer context.", [_beyond(STANDARD, gained[STANDARD], LONGER)])
                if row["variant"] == STANDARD
                else (
                    "Without mixing the length of the context does not matter.",
                    [
                        _within("mlp", gained["mlp"], LONGER),
                        _within("mlp", {seed: -x for seed, x in gained["mlp"].items()}, LONGER),
                    ],
                )
            )
            if not gained[row["variant"]]:
                yield models | _open(finding)
                continue
            ends = [_shown(_mean(row, length)) for length in (first, last)]
            numbers = f"{WIKITEXT} {ends[0]} at {first} tokens, {ends[1]} at {last}."
            yield models | _judged(finding, margins, numbers)


def _judged(finding: str, margins: list[Margin], numbers: str, word: str = "") -> Claim:
    """Give the verdict; `word` is what a model is called for which its margin is above zero."""
    if not all(margin.values for margin in margins):
        return _open(finding, "Not measured with the same seed yet.")
    below = [margin.of for margin in margins if margin.mean <= 0]
    if word and below:
        numbers += f" Not {word}: {', '.join(below)}."
    if min(len(margin.values) for margin in margins) == 1:
        return _claim(finding, "not seen" if below else "seen", numbers + " One seed: there is no interval.")
    strict = family_level(len(margins))
    if all(margin.holds() for margin in margins):
        return _claim(finding, "shows", numbers)
    if any(margin.fails(strict) for margin in margins):
        return _claim(finding, "does not show", numbers)
    # One margin below zero would decide it; where none leans there, all must be above.
    if below:
        needed = [margin.seeds_needed(strict) for margin in margins if margin.mean <= 0]
        more = min((count for count in needed if count is not None), default=None)
    else:
        needed = [margin.seeds_needed(LEVEL) for margin in margins if not margin.holds()]
        more = None if None in needed else max(count for count in needed if count is not None)
    have = min(len(margin.values) for margin in margins)
    if more is None:
        words = "going by their spread, more seeds alone would not tell."
    else:
        words = (
            f"going by their spread, {max(more - have, 1)} more {'seed' if more - have <= 1 else 'seeds'} would tell."
        )
    return _claim(finding, "undecided", f"{numbers} Undecided at this size with {have} seeds; {words}")


def _open(finding: str, numbers: str = "Not measured yet.") -> Claim:
    return _claim(finding, "open", numbers)


def _not_judged(finding: str, numbers: str) -> Claim:
    return _claim(finding, "not judged", numbers)


def _claim(finding: str, verdict: str, numbers: str) -> Claim:
    shows = {"shows": True, "does not show": False}.get(verdict)
    return {"finding": finding, "verdict": verdict, "shows": shows, "numbers": numbers}


def _beyond(of: str, apart: dict[int, float], factor: float) -> Margin:
    """Of logarithms of ratios: the ratio is at least a factor."""
    return Margin(of, {seed: x - math.log(factor) for seed, x in apart.items()})


def _within(of: str, apart: dict[int, float], factor: float) -> Margin:
    """Of logarithms of ratios: the ratio is at most a factor."""
    return Margin(of, {seed: math.log(factor) - x for seed, x in apart.items()})


def _apart(one: Row, other: Row, title: str) -> dict[int, float]:
    """Differences by the seeds that both rows have; of perplexities, logarithms of ratios."""
    ours, theirs = _values(one, title), _values(other, title)
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


def _values(row: Row, title: str) -> dict[int, float]:
    return logs(title, row["ours"].get(title, {}))


def _value(row: Row, title: str) -> float | None:
    """The number of a row of chance."""
    value: float | None = row["ours"].get(title, {}).get("value")
    return value


def _mean(row: Row, title: str) -> float:
    value: float = row["ours"][title]["value"]
    return value


def _one(rows: list[Row], variant: str) -> Row | None:
    found = [row for row in rows if row["variant"] == variant and row["pattern"] == UNIFORM and not row["skipped"]]
    return found[0] if found else None


def _kind(row: Row) -> tuple[str, int, int | None]:
    """Size, key/value heads, and tokens where there are several numbers of them: models that are compared."""
    return row["size"], row["key_value_heads"], row.get("told_tokens")


def _label(size: str, heads: int, tokens: int | None) -> str:
    label = size_name(size) + (f", {heads} key/value heads" if heads else "")
    return label + (f", {tokens:,} tokens" if tokens else "")


def _name(row: Row) -> str:
    return f"{row['variant']} {row['pattern']}"


def _shown(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.3g}".replace("e+0", "e")


def _times(apart: dict[int, float]) -> str:
    """Format the mean ratio and its interval over seeds, from logarithms."""
    found = mean_interval(list(apart.values()))
    words = _ratio(found.mean)
    if found.low is not None and found.high is not None:
        words += f" [{_ratio(found.low)}, {_ratio(found.high)}]"
    return f"{words} times"


def _ratio(logarithm: float) -> str:
    ratio = math.exp(min(logarithm, 690.0))
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}" if ratio < 1e4 else f"{ratio:.0e}"
