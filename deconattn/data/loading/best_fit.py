"""Documents packed into sequences of equal length so that none is cut that fits (`--packing best-fit`).

Best-fit decreasing, as in "Fewer Truncations Improve Language Modeling" (Ding et al. 2024): the longest first, each
into the fullest sequence that still has room. Documents of one length are placed together, so the work grows with
the number of different lengths; the result is that of placing them one by one.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deconattn.data.corpus import TokenCorpus
from deconattn.data.loading.sample_layout import Row, write_shifted
from deconattn.errors import UserError
from deconattn.ops.cross_entropy import IGNORED

_TABLES = ("_starts", "_lengths", "_bounds", "_goes_on")


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

    Depends on nothing but the documents' lengths and `seq_len`. Keeps about 15 bytes a document, and takes 60 while
    it is made. Other processes of torch's get the tables in shared memory. Raises :class:`UserError` for a damaged
    shard.
    """

    def __init__(self, corpus: TokenCorpus, seq_len: int) -> None:
        if not corpus.num_tokens:
            raise UserError(f"{corpus.folder} ({corpus.split}) has no tokens; pack more text")
        self._corpus, self._seq_len = corpus, seq_len
        lengths = corpus.document_lengths()
        whole, rest = np.divmod(lengths, np.int32(min(seq_len, 2**31 - 1)))
        ends = np.cumsum(lengths, dtype=np.int64)
        packed = np.flatnonzero(rest)
        rest = rest[packed]
        order, bounds = best_fit(rest, seq_len)
        # Sequences in order: a full piece each, then the packed ones. A piece is where it starts in the corpus.
        cut = np.flatnonzero(whole)
        count = whole[cut].astype(np.int64)
        number = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        full = np.repeat((ends - lengths)[cut], count) + number * seq_len
        self._starts = np.concatenate([full, (ends[packed] - rest)[order]])
        self._lengths = np.concatenate([np.full(len(full), seq_len, dtype=np.int32), rest[order]])
        self._bounds = np.concatenate([np.arange(len(full), dtype=np.int64), bounds + len(full)])
        self._goes_on = np.repeat(ends[cut], count) > full + seq_len
        self._shared: dict[str, torch.Tensor] = {}
        self.num_samples = len(self._bounds) - 1
        self.packing = BestFitSummary(
            documents=len(lengths),
            sequences=self.num_samples,
            cut=int((lengths > seq_len).sum()),
            padding=1 - corpus.num_tokens / (self.num_samples * seq_len),
        )

    def fill(self, place: int, input_ids: Row, labels: Row, begins: npt.NDArray[np.bool_] | None) -> None:
        """See :class:`~deconattn.data.loading.sample_layout.SampleLayout`."""
        if place < len(self._goes_on) and self._goes_on[place]:
            write_shifted(self._corpus.pieces(int(self._starts[place]), self._seq_len + 1), input_ids, labels)
            if begins is not None:
                begins[0] = True
            return
        at = 0
        for start, length in self._pieces(place):
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
        goes_on = place < len(self._goes_on) and bool(self._goes_on[place])
        for start, length in self._pieces(place):
            self._corpus.read(start, length + goes_on)

    def __getstate__(self) -> dict[str, Any]:
        # Shared once and kept: torch hands the memory on to each worker process in place of a copy.
        for name in _TABLES:
            if name not in self._shared:
                self._shared[name] = torch.from_numpy(getattr(self, name)).share_memory_()
                setattr(self, name, self._shared[name].numpy())
        return {name: value for name, value in vars(self).items() if name not in _TABLES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for name in _TABLES:
            setattr(self, name, self._shared[name].numpy())

    def _pieces(self, place: int) -> list[tuple[int, int]]:
        low, high = int(self._bounds[place]), int(self._bounds[place + 1])
        return list(zip(self._starts[low:high].tolist(), self._lengths[low:high].tolist(), strict=True))


def best_fit(lengths: npt.NDArray[np.int32], capacity: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pack pieces of `lengths`, `[n]`, each 1 .. capacity, into as few bins of `capacity` as best-fit decreasing can.

    Returns the pieces, `[n]`, bin after bin and within a bin in increasing order, and each bin's first place in it,
    `[bins + 1]`.
    """
    if not len(lengths):
        return np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    present, counts = np.unique(lengths, return_counts=True)
    bins = _Bins(capacity)
    chosen = np.concatenate([bins.place(int(present[k]), int(counts[k])) for k in range(len(present) - 1, -1, -1)])
    narrow = np.uint16 if capacity < 2**16 else np.int32  # 16 bits are sorted by radix
    bin_of_piece = np.empty(len(lengths), dtype=np.int32)
    bin_of_piece[np.argsort((capacity - lengths).astype(narrow), kind="stable")] = chosen
    bounds = np.concatenate([[0], np.cumsum(np.bincount(chosen, minlength=bins.count))]).astype(np.int64)
    return np.argsort(bin_of_piece, kind="stable"), bounds


class _Bins:
    """Bins by the room that they have left."""

    def __init__(self, capacity: int) -> None:
        self.count = 0
        self._capacity = capacity
        self._by_room: dict[int, deque[npt.NDArray[np.int32]]] = {}
        self._rooms = 0  # bit r is set where a bin has room r: the next one above a length is quickly found

    def place(self, length: int, count: int) -> npt.NDArray[np.int32]:
        """The bins, `[count]`, that so many pieces of one length come into."""
        chosen = []
        while count:
            fitting = self._rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else self._capacity
            each = room // length  # the bin just used stays the fullest that fits, until it is full
            wanted = -(-count // each)
            bins = self._take(room, wanted) if fitting else self._new(wanted)
            filled = min(len(bins), count // each)
            chosen.append(np.repeat(bins[:filled], each))
            count -= filled * each
            self._give(room - each * length, bins[:filled])
            if filled < len(bins):
                chosen.append(np.repeat(bins[filled:], count))
                self._give(room - count * length, bins[filled:])
                count = 0
        return np.concatenate(chosen)

    def _new(self, count: int) -> npt.NDArray[np.int32]:
        self.count += count
        return np.arange(self.count - count, self.count, dtype=np.int32)

    def _take(self, room: int, count: int) -> npt.NDArray[np.int32]:
        taken, chunks = [], self._by_room[room]
        while count and chunks:
            chunk = chunks.popleft()
            taken.append(chunk[:count])
            if len(chunk) > count:
                chunks.appendleft(chunk[count:])
            count -= len(taken[-1])
        if not chunks:
            self._rooms &= ~(1 << room)
        return np.concatenate(taken)

    def _give(self, room: int, bins: npt.NDArray[np.int32]) -> None:
        if room and len(bins):
            self._by_room.setdefault(room, deque()).append(bins)
            self._rooms |= 1 << room
