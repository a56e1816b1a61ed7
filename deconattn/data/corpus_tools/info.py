"""Description of a packed corpus: counts, lengths of documents, tokenizer, checksums."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.corpus_tokenizer import open_tokenizer, tokenizer_faults
from deconattn.data.manifest import SPLITS, Manifest, ShardEntry, read_manifest
from deconattn.data.shards import open_shard
from deconattn.progress import progress_bar


@dataclass(frozen=True)
class Bin:
    """Documents of `at_least` to `at_most` tokens, and their tokens in total; the bounds are powers of two."""

    at_least: int
    at_most: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class SplitInfo:
    """One split; lengths in tokens, separators included."""

    shards: int
    documents: int
    tokens: int
    bytes: int
    shortest: int
    median: float
    mean: float
    longest: int
    histogram: tuple[Bin, ...]


@dataclass(frozen=True)
class TokenizerInfo:
    """`separator` is the spelling of `eos_token_id`; `bos_token_id` begins each document, None for nothing."""

    kind: str
    vocab_size: int
    eos_token_id: int
    separator: str
    bos_token_id: int | None
    special_tokens: str
    fingerprint: str
    matches_manifest: bool


@dataclass(frozen=True)
class CorpusInfo:
    """A packed folder."""

    folder: str
    source: str
    format_version: int
    dtype: str
    tokenizer: TokenizerInfo
    splits: dict[str, SplitInfo]
    shards: tuple[ShardEntry, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the description as JSON types."""
        return asdict(self)


def corpus_info(folder: Path) -> CorpusInfo:
    """Read the manifest, the tokenizer and every document's bounds; no token. 8 bytes of memory a document.

    Raises:
        UserError: a folder that is no packed corpus, a missing or damaged shard, no tokenizer.
    """
    manifest = read_manifest(folder)
    with progress_bar(f"reading {folder}", len(manifest.shards), "shards") as advance:
        splits = {}
        for split in SPLITS:
            entries = manifest.of_split(split)
            if entries:
                lengths = []
                for entry in entries:
                    shard = open_shard(folder / entry.name, entry, manifest)
                    lengths += [np.diff(bounds) for bounds in shard.offsets]
                    advance(1)
                splits[split] = _split_info(entries, np.concatenate(lengths))
    return CorpusInfo(
        folder=str(folder),
        source=manifest.source,
        format_version=manifest.format_version,
        dtype=manifest.dtype,
        tokenizer=_tokenizer_info(folder, manifest),
        splits=splits,
        shards=manifest.shards,
    )


def _split_info(entries: tuple[ShardEntry, ...], lengths: npt.NDArray[np.int32]) -> SplitInfo:
    return SplitInfo(
        shards=len(entries),
        documents=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        bytes=sum(entry.bytes for entry in entries),
        shortest=int(lengths.min()),
        median=float(np.median(lengths)),
        mean=float(lengths.mean()),
        longest=int(lengths.max()),
        histogram=_histogram(lengths),
    )


def _histogram(lengths: npt.NDArray[np.int32]) -> tuple[Bin, ...]:
    power = np.frexp(lengths.astype(np.float64))[1]  # of 2; a length of 2^k to 2^(k+1) - 1 has k + 1, none 0
    documents = np.bincount(power)
    tokens = np.bincount(power, weights=lengths)
    return tuple(
        Bin(2 ** (p - 1) if p else 0, 2**p - 1, int(documents[p]), int(tokens[p]))
        for p in range(int(power.min()), int(power.max()) + 1)
    )


def _tokenizer_info(folder: Path, manifest: Manifest) -> TokenizerInfo:
    tokenizer = open_tokenizer(folder, manifest)
    return TokenizerInfo(
        kind="tokenizers" if tokenizer.file_name.endswith(".json") else "SentencePiece",
        vocab_size=tokenizer.vocab_size,
        eos_token_id=tokenizer.eos_token_id,
        separator=tokenizer.separator,
        bos_token_id=manifest.bos_token_id,
        special_tokens=tokenizer.special_tokens,
        fingerprint=tokenizer.fingerprint,
        matches_manifest=not tokenizer_faults(folder, tokenizer, manifest),
    )
