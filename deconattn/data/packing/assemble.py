"""From documents in order to the shards of each split, closed in a thread of its own and entered into the journal."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.manifest import SPLITS, ShardEntry
from deconattn.data.packing.document_batch import DocumentBatch, Spool
from deconattn.data.packing.journal import Journal
from deconattn.data.shards import ShardSchema, ShardWriter, count_fitting


class Background:
    """One thread that does one thing after the other; at most one waits."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "background")
        self._last: Future[None] | None = None

    def submit(self, task: Callable[[], None]) -> None:
        """Run `task` when the one before is done. Raises what that raised."""
        self.wait()
        self._last = self._pool.submit(task)

    def wait(self) -> None:
        """Wait for the last task. Raises what it raised."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def close(self) -> None:
        """Let a running task finish, whatever comes of it."""
        self._pool.shutdown(wait=True)


class Assembler:
    """Writes documents into the shards of their splits.

    When a training shard is full, the journal gets an entry: where the document is that begins the next one, the
    shards that were closed since the last entry, and what the open validation shard holds.
    """

    def __init__(self, journal: Journal, schema: ShardSchema, shard_tokens: int, background: Background) -> None:
        self._journal, self._dtype = journal, schema.dtype
        self._closed = [ShardEntry(**shard) for entry in journal.entries for shard in entry.get("shards", [])]
        self._entered = len(self._closed)
        numbers = {split: sum(shard.split == split for shard in self._closed) for split in SPLITS}
        self._shards = {
            split: _OpenShard(journal.result, split, schema, shard_tokens, numbers[split]) for split in SPLITS
        }
        self._spool: Spool | None = None
        self._old_spools: list[Spool] = []
        self._background = background
        spool = journal.entries[-1].get("spool") if journal.entries else None
        if spool is not None:
            self._spool = Spool(journal, dtype=schema.dtype, **spool)
            self._shards["val"].extend(*self._spool.read())

    def add(self, documents: DocumentBatch, held_out: npt.NDArray[np.bool_], source: dict[str, Any], skip: int) -> None:
        """Write documents, in order.

        Args:
            held_out: which belong to the validation split, `[n]`.
            source: what it takes to have these documents again.
            skip: documents that `source` gives before these.
        """
        kept, held = documents.take(~held_out), documents.take(held_out)
        kept_places, held_places = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        next_kept = next_held = 0
        while True:
            next_kept = self._shards["train"].fill(kept, next_kept, len(kept_places))
            full = next_kept < len(kept_places)
            place = int(kept_places[next_kept]) if full else len(held_out)
            last = int(np.searchsorted(held_places, place))
            self._add_held(held, next_held, last)
            next_held = last
            if not full:
                return
            self._close_train({**source, "skip": skip + place})

    def take_back(self, split: str) -> npt.NDArray[Any]:
        """Take the last document of a split back; its ids, `[n]`."""
        return self._shards[split].pop()

    def put(self, split: str, tokens: npt.NDArray[Any]) -> None:
        """Add a document to a split, after all that were added: ids `[n]`, separator included."""
        document = DocumentBatch(tokens, np.array([len(tokens)], dtype=np.int64), np.zeros(1, dtype=np.uint64))
        shard = self._shards[split]
        if not shard.fill(document, 0, 1):
            self._background.wait()
            self._close(shard.release())
            shard.fill(document, 0, 1)

    def finish(self) -> tuple[ShardEntry, ...]:
        """Close the last shards; all of them, split by split."""
        self._background.wait()
        for split in SPLITS:
            if self._shards[split].documents:
                self._close(self._shards[split].release())
        return tuple(shard for split in SPLITS for shard in self._closed if shard.split == split)

    def discard(self) -> None:
        """Give up the shards that are open."""
        for shard in self._shards.values():
            shard.discard()

    def _add_held(self, held: DocumentBatch, first: int, last: int) -> None:
        shard = self._shards["val"]
        while first < last:
            stop = shard.fill(held, first, last)
            if self._spool is None and stop > first:
                self._spool = Spool(self._journal, shard.name, self._dtype)
            if self._spool is not None:
                part = held.part(first, stop)
                self._spool.append(part.tokens, part.lengths)
            first = stop
            if first < last:
                writer = shard.release()
                self._background.submit(lambda writer=writer: self._close(writer))  # type: ignore[misc]
                if self._spool is not None:
                    self._spool.close()
                    self._old_spools.append(self._spool)
                    self._spool = None

    def _close_train(self, source: dict[str, Any]) -> None:
        writer = self._shards["train"].release()
        entry = {**source, "spool": self._spool.state() if self._spool is not None else None}
        old, self._old_spools = self._old_spools, []

        def close_and_enter() -> None:
            self._close(writer)
            shards = [dataclasses.asdict(shard) for shard in self._closed[self._entered :]]
            self._journal.append({**entry, "shards": shards})
            self._entered += len(shards)
            for spool in old:
                spool.remove()

        self._background.submit(close_and_enter)

    def _close(self, writer: ShardWriter) -> None:
        self._closed.append(writer.close())


class _OpenShard:
    """The open shard of one split, begun when there is a document for it."""

    def __init__(self, folder: Path, split: str, schema: ShardSchema, shard_tokens: int, number: int) -> None:
        self._folder, self._split, self._schema, self._shard_tokens = folder, split, schema, shard_tokens
        self._number = number
        self._writer: ShardWriter | None = None

    @property
    def name(self) -> str:
        return f"{self._split}-{self._number:05d}"

    @property
    def documents(self) -> int:
        return self._writer.documents if self._writer is not None else 0

    def fill(self, documents: DocumentBatch, first: int, last: int) -> int:
        """Write documents from `first` on, up to `last`, while they fit; the first one that does not, or `last`."""
        if first == last:
            return last
        room = self._shard_tokens - (self._writer.tokens if self._writer is not None else 0)
        stop = min(count_fitting(documents.ends, first, room), last)
        if stop == first and not self.documents:
            stop = first + 1  # it is longer than a shard, and has one for itself
        if stop > first:
            part = documents.part(first, stop)
            self.extend(part.tokens, part.lengths)
        return stop

    def extend(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> None:
        if self._writer is None:
            self._writer = ShardWriter(self._folder / f"{self.name}.arrow", self._split, self._schema)
        self._writer.extend(tokens, lengths)

    def pop(self) -> npt.NDArray[Any]:
        assert self._writer is not None, "the last document of a split is in its open shard"
        tokens = self._writer.pop()
        if not self._writer.documents:
            self.discard()
        return tokens

    def release(self) -> ShardWriter:
        """Give the shard away, to be closed."""
        assert self._writer is not None, "a shard that is full holds a document"
        writer, self._writer = self._writer, None
        self._number += 1
        return writer

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.discard()
            self._writer = None
