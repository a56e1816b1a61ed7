"""Tokenize batches of documents in worker processes, in order."""

import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.tokenizer import Tokenizer, load_tokenizer
from deconattn.errors import UserError

_BATCH_CHARACTERS = 500_000
_BATCH_DOCUMENTS = 1_000
_BATCHES_AHEAD = 2  # a worker: one in hand, two waiting

_tokenizer: Tokenizer | None = None  # a worker's own, loaded once


@dataclass(frozen=True)
class EncodedBatch:
    """Some documents' ids, separators included, laid end to end; `bytes` is their text's, in UTF-8."""

    tokens: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int64]
    bytes: int

    def documents(self) -> Iterator[npt.NDArray[np.uint32]]:
        """Each document's ids, `[n]`."""
        end = 0
        for length in self.lengths:
            end += int(length)
            yield self.tokens[end - int(length) : end]


def encode_documents(texts: Iterable[str], tokenizer_file: Path, workers: int) -> Generator[EncodedBatch, None, None]:
    """Tokenize `texts` and append the separator to each, in `workers` processes; results come in order.

    At most three batches a worker are in memory. Raises :class:`UserError` if a worker process dies.
    """
    if workers == 1:
        tokenizer = load_tokenizer(tokenizer_file)
        for batch in _batches(texts):
            yield _encode(tokenizer, batch)
        return
    # Spawned, not forked: the tokenizer libraries and Arrow run threads in this process.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer_file,))
    try:
        waiting: deque[Future[EncodedBatch]] = deque()
        for batch in _batches(texts):
            waiting.append(pool.submit(_encode_in_worker, batch))
            if len(waiting) > workers * (1 + _BATCHES_AHEAD):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("a tokenizing worker died, most likely for want of memory; lower --workers") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, batch: list[str]) -> EncodedBatch:
    separator = np.array([tokenizer.eos_token_id], dtype=np.uint32)
    parts: list[npt.NDArray[Any]] = []
    for ids in tokenizer.encode_batch(batch):
        parts += [ids, separator]
    lengths = [len(ids) + 1 for ids in parts[::2]]
    size = sum(len(text) if text.isascii() else len(text.encode()) for text in batch)
    return EncodedBatch(np.concatenate(parts), np.array(lengths, dtype=np.int64), size)


def _encode_in_worker(batch: list[str]) -> EncodedBatch:
    assert _tokenizer is not None, "the pool's initializer runs first"
    return _encode(_tokenizer, batch)


def _start_worker(tokenizer_file: Path) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # N workers, N cores
    _tokenizer = load_tokenizer(tokenizer_file)


def _die_with_parent() -> None:
    # A killed parent closes no queue that its workers read; without this they would wait for ever.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
