"""Damaged inputs give a packed folder that is whole, or one line; no traceback, no hang, no broken shard."""

import os
import shutil
from pathlib import Path
from random import Random

import pytest

from deconattn.data import PackConfig, TokenCorpus, verify_checksums
from deconattn.data.packing.pack import pack
from deconattn.errors import UserError
from tests.data.reading.mutations import NAMES, encode, mutate, odd_lines

TEXTS = ["first text", "", "zweiter Text: äöü 日本", "line\nline\r\n", "x" * 500, " ", "same", "same", "last one"]
ROUNDS = 40


@pytest.mark.parametrize("name", [*NAMES, "odd.jsonl"])
def test_damaged_inputs(tmp_path: Path, sp_model: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of packs
    random = Random(name)
    whole = encode(name, TEXTS)
    out = tmp_path / "out"
    path = tmp_path / name
    for number in range(ROUNDS):
        path.write_bytes(odd_lines(random) if name == "odd.jsonl" else mutate(whole, random) if number else whole)
        config = PackConfig(
            (str(path),),
            str(sp_model),
            out,
            workers=1,
            val_fraction=random.choice((0.0, 0.3)),
            shard_tokens=random.choice((5, 60, 10**8)),
            min_tokens=random.choice((1, 5)),
            max_tokens=random.choice((None, 30)),
            dedup=random.choice((None, "exact")),
            shuffle=random.choice((None, 1)),
            restart=True,
        )
        refusal = None
        try:
            pack(config)
        except UserError as error:
            refusal = str(error)
        if refusal is not None:
            assert number > 0 or name == "odd.jsonl"
            assert refusal and "\n" not in refusal
            assert [entry.name for entry in tmp_path.iterdir() if entry != path] in ([], [".out.partial"])
            continue
        manifest = verify_checksums(out)
        for split in {shard.split for shard in manifest.shards}:
            corpus = TokenCorpus(out, split)
            ids = corpus.read(0, corpus.num_tokens)
            assert ids.max() < manifest.vocab_size and ids[-1] == manifest.eos_token_id
            assert corpus.document_starts(0, corpus.num_tokens)[0] == 0
        assert sum(shard.documents for shard in manifest.shards) > 0
        shutil.rmtree(out)
