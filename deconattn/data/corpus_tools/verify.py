"""Every fault of a packed corpus, listed; a sample of its documents is decoded and encoded again."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.corpus_tokenizer import note_of, open_tokenizer, tokenizer_faults
from deconattn.data.corpus_tools.examine import examine_shard
from deconattn.data.corpus_tools.new_corpus import schema_of
from deconattn.data.corpus_tools.round_trip import RoundTrip
from deconattn.data.manifest import SPLITS, Manifest, read_manifest
from deconattn.data.tokenizing.tokenizer import Tokenizer
from deconattn.errors import UserError
from deconattn.progress import progress_bar


@dataclass
class Verdict:
    """`faults`, each one line that names its place; `notes` are no faults. `sampled` documents were decoded."""

    folder: Path
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    documents: int = 0
    tokens: int = 0
    sampled: int = 0

    def __str__(self) -> str:
        if self.faults:
            count = f"{len(self.faults):,} fault{'s' if len(self.faults) > 1 else ''}"
            return f"{self.folder}: {count}; copy the files that are named again, or pack the corpus again"
        sampled = f"{self.sampled:,} of them decoded and encoded again"
        return f"{self.folder}: sound, {self.documents:,} documents ({sampled}), {self.tokens:,} tokens"


def verify(folder: Path, sample: int) -> Verdict:
    """Read all of a packed corpus, a record batch in memory at a time.

    Manifest, tokenizer, and of every shard size, SHA-256, Arrow structure, offsets, ids, separators and counts;
    `sample` documents, drawn with a fixed seed, are decoded and encoded again.
    """
    verdict = Verdict(folder)
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        verdict.faults.append(str(error))
        return verdict
    verdict.faults += [f"{folder}: {fault}" for fault in _manifest_faults(folder, manifest)]
    tokenizer = _tokenizer(folder, manifest, verdict)
    # A conversation is encoded part by part, where its text as a whole may have other ids.
    trip = RoundTrip(tokenizer, manifest, sample) if tokenizer is not None and not manifest.answers else None
    total = sum(entry.bytes for entry in manifest.shards)
    with progress_bar(f"verifying {folder}", total, "bytes") as advance:
        for split in SPLITS:
            first = inner = 0

            def sound(
                number: int, values: npt.NDArray[Any], bounds: npt.NDArray[np.int32], split: str = split
            ) -> Iterator[tuple[int, str]]:
                return trip.check(split, number, values, bounds) if trip is not None else iter(())

            for entry in manifest.of_split(split):
                found = examine_shard(folder, entry, manifest, first, sound, advance)
                verdict.faults += found.faults
                verdict.documents += found.documents
                verdict.tokens += found.tokens
                inner += found.inner_separators
                first += entry.documents  # as decode counts: by the manifest
            if inner:
                verdict.notes.append(f"{folder}: {split} documents hold {inner:,} separators before their last token")
    verdict.sampled = trip.done if trip is not None else 0
    return verdict


def _manifest_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    names = {entry.name for entry in manifest.shards}
    for path in sorted(folder.glob("*.arrow")):
        if path.name not in names:
            yield f"{path.name} is not in the manifest"
    dtype = schema_of(manifest, "").dtype
    if manifest.dtype != dtype:
        yield f"the manifest's dtype is {manifest.dtype}; a vocabulary of {manifest.vocab_size} has {dtype}"


def _tokenizer(folder: Path, manifest: Manifest, verdict: Verdict) -> Tokenizer | None:
    """The folder's tokenizer, if it is the manifest's."""
    try:
        tokenizer = open_tokenizer(folder, manifest)
    except UserError as error:
        verdict.faults.append(str(error))
        return None
    wrong = tokenizer_faults(folder, tokenizer, manifest)
    verdict.faults += wrong
    if not wrong and (note := note_of(folder, manifest)):
        verdict.notes.append(note)
    return None if wrong else tokenizer
