"""Packed corpora out of token ids that another program made."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.corpus_tools.id_sources import (
    DatasetDocuments,
    MegatronDocuments,
    cut_at_separators,
    megatron_prefix,
)
from deconattn.data.corpus_tools.new_corpus import new_corpus
from deconattn.data.manifest import Manifest
from deconattn.data.packing.selection import is_validation
from deconattn.data.shards import ShardSchema
from deconattn.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from deconattn.errors import UserError
from deconattn.progress import progress_bar


@dataclass
class Conversion:
    """Result of a conversion; `manifest` is set at the end.

    Attributes:
        kind: "Megatron-LM" or "Hugging Face".
        added: documents that had no separator at their end.
        empty: documents without an id, left out.
        left_out: files of the source's folder that were not read, by ending.
    """

    kind: str
    manifest: Manifest | None = None
    added: int = 0
    empty: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def convert(
    source: Path,
    out: Path,
    tokenizer: str,
    *,
    val_fraction: float,
    shard_tokens: int,
    column: str = "input_ids",
    pieces: bool = False,
    eos: str | None = None,
    data_split: str | None = None,
) -> Conversion:
    """Write the documents of `source` into `out`, in order, split as the command `pack` splits.

    Args:
        source: the prefix (or one of the two files) of a Megatron-LM dataset, or Arrow or Parquet files or a folder of
            them.
        tokenizer: the one that made the ids, as for the command `pack`.
        column: name of a Hugging Face dataset's column of id lists.
        pieces: its rows are pieces of one long sequence, cut anywhere.
        eos: the separator, as for the command `pack`.
        data_split: which one to take of a dataset of several splits.

    Raises:
        UserError: ids that the tokenizer does not have, a damaged input, an `out` that is not free.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction}: must be at least 0 and below 1")
    prefix = megatron_prefix(source)
    known = load_tokenizer(tokenizer, eos)
    if prefix is not None:
        if pieces:
            raise UserError("--pieces: a Megatron-LM dataset knows where its documents end; leave it out")
        if data_split is not None:
            raise UserError("--split: a Megatron-LM dataset has one split; leave it out")
        result = Conversion("Megatron-LM")
        megatron = MegatronDocuments(prefix)
        documents: Iterable[tuple[str, npt.NDArray[Any]]] = megatron
        total = megatron.documents
    else:
        rows = DatasetDocuments(source, column, data_split)
        result = Conversion("Hugging Face", left_out=rows.left_out)
        documents = cut_at_separators(rows, known.eos_token_id) if pieces else rows
        total = None
    schema = ShardSchema(
        known.fingerprint,
        known.vocab_size,
        known.eos_token_id,
        source.name,
        special_tokens=known.special_tokens,
    )
    with (
        new_corpus(out, schema, shard_tokens) as corpus,
        progress_bar("converting", total, "documents") as advance,
    ):
        known.save(corpus.folder)
        ended = _ended(documents, known, np.dtype(schema.dtype), result)
        for split, ids in _split(ended, val_fraction):
            corpus.append(split, ids)
            advance(1)
    result.manifest = corpus.manifest
    return result


def _ended(
    documents: Iterable[tuple[str, npt.NDArray[Any]]], tokenizer: Tokenizer, dtype: np.dtype[Any], result: Conversion
) -> Iterator[npt.NDArray[Any]]:
    """Iterate over documents in the shards' dtype, each ending with the separator; check that their ids are known."""
    separator = np.array([tokenizer.eos_token_id], dtype=dtype)
    for place, ids in documents:
        if not len(ids):
            result.empty += 1
            continue
        if int(ids.max()) >= tokenizer.vocab_size or int(ids.min()) < 0:
            token = int(np.flatnonzero((ids >= tokenizer.vocab_size) | (ids < 0))[0])
            raise UserError(
                f"{place}: token {token}: id {ids[token]} is not in the tokenizer's vocabulary of "
                f"{tokenizer.vocab_size}; give the --tokenizer that made the ids"
            )
        narrow = ids.astype(dtype, copy=False)
        if int(narrow[-1]) != tokenizer.eos_token_id:
            result.added += 1
            narrow = np.concatenate([narrow, separator])
        yield narrow


def _split(documents: Iterable[npt.NDArray[Any]], fraction: float) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Yield each document with its split, drawn from its number as the command `pack` draws it.

    Of two documents or more the last goes where there is none yet, for which one is held back.
    """
    last: tuple[str, npt.NDArray[Any]] | None = None
    drawn: set[str] = set()
    for number, document in enumerate(documents):
        if last is not None:
            drawn.add(last[0])
            yield last
        last = "val" if is_validation(number, fraction) else "train", document
    if last is None:
        return
    split, document = last
    if not drawn:
        split = "train"
    elif fraction > 0 and drawn == {split}:
        split = "train" if split == "val" else "val"
    yield split, document
