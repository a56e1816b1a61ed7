"""A packed corpus, memory-mapped: as one long sequence of tokens, or document by document."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.answers import plain
from deconattn.data.manifest import TOKENIZER_NAMES, Manifest, ShardEntry, check_sizes, read_manifest
from deconattn.data.mapped import fetch
from deconattn.data.shards import MappedShard, check_shard, open_shard
from deconattn.errors import UserError
from deconattn.program import command


@dataclass(frozen=True)
class _Open:
    """A mapped shard, as plain integers where looking up is to be quick: by record batch its first token, and the
    addresses of its tokens and offsets."""

    shard: MappedShard
    starts: list[int]
    values_at: list[int]
    offsets_at: list[int]


class TokenCorpus:
    """All shards of one split, end to end, as tokens `0 .. num_tokens - 1`.

    Opening reads the manifest and compares the files' sizes with it in one scan of the folder; no shard is opened.
    Given a `manifest` it reads nothing: another process has (see :func:`~deconattn.data.manifest.read_checked`).
    A shard is checked and mapped when first read (no checksums, see
    :func:`~deconattn.data.shards.verify_checksums`). Pickles as its name: another process maps anew. Raises
    :class:`UserError` for what is missing or damaged, naming the file, whether now or while reading.
    """

    def __init__(self, folder: str | Path, split: str = "train", manifest: Manifest | None = None) -> None:
        self.folder = Path(folder)
        self.split = split
        self.manifest: Manifest = read_manifest(self.folder) if manifest is None else manifest
        self.entries = self.manifest.of_split(split)
        if not self.entries:
            raise UserError(f"{self.folder} has no {split} split; pack again with another --val-fraction")
        if manifest is None:
            check_sizes(self.folder, self.entries)
        self._starts: list[int] = np.cumsum([0, *(entry.tokens for entry in self.entries)], dtype=np.int64).tolist()
        self._shards: dict[int, _Open] = {}

    @property
    def num_tokens(self) -> int:
        """Tokens in the split, separators included."""
        return self._starts[-1]

    @property
    def tokenizer_path(self) -> Path:
        """The folder's own copy of the tokenizer, for :func:`~deconattn.data.load_tokenizer`."""
        for name in TOKENIZER_NAMES:
            if (self.folder / name).is_file():
                return self.folder / name
        raise UserError(f"{self.folder} has lost its {' or '.join(TOKENIZER_NAMES)}; copy it again or pack again")

    def read(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Tokens `start .. start + length - 1`, `[length]`, across record batches and shards.

        Raises IndexError outside the corpus, :class:`UserError` for a token id beyond the vocabulary.
        """
        pieces = self.pieces(start, length)
        tokens = np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, dtype=np.int64)
        if self.manifest.answers:
            tokens = plain(tokens)
        if int(tokens.max(initial=0)) >= self.manifest.vocab_size:
            self.report_foreign_id(start, tokens)
        return tokens

    def pieces(self, start: int, length: int) -> list[npt.NDArray[Any]]:
        """Views of the tokens :meth:`read` copies, uint16 or uint32, with unchecked ids and marks; mostly one piece.

        Raises IndexError outside the corpus, :class:`UserError` for a shard that is no longer there.
        """
        stop = start + length
        self._check_window(start, stop)
        found = []
        while start < stop:
            number = bisect_right(self._starts, start) - 1
            opened = self._shards.get(number) or self._open(number)
            within = start - self._starts[number]
            batch = bisect_right(opened.starts, within) - 1
            offset = within - opened.starts[batch]
            values = opened.shard.values[batch]
            piece = values[offset : offset + stop - start]
            self._fetch(self.entries[number], opened.values_at[batch] + offset * values.itemsize, piece.nbytes)
            found.append(piece)
            start += len(piece)
        return found

    def document_starts(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Offsets, in `0 .. length - 1` and increasing, of the tokens of this window that begin a document."""
        stop = start + length
        self._check_window(start, stop)
        found: list[npt.NDArray[np.int64]] = []
        at = start
        while at < stop:
            number = bisect_right(self._starts, at) - 1
            opened = self._shards.get(number) or self._open(number)
            within = at - self._starts[number]
            batch = bisect_right(opened.starts, within) - 1
            bounds = opened.shard.offsets[batch]
            self._fetch(self.entries[number], opened.offsets_at[batch], bounds.nbytes)
            base = self._starts[number] + opened.starts[batch]
            end = min(stop, base + opened.starts[batch + 1] - opened.starts[batch])
            low, high = bounds.searchsorted(np.array([at - base, end - base], dtype=bounds.dtype))
            # The last bound is the batch's end; the next batch reports it as its own first document.
            starts = bounds[low : min(int(high), len(bounds) - 1)].astype(np.int64)
            found.append(starts + (base - start))
            at = end
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def document_lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of every document, `[documents]`, in order, separators included; opens every shard, reads no token."""
        return np.concatenate(list(self.iterate_lengths()))

    def iterate_lengths(self) -> Iterator[npt.NDArray[np.int32]]:
        """Yield the lengths of :meth:`document_lengths` a shard at a time, which alone is open then."""
        for entry in self.entries:
            shard = open_shard(self.folder / entry.name, entry, self.manifest)
            found = []
            for bounds in shard.offsets:
                self._fetch(entry, bounds.ctypes.data, bounds.nbytes)
                found.append(np.diff(bounds))
            lengths = np.concatenate(found) if found else np.empty(0, dtype=np.int32)
            if len(lengths) != entry.documents or int(lengths.min(initial=0)) < 0:
                raise UserError(
                    f"{shard.path} is damaged (its documents are not the {entry.documents} of its manifest); "
                    f"copy it again or pack again with {command('pack')}"
                )
            yield lengths

    def report_foreign_id(self, start: int, tokens: npt.NDArray[np.int64]) -> None:
        """Raise :class:`UserError` for the first token beyond the vocabulary; `tokens` lie at `start` of the corpus."""
        foreign = np.flatnonzero(tokens >= self.manifest.vocab_size)
        if not len(foreign):
            return
        place = int(foreign[0])
        number = bisect_right(self._starts, start + place) - 1
        raise UserError(
            f"{self.folder / self.entries[number].name}: token {start + place - self._starts[number]} is "
            f"{int(tokens[place])}, beyond the vocabulary of {self.manifest.vocab_size}; copy the shard again or "
            f"pack again with {command('pack')}"
        )

    def _check_window(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self._starts[-1]:
            raise IndexError(f"tokens {start} .. {stop} of a corpus of {self.num_tokens}")

    def _open(self, number: int) -> _Open:
        entry = self.entries[number]
        shard = open_shard(self.folder / entry.name, entry, self.manifest)
        addresses = ([array.ctypes.data for array in arrays] for arrays in (shard.values, shard.offsets))
        self._shards[number] = opened = _Open(shard, shard.starts.tolist(), *addresses)
        return opened

    def _fetch(self, entry: ShardEntry, address: int, size: int) -> None:
        try:
            fetch(address, size)
        except OSError as error:
            path = self.folder / entry.name
            check_shard(path, entry)  # missing or truncated, it says so itself
            raise UserError(
                f"{path} can no longer be read ({error.strerror}); check the disk or the network it lies on, then "
                "resume the run"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    def __repr__(self) -> str:
        return f"TokenCorpus({str(self.folder)!r}, {self.split!r}, num_tokens={self.num_tokens})"


def read_batches(
    folder: Path, manifest: Manifest, split: str, start: int = 0
) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[np.int32]]]:
    """The documents of one split, in order, many at a time: the first one's number, values, and bounds in the values.

    Values have the marks of :mod:`deconattn.data.answers`, where there are any.

    Args:
        manifest: the folder's.
        start: the number, from 0, of the first document; shards before it are not opened.

    Raises:
        UserError: a shard that is missing or damaged, or that does not hold what the manifest says.
    """
    number = 0
    for entry in manifest.of_split(split):
        if number + entry.documents <= start:
            number += entry.documents
            continue
        path = folder / entry.name
        shard = open_shard(path, entry, manifest)
        held = sum(len(bounds) - 1 for bounds in shard.offsets)
        if held != entry.documents:
            raise UserError(
                f"{path} holds {held} documents, {entry.documents} expected; see {command('shards')} verify {folder}"
            )
        for values, bounds in zip(shard.values, shard.offsets, strict=True):
            skipped = max(start - number, 0)
            if skipped < len(bounds) - 1:
                _fetch_values(path, values)
                _check_order(path, number, bounds)
                yield number + skipped, values, bounds[skipped:]
            number += len(bounds) - 1


def read_documents(
    folder: Path, manifest: Manifest, split: str, start: int = 0
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Iterate over the documents of one split, one at a time: number and ids `[n]`, separator included."""
    for first, values, bounds in read_batches(folder, manifest, split, start):
        for place in range(len(bounds) - 1):
            ids = values[bounds[place] : bounds[place + 1]]
            yield first + place, plain(ids) if manifest.answers else ids


def _check_order(path: Path, first: int, bounds: npt.NDArray[np.int32]) -> None:
    wrong = np.flatnonzero(np.diff(bounds) < 0)
    if len(wrong):
        raise UserError(f"{path}: document {first + wrong[0]} ends before it begins; see {command('shards')} verify")


def _fetch_values(path: Path, values: npt.NDArray[Any]) -> None:
    try:
        fetch(values.ctypes.data, values.nbytes)
    except OSError as error:
        raise UserError(f"{path} can no longer be read ({error.strerror}); check the disk and the file") from None
