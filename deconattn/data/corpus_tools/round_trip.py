"""Whether ids are those that a tokenizer gives to some text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.manifest import SPLITS, Manifest
from deconattn.data.tokenizing.tokenizer import Tokenizer

_MAX_TOKENS = 1_000_000  # of a document that is decoded
_SEED = 0
_REPLACEMENT = "�"

Ids = npt.NDArray[Any]


class RoundTrip:
    """A seeded sample of a corpus' documents, for each of which a text is sought that the tokenizer gives its ids.

    Documents of more than a million tokens are left out. `done` counts the documents that were looked at.
    """

    def __init__(self, tokenizer: Tokenizer, manifest: Manifest, sample: int) -> None:
        self._judge = IdJudge(tokenizer)
        self._vocab_size, self._eos, self._bos = tokenizer.vocab_size, tokenizer.eos_token_id, manifest.bos_token_id
        self.done = 0
        held = {split: sum(max(entry.documents, 0) for entry in manifest.of_split(split)) for split in SPLITS}
        total = sum(held.values())
        drawn = np.sort(np.random.default_rng(_SEED).choice(total, min(sample, total), replace=False))
        self._drawn: dict[str, npt.NDArray[np.int64]] = {}
        for split, documents in held.items():
            self._drawn[split], drawn = drawn[drawn < documents], drawn[drawn >= documents] - documents

    def check(self, split: str, first: int, values: Ids, bounds: npt.NDArray[np.int32]) -> Iterator[tuple[int, str]]:
        """Judge the drawn documents among those of a record batch; gives number and fault of each that fails.

        Args:
            first: the number of its first document in the split.
        """
        drawn = self._drawn[split]
        low, high = np.searchsorted(drawn, [first, first + len(bounds) - 1])
        for number in drawn[low:high].tolist():
            ids = values[bounds[number - first] : bounds[number - first + 1]]
            if int(ids.max(initial=0)) >= self._vocab_size or len(ids) > _MAX_TOKENS:
                continue
            self.done += 1
            fault = self._fault(ids)
            if fault:
                yield number, fault

    def _fault(self, ids: Ids) -> str:
        begun = 0
        if self._bos is not None:
            if not len(ids) or int(ids[0]) != self._bos:
                return f"does not begin with the id {self._bos}, as the manifest says that documents do"
            begun = 1
        ended = len(ids) > begun and int(ids[-1]) == self._eos
        return self._judge.fault(ids[begun : len(ids) - ended], begun)


@dataclass(frozen=True)
class _Part:
    """Ids between two tokens that stand outside the model, from place `start` on; `before` is the one before them."""

    start: int
    ids: Ids
    before: int | None


class IdJudge:
    """Finds ids that a tokenizer gives to no text.

    Decoding loses what only encoding puts in, such as the space that a Llama-2 type puts before each part between
    special tokens. Therefore each part is decoded by itself, in the ways in which its text may have begun, and what
    counts is whether the ids come back.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        unreadable = {*tokenizer.special().values()} if tokenizer.special_tokens == "text" else set()
        self._spelling = {i: token for token, i in tokenizer.added_tokens().items() if i not in unreadable}
        self._cuts = [*self._spelling, *([] if tokenizer.unknown_id is None else [tokenizer.unknown_id])]

    def fault(self, ids: Ids, first: int = 0) -> str:
        """What is wrong with ids `[n]`, the first of which is number `first` of its document; nothing if empty."""
        text = self._decode(ids)
        again = self._encode([text])[0]
        if np.array_equal(again, ids) or self._have_text(ids):
            return ""
        returned = self._decode(again)
        if returned != text and np.array_equal(self._encode([returned])[0], again):
            return ""  # the tokenizer normalises its text, and more than once
        if not (np.array_equal(self._encode([returned])[0], again) or self._have_text(again)):
            return ""  # these are right, and would be condemned too
        shared = min(len(ids), len(again))
        differing = np.flatnonzero(again[:shared] != ids[:shared])
        place = first + (int(differing[0]) if len(differing) else shared)
        damaged = f"; its text has bytes that are not UTF-8 ({_REPLACEMENT})" if _REPLACEMENT in text else ""
        return f"from token {place} on its ids are not those that the tokenizer gives its text{damaged}"

    def _have_text(self, ids: Ids) -> bool:
        """Whether a text made of the parts' own texts has these ids."""
        parts, found = self._parts(ids), []
        if len(parts) == 1:
            return False
        for part in parts:
            text = self._text_of(part)
            if text is None:
                return False
            found.append(("" if part.before is None else self._spelling.get(part.before, "")) + text)
        unknown = self._tokenizer.unknown_id
        if unknown is not None and unknown not in self._spelling and (ids == unknown).any():
            return True  # what it stood for is lost
        return np.array_equal(self._encode(["".join(found)])[0], ids)

    def _parts(self, ids: Ids) -> list[_Part]:
        places = np.flatnonzero(np.isin(ids, self._cuts)).tolist()
        bounds = zip([-1, *places], [*places, len(ids)], strict=True)
        return [_Part(at + 1, ids[at + 1 : end], int(ids[at]) if at >= 0 else None) for at, end in bounds]

    def _text_of(self, part: _Part) -> str | None:
        """A text that has the ids of a part, where it stands."""
        if not len(part.ids):
            return ""
        before = "" if part.before is None else self._spelling.get(part.before, "")
        candidates = {self._decode(part.ids): None}
        if part.before is not None and before:  # a decoder takes a space from the beginning of a text, not within
            within = self._decode(np.concatenate([[part.before], part.ids]))
            if within.startswith(before):
                candidates[within[len(before) :]] = None
        candidates |= {text[1:]: None for text in candidates if text.startswith(" ")}
        for text, found in zip(candidates, self._encode([before + text for text in candidates]), strict=True):
            if np.array_equal(found[1:] if before else found, part.ids):
                return text
        return None

    def _encode(self, texts: list[str]) -> list[npt.NDArray[np.uint32]]:
        return self._tokenizer.encode_batch(texts)

    def _decode(self, ids: Ids) -> str:
        return self._tokenizer.decode(ids.tolist())
