"""--dedup, --min-tokens, --max-tokens and --shuffle against a plain reference, and their parts alone."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconattn.data import PackConfig, TokenCorpus, load_tokenizer
from deconattn.data.loading.sampler import make_key, mix
from deconattn.data.packing.encode import hash_texts
from deconattn.data.packing.pack import pack
from deconattn.data.packing.selection import HashSet, is_validation


@pytest.fixture
def pieces(demo_texts: list[str]) -> list[str]:
    """Short texts, some of them several times."""
    rng = random.Random(1)
    pieces = [text[: rng.randint(3, 300)] for text in demo_texts[:150]]
    pieces += rng.choices(pieces, k=60)
    rng.shuffle(pieces)
    return pieces


def reference(texts: list[str], tokenizer: Any, flags: dict[str, Any], val_fraction: float) -> dict[str, list[str]]:
    """The texts of each split, as the flags' descriptions have it."""
    kept: list[str] = []
    tokens = 0
    for text in texts:
        count = len(tokenizer.encode_batch([text])[0]) + 1
        if count >= flags.get("min_tokens", 1) and not ("dedup" in flags and text in kept):
            kept.append(text)
            tokens += count
            if tokens >= flags.get("max_tokens", tokens + 1):
                break
    order = list(range(len(kept)))
    if "shuffle" in flags:
        order.sort(key=lambda number: mix(number ^ make_key(flags["shuffle"])))
    held = {number for number in order if is_validation(number, val_fraction)}
    if val_fraction and len(held) in (0, len(kept)):
        held ^= {len(kept) - 1}
    return {
        "train": [kept[number] for number in order if number not in held],
        "val": [kept[number] for number in order if number in held],
    }


def texts_of(folder: Path, split: str) -> list[str]:
    corpus = TokenCorpus(folder, split)
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    starts = [*corpus.document_starts(0, corpus.num_tokens).tolist(), corpus.num_tokens]
    return [tokenizer.decode(corpus.read(start, end - start)[:-1]) for start, end in pairwise(starts)]


@pytest.mark.parametrize("val_fraction", [1e-9, 0.2, 0.999999])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"dedup": "exact"},
        {"min_tokens": 40},
        {"max_tokens": 3000},
        {"shuffle": 5},
        {"dedup": "exact", "min_tokens": 30, "max_tokens": 5000, "shuffle": 0},
    ],
)
def test_the_reference(
    tmp_path: Path,
    pieces: list[str],
    sp_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    val_fraction: float,
) -> None:
    monkeypatch.setattr("deconattn.data.reading.blocks.GRID", 5_000)
    monkeypatch.setattr("deconattn.data.packing.shuffle.RUN_BYTES", 3_000)
    monkeypatch.setattr("deconattn.data.packing.shuffle.RANGE_BYTES", 4_000)
    monkeypatch.setattr("deconattn.data.packing.shuffle._CHUNK_TOKENS", 500)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    config = PackConfig(
        (str(tmp_path / "a.jsonl"),), str(sp_model), tmp_path / "out", 1, val_fraction, shard_tokens=700, **flags
    )
    summary = pack(config)
    expected = reference(pieces, load_tokenizer(sp_model), flags, val_fraction)
    assert {split: texts_of(config.out, split) for split in ("train", "val")} == expected
    report = json.loads((config.out / "report.json").read_text())
    assert report["documents"] == {split: len(texts) for split, texts in expected.items()}
    assert report["text_bytes"] == summary.text_bytes == sum(len(t.encode()) for ts in expected.values() for t in ts)
    if "max_tokens" not in flags:
        skipped = len(pieces) - summary.documents
        assert report["skipped"]["duplicates"] + report["skipped"]["short"] == skipped


def test_seeds_give_different_orders(tmp_path: Path, pieces: list[str], sp_model: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    orders = []
    for seed in (1, 2):
        pack(PackConfig((str(tmp_path / "a.jsonl"),), str(sp_model), tmp_path / str(seed), 1, 0.0, shuffle=seed))
        orders.append(texts_of(tmp_path / str(seed), "train"))
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == sorted(pieces)


@pytest.mark.parametrize("flags", [{}, {"shuffle": 1}, {"dedup": "exact"}])
@pytest.mark.parametrize("val_fraction", [0.0, 0.1])
def test_a_single_document(tmp_path: Path, sp_model: Path, flags: dict[str, Any], val_fraction: float) -> None:
    text = "one and only document that there is " * 20
    (tmp_path / "a.jsonl").write_text(f'\n{{"text": ""}}\n{json.dumps({"text": text})}\n')
    pack(PackConfig((str(tmp_path / "a.jsonl"),), str(sp_model), tmp_path / "out", 1, val_fraction, **flags))
    train = texts_of(tmp_path / "out", "train")
    val = texts_of(tmp_path / "out", "val") if val_fraction else []
    assert "".join(train + val) == text
    assert (len(train), len(val)) == (1, 1 if val_fraction else 0)


@given(st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=40))
def test_the_set_of_hashes(batches: list[list[int]]) -> None:
    hashes, seen = HashSet(), set()
    for batch in batches:
        expected = []
        for value in batch:
            expected.append(value not in seen)
            seen.add(value)
        assert hashes.add(hash_texts(str(value).encode() for value in batch)).tolist() == expected


def test_hashes_that_end_in_zeros_differ() -> None:
    ends = [bytes(16), b"a" + bytes(15), b"a\0b" + bytes(13), bytes(15) + b"a"]
    hashes = np.frombuffer(b"".join(ends), dtype="S16")
    seen = HashSet()
    assert seen.add(hashes).all() and not seen.add(hashes).any()
