"""Every fault of a packed corpus, listed; a sample of its documents is decoded and encoded again."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.corpus_tools.examine import examine_shard
from deconattn.data.corpus_tools.new_corpus import schema_of
from deconattn.data.manifest import SPLITS, Manifest, read_manifest
from deconattn.data.progress_bars import progress_bar
from deconattn.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from deconattn.errors import UserError

_MAX_TOKENS = 1_000_000  # of a document that is decoded
_SEED = 0
_UNKNOWN = "⁇"  # how SentencePiece spells an unknown character, which is lost
_REPLACEMENT = "�"


class RoundTrip:
    """A seeded sample of a corpus' documents, decoded and encoded again.

    Text that the tokenizer normalises comes back as other text; then that must come back as it is. Documents of more
    than a million tokens are left out. `done` counts the documents that were compared.
    """

    def __init__(self, tokenizer: Tokenizer, manifest: Manifest, sample: int) -> None:
        self._tokenizer = tokenizer
        self.done = 0
        held = {split: sum(entry.documents for entry in manifest.of_split(split)) for split in SPLITS}
        total = sum(held.values())
        drawn = np.sort(np.random.default_rng(_SEED).choice(total, min(sample, total), replace=False))
        self._drawn: dict[str, npt.NDArray[np.int64]] = {}
        for split, documents in held.items():
            self._drawn[split], drawn = drawn[drawn < documents], drawn[drawn >= documents] - documents

    def check(
        self, split: str, first: int, values: npt.NDArray[Any], bounds: npt.NDArray[np.int32]
    ) -> Iterator[tuple[int, str]]:
        """Compare the drawn documents among those of a record batch; gives number and fault of each that fails.

        Args:
            first: the number of its first document in the split.
        """
        drawn = self._drawn[split]
        low, high = np.searchsorted(drawn, [first, first + len(bounds) - 1])
        for number in drawn[low:high].tolist():
            ids = values[bounds[number - first] : bounds[number - first + 1]]
            if int(ids.max(initial=0)) >= self._tokenizer.vocab_size or len(ids) > _MAX_TOKENS:
                continue
            self.done += 1
            ended = len(ids) > 0 and int(ids[-1]) == self._tokenizer.eos_token_id
            fault = self._fault(ids[:-1] if ended else ids)
            if fault:
                yield number, fault

    def _fault(self, ids: npt.NDArray[Any]) -> str:
        text = self._tokenizer.decode(ids.tolist())
        again = self._encode(text)
        if np.array_equal(again, ids) or _UNKNOWN in text:
            return ""
        returned = self._tokenizer.decode(again.tolist())
        if returned != text and np.array_equal(self._encode(returned), again):
            return ""
        shared = min(len(ids), len(again))
        differing = np.flatnonzero(again[:shared] != ids[:shared])
        place = int(differing[0]) if len(differing) else shared
        damaged = f"; its text has bytes that are not UTF-8 ({_REPLACEMENT})" if _REPLACEMENT in text else ""
        return f"from token {place} on its ids are not those that the tokenizer gives its text{damaged}"

    def _encode(self, text: str) -> npt.NDArray[np.uint32]:
        return self._tokenizer.encode_batch([text])[0]


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
    trip = RoundTrip(tokenizer, manifest, sample) if tokenizer is not None else None
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
        tokenizer = load_tokenizer(folder)
    except UserError as error:
        verdict.faults.append(str(error))
        return None
    pairs = (
        ("fingerprint", tokenizer.fingerprint, manifest.tokenizer_fingerprint),
        ("vocabulary", tokenizer.vocab_size, manifest.vocab_size),
        ("separator", tokenizer.eos_token_id, manifest.eos_token_id),
    )
    wrong = [f"{what} {held}, {said} in the manifest" for what, held, said in pairs if held != said]
    verdict.faults += [f"{folder / tokenizer.file_name}: {fault}" for fault in wrong]
    return None if wrong else tokenizer
