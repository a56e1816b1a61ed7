"""Selection of the documents that a pack takes, in reading order, and of those held out for validation.

A document is taken that is not too short and has not been seen before, until there are enough.
"""

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from deconattn.data.loading.sampler import mix
from deconattn.data.manifest import Manifest
from deconattn.data.packing.document_batch import DocumentBatch
from deconattn.data.packing.encode import HASH_BYTES, Encoded, Hashes
from deconattn.data.packing.journal import Journal
from deconattn.data.packing.pack_config import PackConfig
from deconattn.data.reading.blocks import InputBlock, read_input
from deconattn.data.reading.chat import ChatTemplate
from deconattn.data.reading.input_files import Input
from deconattn.data.reading.texts import Tally, parse_block

_GROWTH = 8
_FAR = 2  # times as many tokens as were asked for, or one part in so many, is far from it
_WHOLE = 0.1  # of all tokens; a last document of no more is not cut
_SHORT = 64  # tokens; nor is one of no more
_SEED = mix(0x5EED)


@overload
def is_validation(number: int, fraction: float) -> bool: ...


@overload
def is_validation(number: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]: ...


def is_validation(number: int | npt.NDArray[np.uint64], fraction: float) -> bool | npt.NDArray[np.bool_]:
    """Whether document `number` (0-based, in reading order; or a uint64 array `[n]`) is held out.

    True with probability `fraction`. The caller sees to it that neither split stays empty.
    """
    threshold = int(fraction * 2**64)
    if isinstance(number, np.ndarray):
        return mix(number ^ np.uint64(_SEED)) < np.uint64(threshold)
    return mix(number ^ _SEED) < threshold


def validation_note(manifest: Manifest, fraction: float) -> str:
    """What to tell of a validation split whose tokens are far from the fraction asked for; empty otherwise."""
    total = sum(shard.tokens for shard in manifest.shards)
    held = sum(shard.tokens for shard in manifest.of_split("val")) / max(total, 1)
    if all(want / _FAR <= share <= want * _FAR for share, want in ((held, fraction), (1 - held, 1 - fraction))):
        return ""
    return (
        f"the validation split has {held:.2%} of the tokens, not {fraction:.2%}: the documents are too few, or too "
        "unequal, to come nearer"
    )


def share_of_last(counts: "Counts", fraction: float) -> float | None:
    """Where all documents fell to one split: the part at the end of the last one that is to be the validation split.

    None if the whole last document is to be the other split: it is a short one, or has not many more tokens than that
    split should have, or a tenth of all at most.
    """
    assert counts.last is not None, "a document was taken"
    wanted = (1 - fraction if counts.held_out else fraction) * counts.tokens
    length = counts.last[-1]
    if length <= max(_SHORT, wanted * _FAR, counts.tokens * _WHOLE):
        return None
    return 1 - wanted / length if counts.held_out else wanted / length


def cut_document(text: str, fraction: float) -> list[str]:
    """Cut a document in two at white space, the second about `fraction` of it.

    Joined again the two are the text. It stays whole where there is nothing to cut.
    """
    body = len(text.rstrip())
    target = min(max(round(body * (1 - fraction)), 1), body - 1)
    spaces = [match.start() for match in re.finditer(r"\s+", text[:body]) if match.start() > 0]
    if spaces:
        before = [space for space in spaces if space <= target]
        target = before[-1] if before else spaces[0]
    return [text[:target], text[target:]] if target > 0 else [text]


