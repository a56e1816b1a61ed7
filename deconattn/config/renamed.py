"""Flags of older versions, read as what they are now: on a command line, in a file of flags, in a run's config.json.

A run made by an older version resumes, and a command that worked goes on to work.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_RECOMPUTE = {True: "layer", False: "none"}
_WORDS = {
    "--activation-checkpointing": ("--recompute", _RECOMPUTE[True]),
    "--no-activation-checkpointing": ("--recompute", _RECOMPUTE[False]),
}


def renamed_words(words: Sequence[str]) -> list[str]:
    """Return a command line with today's flags."""
    return [new for word in words for new in _WORDS.get(word.replace("_", "-"), (word,))]


def renamed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's values by the names of today's fields; what was never right is left for others to refuse."""
    return dict(_renamed(name, value) for name, value in values.items())


def _renamed(name: Any, value: Any) -> tuple[Any, Any]:
    if str(name).replace("-", "_") == "activation_checkpointing" and isinstance(value, bool):
        return "recompute", _RECOMPUTE[value]
    return name, value
