"""Parse and tokenize blocks in worker threads or processes, in order."""

import hashlib
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.answers import marked, plain
from deconattn.data.reading.blocks import InputBlock
from deconattn.data.reading.chat import BEGIN, END, ChatTemplate
from deconattn.data.reading.texts import parse_block
from deconattn.data.tokenizing.tokenizer import Tokenizer
from deconattn.errors import UserError

HASH_BYTES = 16
"""Bytes of a text's hash, by which --dedup knows it again."""
Hashes = npt.NDArray[np.bytes_]
"""`[n]` of type `S16`: NumPy orders and compares them as bytes."""
MAX_THREADS = 4
"""Threads share one Python: beyond this many they wait for each other, and processes are worth their start."""
_AHEAD = 3  # blocks a worker: one in hand, the others waiting
_AHEAD_BYTES = 32 << 20  # a worker, unless a single block is larger


@dataclass(frozen=True)
class Encoded:
    """A block's documents, tokenized.

    Attributes:
        tokens: ids of all, separators included, end to end, in the shards' type.
        lengths: tokens of each, `[documents]`.
        sizes: UTF-8 bytes of each, `[documents]`.
        hashes: hash of each document's text, where asked for.
        rows, bad, empty: see :class:`deconattn.data.reading.texts.Parsed`.
    """

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    hashes: Hashes | None
    rows: int
    bad: list[tuple[int, str]]
    empty: int


@dataclass(frozen=True)
class Work:
    """Parameters of the workers; pickled to other processes.

    Attributes:
        tokenizer: template from which each worker makes its own.
        text_field: field or column that holds the text.
        dtype: the shards' dtype.
        hashes: whether to hash the texts.
        bos_token_id: what to begin every document with; None for nothing.
        chat: template of conversations, where documents are some.
    """

    tokenizer: Tokenizer
    text_field: str
    dtype: str
    hashes: bool
    bos_token_id: int | None = None
    chat: ChatTemplate | None = None

    def encode(self, tokenizer: Tokenizer, block: InputBlock) -> Encoded:
        """Parse and tokenize a block. Raises UserError for a tokenizer whose ids leave its vocabulary."""
        parsed = parse_block(block, self.text_field, self.chat)
        if self.chat is None:
            tokens, lengths = tokenizer.encode_flat(parsed.texts)
        else:
            tokens, lengths = encode_conversations(tokenizer, parsed.texts)
        if self.bos_token_id is not None:
            starts = np.cumsum(lengths) - lengths
            tokens, lengths = np.insert(tokens, starts, self.bos_token_id), lengths + 1
        largest = int((tokens if self.chat is None else plain(tokens)).max(initial=0))
        if largest >= tokenizer.vocab_size:
            raise UserError(
                f"the tokenizer gives the id {largest}, its vocabulary has {tokenizer.vocab_size} entries; "
                "mend its file or take another"
            )
        return Encoded(
            tokens=tokens.astype(self.dtype, copy=False),
            lengths=lengths,
            sizes=np.fromiter(map(_utf8_bytes, parsed.texts), dtype=np.int64, count=len(parsed.texts)),
            hashes=hash_texts(text.encode() for text in parsed.texts) if self.hashes else None,
            rows=parsed.rows,
            bad=parsed.bad,
            empty=parsed.empty,
        )


def encode_conversations(
    tokenizer: Tokenizer, texts: Sequence[str]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Encode conversations as `Tokenizer.encode_flat` does texts, with a mark on what is no answer.

    Each is encoded part by part: a prompt is one text when an answer to it is generated. The separator is learnt after
    an answer.
    """
    documents: list[npt.NDArray[np.uint32]] = []
    counts: list[int] = []
    for text in texts:
        parts = [piece for part in text.split(BEGIN) for piece in part.split(END, 1)]  # question, answer, question, ..
        ids = [part.astype(np.uint32) for part in tokenizer.encode_batch(parts)]
        separator = np.array([tokenizer.eos_token_id], dtype=np.uint32)
        pieces = [part if number % 2 else marked(part) for number, part in enumerate(ids)]
        pieces.append(marked(separator) if len(ids[-1]) else separator)
        documents.append(np.concatenate(pieces))
        counts.append(len(documents[-1]))
    tokens = np.concatenate(documents) if documents else np.empty(0, dtype=np.uint32)
    return tokens, np.array(counts, dtype=np.int64)


def hash_texts(texts: Iterable[bytes]) -> Hashes:
    """The hash of each text, given in UTF-8."""
    digests = b"".join(hashlib.blake2b(text, digest_size=HASH_BYTES).digest() for text in texts)
    return np.frombuffer(digests, dtype=f"S{HASH_BYTES}")


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def encode_blocks(
    blocks: Iterable[InputBlock], work: Work, workers: int, threads: bool
) -> Generator[tuple[InputBlock, Encoded], None, None]:
    """Encode blocks in `workers` threads or else processes; results come in order.

    A few blocks a worker are in memory. Raises :class:`UserError` if a worker process dies.
    """
    pool = _thread_pool(work, workers) if threads else _process_pool(work, workers)
    waiting: deque[tuple[InputBlock, Future[Encoded]]] = deque()
    size = 0
    try:
        for block in blocks:
            while waiting and (len(waiting) >= workers * _AHEAD or size + len(block.payload) > workers * _AHEAD_BYTES):
                first, result = waiting.popleft()
                size -= len(first.payload)
                yield first, result.result()
            waiting.append((block, _submitted(pool, block)))
            size += len(block.payload)
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    except BrokenProcessPool:
        _end_feeding(pool)
        raise UserError("a tokenizing worker died, most likely for want of memory; lower --workers") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submitted(pool: Executor, block: InputBlock) -> Future[Encoded]:
    try:
        return pool.submit(_encode, block)
    except (OSError, ValueError) as error:  # the pool broke while it started a process: its pipes are closed by then
        raise BrokenProcessPool(str(error)) from error


def _end_feeding(pool: Executor) -> None:
    """Close what a pool's workers read of, where they have died.

    Up to Python 3.11.4 its thread waits for ever to write there if one died over a block (python/cpython#94777).
    """
    queue: Any = getattr(pool, "_call_queue", None)
    if queue is not None:
        queue._reader.close()


_own = threading.local()
"""A worker's own tokenizer and work: no library promises that threads may share a tokenizer."""


def _encode(block: InputBlock) -> Encoded:
    work: Work = _own.work
    return work.encode(_own.tokenizer, block)


def _start_thread(work: Work, unused: list[Tokenizer]) -> None:
    try:
        tokenizer = unused.pop()  # one of the threads needs no copy
    except IndexError:
        tokenizer = work.tokenizer.fresh()
    _own.work, _own.tokenizer = work, tokenizer


def _thread_pool(work: Work, workers: int) -> Executor:
    return ThreadPoolExecutor(workers, "encode", _start_thread, (work, [work.tokenizer]))


def _process_pool(work: Work, workers: int) -> Executor:
    # Spawned, not forked: the tokenizer libraries and Arrow run threads in this process.
    return ProcessPoolExecutor(workers, get_context("spawn"), _start_process, (work,))


def _start_process(work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # N workers, N cores
    _own.work, _own.tokenizer = work, work.tokenizer


def _die_with_parent() -> None:
    # A killed parent closes no queue that its workers read; without this they would wait for ever.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
