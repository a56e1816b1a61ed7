"""Samples stay what they were when runs were begun: their digests, made before best-fit packing had tables."""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from deconattn.data import SampleStream, TokenCorpus


def documents(seed: int) -> list[list[list[int]]]:
    """Three shards of 70 documents of 1 to 48 tokens."""
    source = random.Random(seed)

    def document() -> list[int]:
        return [*(int(source.random() * 999) + 1 for _ in range(int(source.random() * source.random() * 48))), 0]

    return [[document() for _ in range(70)] for _ in range(3)]


@pytest.mark.parametrize(
    ("packing", "doc_mask", "samples", "digest"),
    [
        ("concat", False, 205, "bb2aa7951a40f08d"),
        ("concat", True, 205, "99391c4c7e478ecb"),
        ("best-fit", False, 207, "387f2aa874a6483f"),
        ("best-fit", True, 207, "e06e46a2c1accc1d"),
    ],
)
def test_a_blend_s_samples(
    packed_folder: Callable[..., Path], packing: str, doc_mask: bool, samples: int, digest: str
) -> None:
    corpora = [(TokenCorpus(packed_folder(documents(n), name=f"{n}")), weight) for n, weight in ((0, 1.0), (1, 0.3))]
    stream = SampleStream(corpora, 24, seed=5, packing=packing)  # type: ignore[arg-type]
    assert stream.num_samples == samples
    hashed = hashlib.sha256()
    for first in range(0, 800, 8):  # several epochs; a resume begins at any of them
        hashed.update(stream.arrays(range(first, first + 8), doc_mask).tobytes())
    assert hashed.hexdigest()[:16] == digest
    resumed = SampleStream(corpora, 24, seed=5, packing=packing)  # type: ignore[arg-type]
    assert (resumed.arrays(range(792, 800), doc_mask) == stream.arrays(range(792, 800), doc_mask)).all()
