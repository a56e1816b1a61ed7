"""Layers of several mixers by heads: their names, such as `standard[0-5]+nonapproximate[6-8]`, taken apart."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deconattn.errors import UserError

_PART = re.compile(r"([^\s\[\]+]+)\[(\d{1,6})(?:-(\d{1,6}))?\]")


@dataclass(frozen=True)
class HeadPart:
    """Query heads `first` to `last` of a layer, counted from 0, and the name of the mixer that they are."""

    mixer: str
    first: int
    last: int

    @property
    def count(self) -> int:
        """Number of query heads."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.mixer}[{self.first}-{self.last}]" if self.count > 1 else f"{self.mixer}[{self.first}]"


def head_parts(name: str) -> tuple[HeadPart, ...]:
    """Return the parts of a layer's variant, by their heads; none where it is one mixer's name.

    Raises:
        UserError: a part that cannot be read.
    """
    if "[" not in name:
        return ()
    parts = []
    for text in name.split("+"):
        match = _PART.fullmatch(text.strip())
        if match is None:
            raise UserError(
                f"{name!r}: cannot read {text.strip()!r}; write NAME[FIRST-LAST] or NAME[HEAD], joined by +"
            )
        first, last = int(match[2]), int(match[3] or match[2])
        if last < first:
            raise UserError(f"{name!r}: {text.strip()!r} ends before it begins; write NAME[FIRST-LAST]")
        parts.append(HeadPart(match[1], first, last))
    return tuple(sorted(parts, key=lambda part: part.first))


def spelled(parts: Iterable[HeadPart]) -> str:
    """Return the one spelling of parts."""
    return "+".join(map(str, parts))


def simplest(variant: str) -> str:
    """Return a variant, checked, by its mixer's name where that has all heads."""
    parts = head_parts(variant)
    return parts[0].mixer if len(parts) == 1 else variant


def mixer_names(variants: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the mixers that layers of these variants are made of, each once, in order."""
    return tuple(dict.fromkeys(name for variant in variants for name in _mixers(variant)))


def renamed(variant: str, names: Mapping[str, str]) -> str:
    """Return a variant with its mixers under other names, where `names` has them."""
    if not (parts := head_parts(variant)):
        return names.get(variant, variant)
    return spelled(HeadPart(names.get(part.mixer, part.mixer), part.first, part.last) for part in parts)


def check_heads(variant: str, heads: int, key_value_heads: int) -> None:
    """Check that a variant's parts are all heads of a layer, and that grouped heads stay together.

    Raises:
        UserError: naming the first head that no part has, or two have, or the group that two parts share.
    """
    parts, next_head = head_parts(variant), 0
    for part in parts:
        if part.last >= heads:
            raise UserError(f"{variant!r}: {part} is beyond the layer's {heads} heads, 0 to {heads - 1}: correct it")
        if part.first < next_head:
            raise UserError(f"{variant!r}: head {part.first} is twice: give each of the {heads} heads to one part")
        if part.first > next_head:
            break
        next_head = part.last + 1
    if parts and next_head < heads:
        raise UserError(f"{variant!r}: head {next_head} is in no part: give each of the {heads} heads to one part")
    group = heads // key_value_heads
    for part in parts:
        if part.first % group:
            start = part.first // group * group
            raise UserError(
                f"{variant!r}: {part} cuts heads {start} to {start + group - 1}, which share a key/value head: "
                f"keep groups of {group} heads in one part"
            )


def _mixers(variant: str) -> tuple[str, ...]:
    return tuple(part.mixer for part in head_parts(variant)) or (variant,)
