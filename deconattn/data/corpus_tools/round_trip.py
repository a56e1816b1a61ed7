"""Whether the ids of sampled documents are those that the tokenizer gives their text."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from deconattn.data.manifest import SPLITS, Manifest
from deconattn.data.tokenizing.tokenizer import Tokenizer

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
        held = {split: sum(max(entry.documents, 0) for entry in manifest.of_split(split)) for split in SPLITS}
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
