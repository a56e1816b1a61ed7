"""Rewriting a packed corpus, or part of it, into shards of another size."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deconattn.data.corpus import read_batches
from deconattn.data.corpus_tools.new_corpus import copy_tokenizer, new_corpus, schema_of
from deconattn.data.manifest import SPLITS, Manifest, read_manifest
from deconattn.data.progress_bars import progress_bar
from deconattn.errors import UserError


def recut(
    folder: Path, out: Path, shard_tokens: int, documents: tuple[int, int | None] = (0, None), tokens: int | None = None
) -> Manifest:
    """Write the documents of `folder` into `out`, in order, in shards as the command `pack` cuts them.

    Args:
        shard_tokens: tokens after which a new shard begins; a document is never cut.
        documents: first document of the training split and the one after the last; None is the end. The validation
            split is always whole.
        tokens: stop the training split after the document that reaches so many.

    Raises:
        UserError: a damaged corpus, an `out` that is not free, a range that holds no document.
    """
    manifest = read_manifest(folder)
    held = sum(entry.documents for entry in manifest.of_split("train"))
    first, end = documents[0], held if documents[1] is None else min(documents[1], held)
    if not 0 <= first < end:
        raise UserError(f"--documents: {folder} has training documents 0 to {held - 1}")
    if tokens is not None and tokens < 1:
        raise UserError(f"--tokens {tokens}: must be at least 1")
    total = sum(entry.tokens for entry in manifest.shards)
    with (
        new_corpus(out, schema_of(manifest, manifest.source), shard_tokens) as corpus,
        progress_bar("splitting", total, "tokens") as advance,
    ):
        for split in SPLITS:
            train = split == "train"
            stop = end if train else None
            left = tokens if train else None
            for number, values, bounds in read_batches(folder, manifest.of_split(split), first if train else 0):
                bounds = _taken(bounds, None if stop is None else stop - number, left)
                count = int(bounds[-1] - bounds[0])
                corpus.extend(split, values[bounds[0] : bounds[-1]], np.diff(bounds).astype(np.int64))
                advance(count)
                if left is not None:
                    left -= count
                if (left is not None and left <= 0) or (stop is not None and number + len(bounds) - 1 >= stop):
                    break
        copy_tokenizer(folder, corpus.folder)
    return corpus.manifest


def parse_range(text: str) -> tuple[int, int | None]:
    """Read `A:B`, `A:` or `:B`. Raises :class:`UserError` for anything else."""
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if match is None:
        raise UserError(f"--documents {text}: write A:B, for example 0:1000")
    return int(match[1] or 0), int(match[2]) if match[2] else None


def _taken(bounds: npt.NDArray[np.int32], documents: int | None, tokens: int | None) -> npt.NDArray[np.int32]:
    """The bounds of the first documents: so many of them, and up to the one that reaches so many tokens."""
    if documents is not None:
        bounds = bounds[: documents + 1]
    if tokens is not None:
        reached = int(np.searchsorted(bounds[1:].astype(np.int64) - bounds[0], tokens))
        bounds = bounds[: reached + 2]
    return bounds
