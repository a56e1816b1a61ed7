"""Documents of an open shard, kept on the disk so that the shard can be begun again after a kill."""

from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.packing.journal import Journal


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
        """What finds the present documents again."""
        return {"name": self.name, "documents": self.documents, "tokens": self.tokens}

    def close(self) -> None:
        """Write no more; the files stay."""
        for log in (self._ids, self._lengths):
            self._journal.close_log(log)

    def remove(self) -> None:
        """Delete the files."""
        for log in (self._ids, self._lengths):
            log.path.unlink(missing_ok=True)
