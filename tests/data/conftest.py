"""Tokenizers, documents and hand-made packed folders for the data tests."""

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from deconattn.data.manifest import write_manifest
from deconattn.data.packing.pack import pack_demo
from deconattn.data.shards import ShardSchema, ShardWriter
from deconattn.data.tokenizing.training import Training, train_tokenizer
from tests.data.tokenizing.kinds import build

SHARED = Path(__file__).parents[3] / "shared" / "data"
PackedFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def demo_texts() -> list[str]:
    """The bundled corpus' documents."""
    content = (files("deconattn.data") / "demo" / "shakespeare.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["text"] for line in content.splitlines()]


@pytest.fixture(scope="session")
def hf_tokenizer(tmp_path_factory: pytest.TempPathFactory, demo_texts: list[str]) -> Path:
    """A tokenizer.json: the GPT-NeoX one where staged, otherwise a small byte-level BPE."""
    staged = SHARED / "tokenizer" / "20B_tokenizer.json"
    if staged.exists():
        return staged
    return train_tokenizer(demo_texts[:20], Training("byte-bpe", 600), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def sp_model(tmp_path_factory: pytest.TempPathFactory, demo_texts: list[str]) -> Path:
    """A small SentencePiece model."""
    return train_tokenizer(demo_texts[:20], Training("unigram", 512), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed demo corpus. Do not write into it."""
    out = tmp_path_factory.mktemp("packed") / "demo"
    pack_demo(out)
    return out


@pytest.fixture(scope="session")
def kind(demo_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind's tokenizer, see `tests.data.tokenizing.kinds`, built once. Do not write into it."""
    built: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in built:
            built[name] = build(name, demo_texts[:4], tmp_path_factory.mktemp(name))
        return built[name]

    return make


@pytest.fixture
def texts(demo_texts: list[str]) -> list[str]:
    """Documents that are awkward in one way or another."""
    awkward = ["  two  spaces\tand\n\n\nnewlines \r\n", "naïve 日本語 🙂\u200d — “quoted”", "x", "\x00 control \x07"]
    return [*awkward, *demo_texts[:8], "no newline at the end", "<s> </s> <unk> <0x41>"]


@pytest.fixture
def packed_folder(tmp_path: Path) -> PackedFolder:
    """Make a packed folder out of shards, each a list of documents, each a list of ids."""

    def make(
        shards: Sequence[Sequence[Sequence[int]]], vocab_size: int = 1000, fingerprint: str = "f", name: str = "packed"
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        schema = ShardSchema(fingerprint, vocab_size, eos_token_id=0, source="test")
        entries = []
        for number, documents in enumerate(shards):
            with ShardWriter(folder / f"train-{number:05d}.arrow", "train", schema) as writer:
                for document in documents:
                    writer.append(np.array(document, dtype=np.uint32))
            assert writer.entry is not None
            entries.append(writer.entry)
        write_manifest(folder, schema.manifest(tuple(entries)))
        return folder

    return make
