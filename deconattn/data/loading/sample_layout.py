"""Layout of samples in a corpus: cut from the concatenation of its documents."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from deconattn.data.corpus import TokenCorpus
from deconattn.errors import UserError

Row = npt.NDArray[np.int64]
"""A row of a batch to be filled, int64 `[seq_len]`."""


class SampleLayout(Protocol):
    """Place of a sample -> its tokens; places are `0 .. num_samples - 1`."""

    num_samples: int

    def fill(self, place: int, input_ids: Row, labels: Row, begins: npt.NDArray[np.bool_] | None) -> None:
        """Write a sample into a row of a batch.

        begins: `[seq_len + 1]`, all false; true is set where a document begins, in the last column if one begins right
        after the row. None if nobody asks.

        Raises :class:`UserError` for a shard that can no longer be read.
        """
        ...

    def check(self, place: int) -> None:
        """Raise :class:`UserError` if sample `place` holds a token id beyond the vocabulary, naming file and token."""
        ...


class Concatenation:
    """Sample i covers tokens `i * seq_len .. (i + 1) * seq_len` of the corpus, both ends included.

    Raises :class:`UserError` for a corpus shorter than one sample.
    """

    def __init__(self, corpus: TokenCorpus, seq_len: int) -> None:
        if corpus.num_tokens <= seq_len:
            raise UserError(
                f"{corpus.folder} ({corpus.split}) has {corpus.num_tokens} tokens, too few for one sequence of "
                f"{seq_len} and its last label; shorten the sequence or pack more text"
            )
        self._corpus, self._seq_len = corpus, seq_len
        self.num_samples = (corpus.num_tokens - 1) // seq_len

    def fill(self, place: int, input_ids: Row, labels: Row, begins: npt.NDArray[np.bool_] | None) -> None:
        """See :class:`SampleLayout`."""
        start, length = place * self._seq_len, self._seq_len + 1
        write_shifted(self._corpus.pieces(start, length), input_ids, labels)
        if begins is not None:
            begins[self._corpus.document_starts(start, length)] = True

    def check(self, place: int) -> None:
        """See :class:`SampleLayout`."""
        self._corpus.read(place * self._seq_len, self._seq_len + 1)


def write_shifted(pieces: list[npt.NDArray[Any]], input_ids: Row, labels: Row) -> None:
    """Write a window of `len(input_ids) + 1` tokens as inputs and, one further, as labels."""
    if len(pieces) == 1:  # nearly always
        input_ids[:] = pieces[0][:-1]
        labels[:] = pieces[0][1:]
        return
    at = 0
    for piece in pieces:
        input_ids[at : at + len(piece)] = piece[: len(input_ids) - at]
        first = max(0, 1 - at)
        labels[at + first - 1 : at + len(piece) - 1] = piece[first:]
        at += len(piece)
