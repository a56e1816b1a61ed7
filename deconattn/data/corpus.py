"""A packed corpus as one long sequence of tokens, memory-mapped."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.manifest import TOKENIZER_NAMES, Manifest, read_manifest
from deconattn.data.shards import Shard, check_shard, open_shard
from deconattn.errors import UserError


class TokenCorpus:
    """All shards of one split, end to end, as tokens `0 .. num_tokens - 1`.

    Opening reads the manifest and compares every shard's size with it (no checksums, see
    :func:`~deconattn.data.shards.verify_checksums`); a shard is mapped when first read. Pickles as its name:
    another process maps anew. Raises :class:`UserError` for what is missing or damaged, naming the file.
    """

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        self.folder = Path(folder)
        self.split = split
        self.manifest: Manifest = read_manifest(self.folder)
        self._entries = self.manifest.of_split(split)
        if not self._entries:
            raise UserError(f"{self.folder} has no {split} split; pack again with another --val-fraction")
        for entry in self._entries:
            check_shard(self.folder / entry.name, entry)
        self._starts = np.cumsum([0, *(entry.tokens for entry in self._entries)], dtype=np.int64)
        self._shards: dict[int, Shard] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens in the split, separators included."""
        return int(self._starts[-1])

    @property
    def tokenizer_path(self) -> Path:
        """The folder's own copy of the tokenizer; :func:`~deconattn.data.tokenizer.load_tokenizer` reads it."""
        for name in TOKENIZER_NAMES:
            if (self.folder / name).is_file():
                return self.folder / name
        raise UserError(f"{self.folder} has lost its {' or '.join(TOKENIZER_NAMES)}; copy it again or pack again")

    def read(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Tokens `start .. start + length - 1`, `[length]`, across record batches and shards.

        Raises IndexError outside the corpus, :class:`UserError` for a token id beyond the vocabulary.
        """
        spans = self._spans(start, length)
        tokens = np.empty(length, dtype=np.int64)
        done = 0
        for number, within, stop in spans:
            shard = self._shard(number)
            batch = int(np.searchsorted(shard.starts, within, side="right")) - 1
            while within < stop:
                offset = within - int(shard.starts[batch])
                piece = shard.values[batch][offset : offset + stop - within]
                tokens[done : done + len(piece)] = piece
                self._check_ids(piece, shard, within)
                done += len(piece)
                within += len(piece)
                batch += 1
        return tokens

    def document_starts(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Offsets, in `0 .. length - 1` and increasing, of the tokens of this window that begin a document."""
        found: list[npt.NDArray[np.int64]] = []
        before = 0  # tokens of the window that earlier spans covered
        for number, within, stop in self._spans(start, length):
            shard = self._shard(number)
            first = int(np.searchsorted(shard.starts, within, side="right")) - 1
            last = int(np.searchsorted(shard.starts, stop, side="left"))
            for batch in range(first, last):
                base = int(shard.starts[batch])
                bounds = shard.offsets[batch]
                low, high = np.searchsorted(bounds, np.array([within - base, stop - base], dtype=bounds.dtype))
                # The last bound is the batch's end; the next batch reports it as its own first document.
                starts = bounds[low : min(int(high), len(bounds) - 1)].astype(np.int64)
                found.append(starts + (base - within + before))
            before += stop - within
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _spans(self, start: int, length: int) -> list[tuple[int, int, int]]:
        """The shards that a window touches: (shard number, first token, end token), within each shard."""
        if start < 0 or length < 0 or start + length > self.num_tokens:
            raise IndexError(f"tokens {start} .. {start + length} of a corpus of {self.num_tokens}")
        spans = []
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while length > 0:
            within = start - int(self._starts[number])
            taken = min(length, int(self._starts[number + 1]) - start)
            spans.append((number, within, within + taken))
            start, length, number = start + taken, length - taken, number + 1
        return spans

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            entry = self._entries[number]
            self._shards[number] = open_shard(self.folder / entry.name, entry)
        return self._shards[number]

    def _check_ids(self, piece: npt.NDArray[Any], shard: Shard, within: int) -> None:
        if int(piece.max(initial=0)) >= self.manifest.vocab_size:
            position = int(np.argmax(piece >= self.manifest.vocab_size))
            raise UserError(
                f"{shard.path}: token {within + position} is {int(piece[position])}, beyond the vocabulary of "
                f"{self.manifest.vocab_size}; copy the shard again or pack again with tools/pack.py"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    def __repr__(self) -> str:
        return f"TokenCorpus({str(self.folder)!r}, {self.split!r}, num_tokens={self.num_tokens})"
