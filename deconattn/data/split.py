"""Which documents are held out for validation: decided by a document's number alone."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TypeVar

from deconattn.data.manifest import SPLITS
from deconattn.data.sampler import mix

Item = TypeVar("Item")
_SEED = 0x5EED


def is_validation(number: int, fraction: float) -> bool:
    """Whether document `number` (0-based, in reading order) is held out, with probability `fraction`."""
    return mix(number ^ mix(_SEED)) < int(fraction * 2**64)


def split_documents(documents: Iterable[Item], fraction: float, was_cut: bool) -> Iterator[tuple[str, Item]]:
    """Give each document its split, `"train"` or `"val"`, in order.

    With two documents or more and a positive fraction neither split stays empty: the last document goes where
    one is missing. It is why one document is always held back. The halves of a single document that
    :func:`cut_if_single` cut are one of each.
    """
    if was_cut:
        yield from zip(SPLITS, documents, strict=True)
        return
    last: Item | None = None
    drawn: set[str] = set()
    number = -1
    for number, document in enumerate(documents):
        if last is not None:
            split = _split_of(number - 1, fraction)
            drawn.add(split)
            yield split, last
        last = document
    if last is None:
        return
    split = _split_of(number, fraction)
    if number == 0:
        split = "train"
    elif fraction > 0 and drawn == {split}:
        split = "train" if split == "val" else "val"
    yield split, last


def cut_if_single(texts: Iterable[str], fraction: float) -> tuple[Iterator[str], bool]:
    """Pass `texts` on; if there is only one, cut it in two at white space, the second about `fraction` of it.

    Returns the texts and whether one was cut. Joined again the two halves are the text.
    """
    iterator = iter(texts)
    first = list(islice(iterator, 2))
    if len(first) != 1 or fraction == 0:
        return chain(first, iterator), False
    halves = _cut(first[0], fraction)
    return iter(halves), len(halves) == 2


def _split_of(number: int, fraction: float) -> str:
    return "val" if is_validation(number, fraction) else "train"


def _cut(text: str, fraction: float) -> list[str]:
    body = len(text.rstrip())
    target = min(max(round(body * (1 - fraction)), 1), body - 1)
    spaces = [match.start() for match in re.finditer(r"\s+", text[:body]) if match.start() > 0]
    if spaces:
        before = [space for space in spaces if space <= target]
        target = before[-1] if before else spaces[0]
    return [text[:target], text[target:]] if target > 0 else [text]
