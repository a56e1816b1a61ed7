"""Documents of a packed corpus as text again."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from deconattn.data.corpus import read_documents
from deconattn.data.corpus_tokenizer import open_tokenizer
from deconattn.data.manifest import read_manifest
from deconattn.errors import UserError
from deconattn.program import command

_AROUND = 60  # characters of an excerpt on either side


@dataclass(frozen=True)
class Decoded:
    """One document: its number in the split, ids `[n]` with the separator and what begins it, and text without them."""

    number: int
    ids: npt.NDArray[Any]
    text: str

    def excerpt(self, wanted: str) -> str:
        """The first place of `wanted` in the text, in one line."""
        place = self.text.find(wanted)
        start, end = max(place - _AROUND, 0), place + len(wanted) + _AROUND
        inside = " ".join(self.text[start:end].split())
        return f"{'...' if start else ''}{inside}{'...' if end < len(self.text) else ''}"


def decode(folder: Path, split: str, start: int) -> Iterator[Decoded]:
    """The documents of a split from number `start` on.

    Raises:
        UserError: no such split or document, a damaged corpus, an id beyond the vocabulary.
    """
    manifest = read_manifest(folder)
    entries = manifest.of_split(split)
    held = sum(entry.documents for entry in entries)
    if not entries:
        raise UserError(f"{folder} has no {split} split; give --split {manifest.shards[0].split}")
    if not 0 <= start < held:
        raise UserError(f"--document {start}: {folder} has {split} documents 0 to {held - 1}")
    tokenizer = open_tokenizer(folder, manifest)
    for number, ids in read_documents(folder, manifest, split, start):
        if int(ids.max(initial=0)) >= tokenizer.vocab_size:
            raise UserError(
                f"{folder}: {split} document {number}: id {int(ids.max())} is beyond the vocabulary of "
                f"{tokenizer.vocab_size}; see {command('shards')} verify {folder}"
            )
        ended = len(ids) > 0 and int(ids[-1]) == tokenizer.eos_token_id
        begun = manifest.bos_token_id is not None and len(ids) > 0 and int(ids[0]) == manifest.bos_token_id
        body = ids[int(begun) : len(ids) - ended]
        yield Decoded(number, ids, tokenizer.decode(body.tolist()))
