"""One pack from blocks to closed shards: read, encode, select, order, write; begun or gone on with."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.manifest import SPLITS, ShardEntry
from deconattn.data.packing.assemble import Assembler, Background
from deconattn.data.packing.document_batch import DocumentBatch
from deconattn.data.packing.encode import MAX_THREADS, Encoded, Work, encode_blocks, encode_conversations
from deconattn.data.packing.journal import Journal
from deconattn.data.packing.pack_config import PackConfig
from deconattn.data.packing.progress import pack_progress
from deconattn.data.packing.selection import Counts, Selection, cut_document, is_validation, share_of_last
from deconattn.data.packing.shuffle import SortedRun, count_ranges, read_range
from deconattn.data.reading.blocks import InputBlock, read_blocks
from deconattn.data.reading.chat import ChatTemplate, load_template
from deconattn.data.reading.input_files import Input
from deconattn.data.reading.texts import Tally, no_documents, parse_block
from deconattn.data.shards import ShardSchema
from deconattn.data.tokenizing.fast import FastTokenizer, load_fast_tokenizer
from deconattn.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from deconattn.errors import UserError

_READING, _MERGING = "reading", "merging"
_CUT = "cut"


@dataclass(frozen=True)
class Source:
    """Opened inputs and tokenizer of a pack.

    Attributes:
        blocks: the blocks still to be packed.
        tokenizer: checked against its own library on the first of them.
        fast: whether it is not that library. It stays so where the pack goes on.
        chat: template of conversations, where the inputs are some.
    """

    blocks: Iterator[InputBlock]
    tokenizer: Tokenizer
    fast: bool
    chat: ChatTemplate | None = None


@contextmanager
def open_source(config: PackConfig, inputs: list[Input], journal: Journal, spec: str) -> Iterator[Source]:
    """Begin to read where the journal ends, and load the tokenizer `spec`. Raises :class:`UserError`."""
    last = journal.entries[-1] if journal.entries else {}
    with closing(read_blocks(inputs, config.text_field, tuple(last.get("block", (0, 0))))) as blocks:
        if config.chat:
            exact = load_tokenizer(spec, config.eos, config.special_tokens)
            if exact.special_tokens != "token":
                raise UserError(f"--chat: {spec} reads no special token from a text: give a tokenizer.json")
            yield Source(blocks, exact, False, load_template(spec))
            return
        if last.get("phase") == _MERGING or not last.get("fast", True):
            yield Source(blocks, load_tokenizer(spec, config.eos, config.special_tokens), fast=False)
            return
        first = next(blocks, None)
        sample = parse_block(first, config.text_field).texts if first is not None else []
        tokenizer = load_fast_tokenizer(spec, sample, config.eos, config.special_tokens)
        yield Source(chain([first] if first else [], blocks), tokenizer, isinstance(tokenizer, FastTokenizer))


class Packer:
    """Fills the journal's `result` with shards, from the journal's last entry on.

    Without --shuffle documents go straight from blocks to shards. With it they first go to sorted runs on the disk
    (the phase "reading"), which are then merged into shards (the phase "merging").
    """

    def __init__(
        self, config: PackConfig, inputs: list[Input], journal: Journal, source: Source, schema: ShardSchema
    ) -> None:
        self._config, self._inputs, self._journal, self._schema = config, inputs, journal, schema
        self._source = source
        self._last: dict[str, Any] = journal.entries[-1] if journal.entries else {}
        self._runs: int = self._last.get("runs", 0)
        self._cut: list[int] = self._last.get("cut", [])  # tokens of the last document's two parts, in the log _CUT
        self._background = Background()
        self._assembler = Assembler(journal, schema, config.shard_tokens, self._background)
        counts = self._last.get("counts")
        self.counts = Counts.from_dict(counts, config.max_bad) if counts else Counts(Tally(config.max_bad))

    def run(self) -> tuple[ShardEntry, ...]:
        """Write all shards; their manifest entries. `counts` then says what they hold. Raises :class:`UserError`."""
        try:
            if self._last.get("phase") == _MERGING or self._read():
                self._merge()
            return self._assembler.finish()
        finally:
            self._background.close()
            self._assembler.discard()

    def _read(self) -> bool:
        """From blocks to shards, or to runs; whether to runs."""
        config, counts = self._config, self.counts
        selection = Selection(self._inputs, self._journal, config, counts, self._source.chat)
        run = SortedRun(config.shuffle) if config.shuffle is not None else None
        before = [0, *accumulate(source.size for source in self._inputs)]
        skip = self._last.get("skip", 0)
        with closing(self._encoded()) as results, pack_progress("packing", before[-1] or None) as update:
            for block, encoded in results:
                entry = self._entry(_READING, block=[block.input, block.number])
                if run is not None and run.full:
                    self._write(run, entry)
                    run = SortedRun(run.seed)
                documents, held_out = selection.judge(block, encoded)
                if run is not None:
                    run.add(documents)
                else:
                    self._assembler.add(documents.part(skip, len(held_out)), held_out[skip:], entry, skip)
                skip = 0
                update(before[block.input] + block.position, counts.tokens)
                if selection.full:
                    break
        if not counts.documents:
            raise no_documents(config.inputs, counts.tally)
        if counts.documents == 1:
            self._put_single(selection.last_text(), taken_back=run is None)
            return False
        parts = self._parts_of_last(selection)
        if run is not None:
            if parts:
                log = self._journal.log(_CUT)
                log.write(b"".join(ids.tobytes() for ids in parts))
                self._cut = [len(ids) for ids in parts]
            self._write(run, self._entry(_MERGING))
            self._background.wait()
            return True
        self._fill_empty_split(parts)
        return False

    def _encoded(self) -> Generator[tuple[InputBlock, Encoded], None, None]:
        config, tokenizer = self._config, self._source.tokenizer
        threads = config.workers == 1 or (tokenizer.releases_gil and config.workers <= MAX_THREADS)
        hashes, bos = config.dedup is not None, self._schema.bos_token_id
        work = Work(tokenizer, config.text_field, self._schema.dtype, hashes, bos, self._source.chat)
        return encode_blocks(self._source.blocks, work, config.workers, threads)

    def _entry(self, phase: str, **place: Any) -> dict[str, Any]:
        """Return a journal entry that resumes from here."""
        state = {"counts": self.counts.as_dict(), "runs": self._runs, "cut": self._cut, "fast": self._source.fast}
        return {"phase": phase, **state, **place}

    def _write(self, run: SortedRun, entry: dict[str, Any]) -> None:
        """Write a sorted run while others go on; `entry` says what comes after it."""
        number = self._runs
        self._runs += run.documents > 0

        def write_and_enter(runs: int = self._runs) -> None:
            if runs > number:
                run.write(self._journal, number)
            self._journal.append({**entry, "runs": runs})

        self._background.submit(write_and_enter)

    def _merge(self) -> None:
        """From runs to shards."""
        counts, dtype = self.counts, self._schema.dtype
        ranges = count_ranges(counts.documents, counts.tokens, dtype)
        last = self._last if self._last.get("phase") == _MERGING else {}
        skip, done = last.get("skip", 0), 0
        cut = self._read_cut()
        with pack_progress("writing", counts.tokens) as update:
            for number in range(last.get("range", 0), ranges):
                entry = self._entry(_MERGING, range=number)
                seen = 0
                for documents in read_range(self._journal, self._runs, dtype, number, ranges):
                    documents = self._with_cut(documents, cut)
                    new = documents.part(min(max(skip - seen, 0), len(documents.lengths)), len(documents.lengths))
                    held_out = self._held_out(new.numbers)
                    self._assembler.add(new, held_out, entry, seen + len(documents.lengths) - len(new.lengths))
                    seen += len(documents.lengths)
                    done += len(documents.tokens)
                    update(done, done)
                skip = 0

    def _read_cut(self) -> DocumentBatch | None:
        """The last document's two parts, with its number and the next one."""
        if not self._cut:
            return None
        lengths = np.array(self._cut, dtype=np.int64)
        dtype = np.dtype(self._schema.dtype)
        tokens = np.fromfile(self._journal.log(_CUT, int(lengths.sum()) * dtype.itemsize).path, dtype)
        numbers = self.counts.documents - 1 + np.arange(2, dtype=np.uint64)
        return DocumentBatch(tokens, lengths, numbers)

    def _with_cut(self, documents: DocumentBatch, cut: DocumentBatch | None) -> DocumentBatch:
        """The documents with the parts of the last one in its place, if it is among them and cut."""
        found = np.flatnonzero(documents.numbers == self.counts.documents - 1)
        if cut is None or not len(found):
            return documents
        place = int(found[0])
        parts = [documents.part(0, place), cut, documents.part(place + 1, len(documents.lengths))]
        return DocumentBatch(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.numbers for part in parts]),
        )

    def _held_out(self, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Mask of validation documents; the last document, or its end, goes where there would otherwise be none."""
        held_out = is_validation(numbers, self._config.val_fraction)
        last = self.counts.documents - 1
        if self._cut:
            held_out[numbers == last] = False
            held_out[numbers == last + 1] = True
        elif self._empty_split() is not None:
            held_out[numbers == last] ^= True
        return held_out

    def _empty_split(self) -> str | None:
        """The split that the documents' numbers leave empty, if it must not be."""
        if self._config.val_fraction == 0 or self.counts.held_out not in (0, self.counts.documents):
            return None
        return "train" if self.counts.held_out else "val"

    def _fill_empty_split(self, parts: list[npt.NDArray[Any]]) -> None:
        empty = self._empty_split()
        if empty is None:
            return
        document = self._assembler.take_back("val" if empty == "train" else "train")
        for split, ids in zip(SPLITS, parts, strict=True) if parts else [(empty, document)]:
            self._assembler.put(split, ids)

    def _parts_of_last(self, selection: Selection) -> list[npt.NDArray[Any]]:
        """The ids of the last document's two parts, one a split, if that is where it is to be cut."""
        share = share_of_last(self.counts, self._config.val_fraction) if self._empty_split() is not None else None
        parts = cut_document(selection.last_text(), share) if share is not None and not self._config.chat else []
        return self._encode(parts) if len(parts) > 1 else []

    def _put_single(self, text: str, taken_back: bool) -> None:
        """Write the only document, cut in two if there is to be a validation split."""
        if taken_back:
            self._assembler.take_back("val" if self.counts.held_out else "train")
        cuts = self._config.val_fraction > 0 and not self._config.chat  # a conversation stays whole
        parts = cut_document(text, self._config.val_fraction) if cuts else [text]
        for split, ids in zip(SPLITS, self._encode(parts), strict=False):
            self._assembler.put(split, ids)

    def _encode(self, parts: list[str]) -> list[npt.NDArray[Any]]:
        """The ids of parts of a document in the shards' type, each begun and ended as a document is."""
        if self._config.chat:
            return [encode_conversations(self._source.tokenizer, [part])[0] for part in parts]
        before = [] if self._schema.bos_token_id is None else [self._schema.bos_token_id]
        after, dtype = [self._schema.eos_token_id], self._schema.dtype
        encoded = self._source.tokenizer.encode_batch(parts)
        return [np.concatenate([before, ids, after]).astype(dtype) for ids in encoded]
