"""Scaling fits: validation loss = E + A * x^-alpha over the sizes or the tokens of a model, with intervals over seeds.

The form of Hoffmann et al. 2022 (arXiv 2203.15556), in one variable: all parameters, or tokens of whole trainings.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from deconattn.reproduction.cells import LOSS, logs
from deconattn.statistics import mean_interval

POINTS = 3
"""Sizes, or numbers of tokens, that three unknowns need."""
LARGEST_EXPONENT = 3.0

Fit = dict[str, Any]
Row = dict[str, Any]


def series_of(table: Mapping[str, Any]) -> list[tuple[str, Any, list[Row]]]:
    """The rows of a table that differ in size alone, or in tokens alone: (`parameters` or `tokens`, what of, rows)."""
    rows = [row for row in table["rows"] if "run" in row and not row["skipped"]]
    found = []
    for by, varied, fixed in (("parameters", "size", "told_tokens"), ("tokens", "told_tokens", "size")):
        for at in dict.fromkeys(row[fixed] for row in rows):
            here = [row for row in rows if row[fixed] == at]
            if len({row[varied] for row in here}) > 1:
                found.append((by, at, here))
    return found


def fits_of(table: Mapping[str, Any]) -> list[Fit]:
    """Fit each model of a table of several sizes or numbers of tokens.

    Returns:
        For each what it is over, `by`, of what, `at`, its `variant` and `pattern`, and either `why` there is no fit, or
        `E`, `A` and `alpha` of the means over seeds, and `intervals`, [low, high] of E and alpha over the seeds' own
        fits or None.
    """
    found = []
    for by, at, rows in series_of(table):
        for variant, pattern in dict.fromkeys((row["variant"], row["pattern"]) for row in rows):
            here = [row for row in rows if (row["variant"], row["pattern"]) == (variant, pattern)]
            losses = {row[by]: seeds for row in here if (seeds := logs(LOSS, row["ours"].get(LOSS, {})))}
            found.append({"by": by, "at": at, "variant": variant, "pattern": pattern} | _fit(losses))
    return found


def _fit(losses: Mapping[int, Mapping[int, float]]) -> Fit:
    """Fit losses by x and seed."""
    if len(losses) < POINTS:
        return {"why": f"{len(losses)} of the {POINTS} points that a fit needs"}
    means = [sum(seeds.values()) / len(seeds) for seeds in losses.values()]
    law = power_law(list(losses), means)
    if law is None:
        return {"why": "no power law with a floor fits"}
    shared = sorted(set.intersection(*(set(seeds) for seeds in losses.values())))
    each = [power_law(list(losses), [seeds[seed] for seeds in losses.values()]) for seed in shared]
    laws = [one for one in each if one is not None]
    intervals = None
    if len(laws) == len(each) > 1:
        both = [mean_interval([one[index] for one in laws]) for index in (0, 2)]
        intervals = {name: [one.low, one.high] for name, one in zip(("E", "alpha"), both, strict=True)}
    return {
        "E": law[0],
        "A": law[1],
        "alpha": law[2],
        "seeds": len(each),
        "converged": len(laws),
        "intervals": intervals,
    }


def power_law(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float] | None:
    """Fit y = E + A * x^-alpha by least squares, E and A above zero; None where there is no such law.

    For one alpha it is linear, so that only alpha is searched for.
    """
    import numpy
    from scipy.optimize import minimize_scalar, nnls

    sizes, target = numpy.asarray(x, float), numpy.asarray(y, float)
    middle = float(numpy.exp(numpy.log(sizes).mean()))

    def solve(alpha: float) -> tuple[Any, float]:
        solution, error = nnls(numpy.stack([numpy.ones_like(sizes), (sizes / middle) ** -alpha], axis=1), target)
        return solution, float(error)

    grid = numpy.geomspace(0.005, LARGEST_EXPONENT, 60)
    best = int(numpy.argmin([solve(alpha)[1] for alpha in grid]))
    if best in (0, len(grid) - 1):
        return None
    alpha = float(
        minimize_scalar(
            lambda alpha: solve(alpha)[1],
            bounds=(grid[best - 1], grid[best + 1]),
            method="bounded",
            options={"xatol": 1e-6},
        ).x
    )
    (floor, scale), _ = solve(alpha)
    return None if min(floor, scale) <= 0 else (float(floor), float(scale * middle**alpha), alpha)


def law_curve(fit: Fit, x: Sequence[float], points: int = 40) -> list[tuple[float, float]]:
    """Points of a fit from the smallest to the largest x."""
    if not x:
        return []
    steps = [min(x) * (max(x) / min(x)) ** (number / points) for number in range(points + 1)]
    return [(size, fit["E"] + fit["A"] * size ** -fit["alpha"]) for size in steps]


def fit_words(fit: Fit) -> str:
    """A fit, or why there is none, in words."""
    at = "" if fit["at"] is None else f", {fit['at']}" if fit["by"] == "tokens" else f", {fit['at']:,} tokens"
    name = f"{fit['variant']}, {fit['pattern']}{at}, over {fit['by']}"
    if "why" in fit:
        return f"{name}: no fit, {fit['why']}."
    exponent, floor = f"exponent {fit['alpha']:.3f}", f"floor {fit['E']:.2f} nats"
    if fit["intervals"]:
        (low, high), (least, most) = fit["intervals"]["alpha"], fit["intervals"]["E"]
        return f"{name}: {exponent} [{low:.3f}, {high:.3f}], {floor} [{least:.2f}, {most:.2f}]."
    why = "one seed" if fit["seeds"] == 1 else f"{fit['converged']} of {fit['seeds']} seeds' own fits converge"
    return f"{name}: {exponent}, {floor}; no interval, {why}."
