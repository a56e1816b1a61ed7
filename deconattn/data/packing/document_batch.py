"""Documents as token ids, many at a time: in memory, and spooled to the disk while their shard is open."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.packing.journal import Journal


@dataclass(frozen=True)
class DocumentBatch:
    """Documents laid end to end, `n` of them.

    Attributes:
        tokens: ids of all documents, separators included, in the shards' dtype.
        lengths: number of tokens of each document, `[n]`.
        numbers: each document's number in reading order, `[n]`, uint64.
    """

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.uint64]

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """End of each document in `tokens`, `[n]`."""
        return np.cumsum(self.lengths)

    def part(self, first: int, last: int) -> "DocumentBatch":
        """Return documents `first` to `last` - 1, as views."""
        start, end = (int(self.ends[place - 1]) if place else 0 for place in (first, last))
        return DocumentBatch(self.tokens[start:end], self.lengths[first:last], self.numbers[first:last])

    def take(self, chosen: npt.NDArray[np.bool_]) -> "DocumentBatch":
        """Return the documents chosen by a mask `[n]`."""
        if chosen.all():
            return self
        bounds = np.concatenate([np.zeros(1, dtype=np.int64), self.ends])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]])))  # of runs of neighbours
        runs = [self.tokens[start:end] for start, end in bounds[edges].reshape(-1, 2)]
        tokens = np.concatenate(runs) if runs else self.tokens[:0]
        return DocumentBatch(tokens, self.lengths[chosen], self.numbers[chosen])


class Spool:
    """Token ids and counts of documents in the order in which they came, in two files of the journal's `work`.

    Begins with the first `documents` and `tokens` of what the files hold already.
    """

    def __init__(self, journal: Journal, name: str, dtype: str, documents: int = 0, tokens: int = 0) -> None:
        self.name = name
        self.documents = documents
        self.tokens = tokens
        self._journal = journal
        self._dtype = np.dtype(dtype)
        self._ids = journal.log(f"{name}.tokens", tokens * self._dtype.itemsize)
        self._lengths = journal.log(f"{name}.lengths", documents * 8)

    def append(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> None:
        """Add documents laid end to end: ids `[n]` and counts `[documents]`."""
        self._ids.write(tokens.tobytes())
        self._lengths.write(lengths.tobytes())
        self.documents += len(lengths)
        self.tokens += len(tokens)

    def read(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """All documents: ids `[n]`, mapped, and counts `[documents]`."""
        lengths = np.fromfile(self._lengths.path, dtype=np.int64)
        if int(lengths.sum()) != self.tokens:
            raise self._journal.damaged(self._lengths.path)
        return np.memmap(self._ids.path, dtype=self._dtype, mode="r"), lengths

    def state(self) -> dict[str, Any]:
        """Return the arguments that reopen the spool with its present documents."""
        return {"name": self.name, "documents": self.documents, "tokens": self.tokens}

    def close(self) -> None:
        """Write no more; the files stay."""
        for log in (self._ids, self._lengths):
            self._journal.close_log(log)

    def remove(self) -> None:
        """Delete the files."""
        for log in (self._ids, self._lengths):
            log.path.unlink(missing_ok=True)
