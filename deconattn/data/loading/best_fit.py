"""Documents packed into sequences of equal length so that none is cut that fits (`--packing best-fit`).

Which pieces of documents a sequence has is looked up in a table in a file
(:mod:`~deconattn.data.loading.best_fit_table`), which :mod:`~deconattn.data.loading.best_fit_build` makes by the
algorithm of :mod:`~deconattn.data.loading.best_fit_packing`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.corpus import TokenCorpus
from deconattn.data.loading.best_fit_table import Table, key_of, open_table
from deconattn.data.loading.sample_layout import Row, write_shifted
from deconattn.data.mapped import fetch
from deconattn.errors import UserError
from deconattn.ops.cross_entropy import IGNORED


@dataclass(frozen=True)
class BestFitSummary:
    """Result of best-fit packing: counts, and the share of padding."""

    documents: int
    sequences: int
    cut: int
    """Documents longer than a sequence; no other is cut."""
    padding: float
    """Share of the sequences' places that hold padding."""

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents in {self.sequences:,} sequences, {self.padding:.2%} padding, "
            f"{self.cut:,} cut (longer than a sequence)"
        )


class BestFit:
    """A corpus whose samples are packed sequences (a :class:`~deconattn.data.loading.sample_layout.SampleLayout`).

    A document of more than `seq_len` tokens (its separator included) is cut into pieces of `seq_len`; the rest of
    it is packed like a document. What remains free at a sequence's end is padded with the separator, labelled
    IGNORED, and counts as a document of its own, so that masks keep it apart. The last token of a sequence has a
    label only where its document goes on.

    Depends on nothing but the documents' lengths and `seq_len`. The table is mapped: its pages are the system's cache,
    shared by all processes of a machine.

    Args:
        spare: folder for the table where the corpus's cannot be written.
        verify: see :func:`~deconattn.data.loading.best_fit_table.open_table`.

    Raises:
        UserError: a damaged shard, or nowhere to write the table to.
    """

    def __init__(self, corpus: TokenCorpus, seq_len: int, spare: Path | None = None, verify: bool = True) -> None:
        if not corpus.num_tokens:
            raise UserError(f"{corpus.folder} ({corpus.split}) has no tokens; pack more text")
        self._corpus, self._seq_len = corpus, seq_len
        self._use(open_table(corpus, seq_len, spare, verify))
        header = self._table.header
        self.num_samples = header.full + header.packed
        self.packing = BestFitSummary(
            documents=header.documents,
            sequences=self.num_samples,
            cut=header.cut,
            padding=1 - corpus.num_tokens / (self.num_samples * seq_len),
        )

    def fill(self, place: int, input_ids: Row, labels: Row, begins: npt.NDArray[np.bool_] | None) -> None:
        """See :class:`~deconattn.data.loading.sample_layout.SampleLayout`."""
        pieces, goes_on = self._pieces(place)
        if goes_on:
            write_shifted(self._corpus.pieces(pieces[0][0], self._seq_len + 1), input_ids, labels)
            if begins is not None:
                begins[0] = True
            return
        at = 0
        for start, length in pieces:
            if begins is not None:
                begins[at] = True
            for tokens in self._corpus.pieces(start, length):
                input_ids[at : at + len(tokens)] = tokens
                at += len(tokens)
        labels[: at - 1] = input_ids[1:at]
        labels[at - 1 :] = IGNORED
        input_ids[at:] = self._corpus.manifest.eos_token_id
        if begins is not None:
            begins[at] = True

    def check(self, place: int) -> None:
        """See :class:`~deconattn.data.loading.sample_layout.SampleLayout`."""
        pieces, goes_on = self._pieces(place)
        for start, length in pieces:
            self._corpus.read(start, length + goes_on)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_table", "_places")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        try:
            self._use(Table(self._path, key_of(self._corpus, self._seq_len), verify=False))
        except (OSError, ValueError) as error:
            raise UserError(f"{self._path} is gone or damaged ({error}): resume the run, which makes it anew") from None

    def _use(self, table: Table) -> None:
        self._table, self._path = table, table.path
        self._places = [array.ctypes.data for array in (table.full, table.bounds, table.starts, table.lengths)]

    def _pieces(self, place: int) -> tuple[list[tuple[int, int]], bool]:
        """Start and length of each piece of a sequence, and whether the document of a full one goes on."""
        table = self._table
        full, bounds, starts, lengths = self._places
        if place < len(table.full):
            self._fetch(full + 8 * place, 8)
            start, goes_on = divmod(int(table.full[place]), 2)
            return [(start, self._seq_len)], bool(goes_on)
        place -= len(table.full)
        self._fetch(bounds + 8 * place, 16)
        low, high = table.bounds[place : place + 2].tolist()
        self._fetch(starts + 8 * low, 8 * (high - low))
        self._fetch(lengths + 4 * low, 4 * (high - low))
        return list(zip(table.starts[low:high].tolist(), table.lengths[low:high].tolist(), strict=True)), False

    def _fetch(self, address: int, size: int) -> None:
        try:
            fetch(address, size)
        except OSError as error:
            raise UserError(
                f"{self._path} can no longer be read ({error.strerror}); check the disk or the network it lies on, "
                "then resume the run"
            ) from None
