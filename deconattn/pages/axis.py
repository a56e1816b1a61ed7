"""Axis of a chart: where values lie on it, and the round ones that are named."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

TICKS = 5


@dataclass(frozen=True)
class Axis:
    """From `low`..`high` to `start`..`end`, in the drawing's units."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, log: bool = False) -> "Axis":
        """An axis that all values fit on, with a little room at its ends; `log` needs values above zero."""
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        room = (high - low) * 0.06 or 0.1 * (abs(high) or 1.0)
        low, high = low - room, high + room
        return cls(10**low, 10**high, start, end, True) if log else cls(low, high, start, end)

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, value = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values on the axis, about as many as fit."""
        return _log_ticks(self.low, self.high) if self.log else _even_ticks(self.low, self.high)


def labels(ticks: Sequence[float]) -> list[str]:
    """Labels of ticks, with as many digits as tell them apart."""
    return next(
        (found for digits in range(3, 16) if len(set(found := [short(tick, digits) for tick in ticks])) == len(ticks)),
        [str(tick) for tick in ticks],
    )


def short(value: float, digits: int = 3) -> str:
    """A number as it stands on an axis."""
    size = abs(value)
    if size >= 1e5:
        for power, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
            if power <= size < 1000 * power:
                return f"{value / power:.{digits}g} {letter}"
    if size and (size >= 1e5 or size < 1e-3):
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.0f}" if size >= 1000 and digits == 3 else f"{value:.{digits}g}"


def _even_ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= TICKS)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten where there are two or more; else 1, 2 and 5 between them; else even ones."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, math.ceil(len(exponents) / (TICKS + 1)))
    powers = [10.0**exponent for exponent in exponents if exponent % every == 0]
    for candidates in (powers, [power * factor for power in powers for factor in (1, 2, 5)]):
        inside = [value for value in candidates if low <= value <= high]
        if 2 <= len(inside) <= TICKS + 2 and (candidates is not powers or len(inside) > 2):
            return inside
    return _even_ticks(low, high)