@dataclass
class Counts:
    """Counts of what has been taken so far.

    Attributes:
        documents, tokens, text_bytes: totals of the documents taken.
        held_out: documents whose numbers make them validation documents.
        input: number of the input that is being read.
        lines: number of that input's lines that have been read.
        last: where the document is that was taken last (number of the input and of the block, place among the block's
            texts), and its tokens.
        tally: what was skipped.
    """

    tally: Tally
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    held_out: int = 0
    input: int = 0
    lines: int = 0
    last: Sequence[int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON types."""
        return {**vars(self), "tally": self.tally.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], max_bad: int) -> "Counts":
        """The inverse of :meth:`as_dict`, with a limit of bad lines that may be another."""
        return cls(**{**values, "tally": Tally.from_dict({**values["tally"], "max_bad": max_bad})})


class HashSet:
    """The hashes seen so far, in a few sorted arrays, each some times larger than the next.

    A small array is merged into its neighbour when it has grown near it, so that a look-up is a few binary searches
    and each hash is moved a few times in its life.
    """

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def add(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Add hashes `[n]`; which of them were new, `[n]`. Of equal ones among them the first is."""
        ordered, first = np.unique(hashes, return_index=True)
        known = np.zeros(len(ordered), dtype=np.bool_)
        for run in self._runs:
            place = np.searchsorted(run, ordered)
            place[place == len(run)] = 0  # beyond the end: equal to none, the first least of all
            known |= run[place] == ordered
        new = np.zeros(len(hashes), dtype=np.bool_)
        new[first[~known]] = True
        self._keep(ordered[~known])
        return new

    def _keep(self, ordered: Hashes) -> None:
        if not len(ordered):
            return
        self._runs.append(ordered)
        while len(self._runs) > 1 and len(self._runs[-2]) < _GROWTH * len(self._runs[-1]):
            last = self._runs.pop()
            merged = np.concatenate([self._runs.pop(), last])
            merged.sort(kind="stable")  # which finds the two ordered parts and merges them
            self._runs.append(merged)


class Selection:
    """Judges the documents of blocks, in order. Where to go on from is `counts`, and for --dedup a log of hashes."""

    def __init__(
        self,
        inputs: Sequence[Input],
        journal: Journal,
        config: PackConfig,
        counts: Counts,
        chat: ChatTemplate | None = None,
    ) -> None:
        self.counts, self._chat = counts, chat
        self._last_block: InputBlock | None = None
        self._inputs, self._config = inputs, config
        self._seen: HashSet | None = None
        if config.dedup is not None:
            self._seen = HashSet()
            self._log = journal.log("hashes", counts.documents * HASH_BYTES)
            self._seen.add(np.fromfile(self._log.path, dtype=f"S{HASH_BYTES}"))

    @property
    def full(self) -> bool:
        """Whether there are as many tokens as are wanted."""
        return self._config.max_tokens is not None and self.counts.tokens >= self._config.max_tokens

    def judge(self, block: InputBlock, encoded: Encoded) -> tuple[DocumentBatch, npt.NDArray[np.bool_]]:
        """Count a block; the documents to take, and which of them are held out for validation by their numbers.

        Raises :class:`UserError` for one bad line too many.
        """
        counts, tally = self.counts, self.counts.tally
        if block.input != counts.input:
            counts.input, counts.lines = block.input, 0
        for row, reason in encoded.bad:
            tally.add_bad(self._inputs[block.input].name, counts.lines + row + 1, reason)
        tally.empty += encoded.empty
        counts.lines += encoded.rows
        taken = self._chosen(encoded)
        numbers = counts.documents + np.cumsum(taken, dtype=np.uint64) - 1
        documents = DocumentBatch(encoded.tokens, encoded.lengths, numbers).take(taken)
        counts.documents += len(documents.lengths)
        counts.tokens += len(documents.tokens)
        counts.text_bytes += int(encoded.sizes[taken].sum())
        held_out = is_validation(documents.numbers, self._config.val_fraction)
        counts.held_out += int(held_out.sum())
        if len(documents.lengths):
            self._last_block = block
            counts.last = (block.input, block.number, int(np.flatnonzero(taken)[-1]), int(documents.lengths[-1]))
        return documents, held_out

    def last_text(self) -> str:
        """The text of the document that was taken last. Raises :class:`UserError` if it must be read and cannot be."""
        assert self.counts.last is not None, "a document was taken"
        index, number, place, _ = self.counts.last
        block, field = self._last_block, self._config.text_field
        if block is None:  # it was taken before the pack was interrupted
            with closing(read_input(self._inputs[index], field, index, number)) as blocks:
                block = next(blocks)
        return parse_block(block, field, self._chat).texts[place]

    def _chosen(self, encoded: Encoded) -> npt.NDArray[np.bool_]:
        long = encoded.lengths >= self._config.min_tokens
        taken = long.copy()
        if self._seen is not None:
            assert encoded.hashes is not None, "the workers were told to hash"
            taken[long] = self._seen.add(encoded.hashes[long])
        judged = len(taken)
        if self._config.max_tokens is not None:
            tokens = self.counts.tokens + np.cumsum(np.where(taken, encoded.lengths, 0))
            reached = tokens >= self._config.max_tokens
            if reached.any():
                judged = int(reached.argmax()) + 1
                taken[judged:] = False
        self.counts.tally.short += int((~long[:judged]).sum())
        self.counts.tally.duplicates += int((long & ~taken)[:judged].sum())
        if encoded.hashes is not None:
            self._log.write(encoded.hashes[taken].tobytes())
        return taken
