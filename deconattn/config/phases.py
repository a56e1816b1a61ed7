"""Phases of a run: `--phase STEP key=value ...`, what changes from a step on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deconattn.errors import UserError

KEYS = ("data", "seq_len", "global_batch_size", "micro_batch_size", "lr")


@dataclass(frozen=True)
class Phase:
    """What changes from a step on; None is left as it was.

    Attributes:
        step: steps done before it.
        data: corpora, each DIR or DIR:WEIGHT, in the place of those before.
        lr: peak learning rate.
    """

    step: int
    data: tuple[str, ...] | None = None
    seq_len: int | None = None
    global_batch_size: int | None = None
    micro_batch_size: int | None = None
    lr: float | None = None

    @property
    def shown(self) -> str:
        """What it sets, as it was given."""
        told = [f"data={argument}" for argument in self.data or ()]
        return " ".join(told + [f"{key}={getattr(self, key)}" for key in KEYS[1:] if getattr(self, key) is not None])


def parse_phases(given: Sequence[Sequence[str]]) -> tuple[Phase, ...]:
    """Return phases in order; of two for one step the later one counts, and one that sets nothing takes it away.

    Raises:
        UserError: naming the words that are none.
    """
    phases: dict[int, Phase] = {}
    for words in given:
        if not words:
            raise UserError("--phase is empty: give STEP and what changes from it on")
        step = _number(words, "STEP", words[0])
        values: dict[str, str] = {}
        corpora: list[str] = []
        for word in words[1:]:
            key, equals, value = word.partition("=")
            key = key.replace("-", "_")
            if key not in KEYS or not equals or not value:
                raise UserError(f"--phase {' '.join(words)}: {word!r} is none of {', '.join(f'{k}=' for k in KEYS)}")
            if key in values:
                raise UserError(f"--phase {' '.join(words)}: {key} is there twice: leave one out")
            if key == "data":
                corpora.append(value)
            else:
                values[key] = value
        if values or corpora:
            numbers = {key: _number(words, key, value) for key, value in values.items() if key != "lr"}
            rate = _rate(words, values["lr"]) if "lr" in values else None
            phases[step] = Phase(step, tuple(corpora) or None, lr=rate, **numbers)
        elif phases.pop(step, None) is None:
            raise UserError(f"--phase {step} sets nothing: give one of {', '.join(f'{key}=' for key in KEYS)}")
    return tuple(phases[step] for step in sorted(phases))


def _number(words: Sequence[str], what: str, value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"--phase {' '.join(words)}: {what} is {value!r}: it must be a whole number above zero")
    return number


def _rate(words: Sequence[str], value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UserError(f"--phase {' '.join(words)}: lr is {value!r}: it must be a number above zero")
    return rate
