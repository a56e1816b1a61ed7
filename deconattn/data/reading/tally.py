"""What reading and packing skipped, and why."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from deconattn.errors import UserError

_EXAMPLES = 5


@dataclass
class Tally:
    """What was skipped and why.

    Attributes:
        max_bad: how many bad lines are tolerated; one more is fatal.
        bad: lines and rows that hold no document.
        empty: documents that are empty or white space.
        duplicates: documents that came before.
        short: documents of too few tokens.
        reasons: bad lines by reason.
        examples: the first bad lines, "NAME:LINE: REASON".
    """

    max_bad: int
    bad: int = 0
    empty: int = 0
    duplicates: int = 0
    short: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add_bad(self, name: str, line: int, reason: str) -> None:
        """Count one bad line (1-based; a row, for Parquet and Arrow). Raises :class:`UserError` beyond `max_bad`."""
        self.bad += 1
        self.reasons[reason] += 1
        place = f"{name}:{line}: {reason}"
        if len(self.examples) < _EXAMPLES:
            self.examples.append(place)
        if self.bad > self.max_bad:
            first = f", first {self.examples[0]}" if self.bad > 1 else ""
            raise UserError(f"{place}: bad line {self.bad}{first}; mend the input or raise --max-bad ({self.max_bad})")

    def as_dict(self) -> dict[str, Any]:
        """The tally as JSON types."""
        return {**vars(self), "reasons": dict(self.reasons), "examples": list(self.examples)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Tally":
        """The inverse of :meth:`as_dict`."""
        return cls(**{**values, "reasons": Counter(values["reasons"]), "examples": list(values["examples"])})
