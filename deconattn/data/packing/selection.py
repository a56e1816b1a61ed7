"""Which documents a pack takes, in reading order: not too short, not seen before, until there are enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.packing.config import PackConfig
from deconattn.data.packing.dedup import HASH_BYTES, HashSet
from deconattn.data.packing.documents import Documents
from deconattn.data.packing.encode import Encoded
from deconattn.data.packing.journal import Journal
from deconattn.data.packing.split import is_validation
from deconattn.data.reading.blocks import Block
from deconattn.data.reading.inputs import Input
from deconattn.data.reading.tally import Tally


@dataclass
class Counts:
    """What has been taken so far.

    Attributes:
        documents, tokens, text_bytes: of those taken.
        held_out: documents whose numbers make them validation documents.
        input: number of the input that is being read.
        lines: of it that have been read.
        tally: what was skipped.
    """

    tally: Tally
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    held_out: int = 0
    input: int = 0
    lines: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON types."""
        return {**vars(self), "tally": self.tally.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], max_bad: int) -> "Counts":
        """The inverse of :meth:`as_dict`, with a limit of bad lines that may be another."""
        return cls(**{**values, "tally": Tally.from_dict({**values["tally"], "max_bad": max_bad})})


class Selection:
    """Judges the documents of blocks, in order. Where to go on from is `counts`, and for --dedup a log of hashes."""

    def __init__(self, inputs: Sequence[Input], journal: Journal, config: PackConfig, counts: Counts) -> None:
        self.counts = counts
        self.only: tuple[Block, int] | None = None
        """Where the document is, if only one has been taken so far: block, and number among its texts."""
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

    def judge(self, block: Block, encoded: Encoded) -> tuple[Documents, npt.NDArray[np.bool_]]:
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
        documents = Documents(encoded.tokens, encoded.lengths, numbers).take(taken)
        counts.documents += len(documents.lengths)
        counts.tokens += len(documents.tokens)
        counts.text_bytes += int(encoded.sizes[taken].sum())
        held_out = is_validation(documents.numbers, self._config.val_fraction)
        counts.held_out += int(held_out.sum())
        if counts.documents > 1:
            self.only = None
        elif len(documents.lengths):
            self.only = (block, int(taken.argmax()))
        return documents, held_out

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
