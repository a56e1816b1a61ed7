"""Every kind of tokenizer that can be trained: lossless, the same each time, and refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deconattn.data import load_tokenizer
from deconattn.data.tokenizing import training
from deconattn.data.tokenizing.disagreements import AWKWARD_TEXTS
from deconattn.data.tokenizing.training import Training, parse_training, train_tokenizer
from deconattn.errors import UserError

KINDS = ("unigram", "bpe", "byte-bpe")
AGAIN = """
import sys
from importlib.resources import files
from pathlib import Path
import orjson
from deconattn.data.tokenizing.training import Training, train_tokenizer
lines = (files("deconattn.data") / "demo" / "shakespeare.jsonl").read_bytes().splitlines()[:20]
for kind in sys.argv[2:]:
    (folder := Path(sys.argv[1], kind)).mkdir()
    train_tokenizer([orjson.loads(line)["text"] for line in lines], Training(kind, 600), folder)
"""


@pytest.fixture(scope="module")
def trained(demo_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        kind: train_tokenizer(demo_texts[:20], Training(kind, 600), tmp_path_factory.mktemp(kind)) for kind in KINDS
    }


def test_what_a_command_line_asks_for() -> None:
    assert parse_training("train:32000") == parse_training("train:unigram:32000") == Training("unigram", 32000)
    assert parse_training("train:bpe:700") == Training("bpe", 700)
    assert parse_training("train:byte-bpe:700") == Training("byte-bpe", 700)
    assert parse_training("tokenizer.json") is parse_training("train") is parse_training("/data/train:5") is None
    for spec in ("train:500", "train:bpe:500", "train:byte-bpe:500"):
        assert str(parse_training(spec)) == spec


@pytest.mark.parametrize("spec", ["train:", "train:abc", "train:-5", "train:1e3", "train:wordpiece:500", "train:bpe:"])
def test_other_forms_are_told_the_right_ones(spec: str) -> None:
    with pytest.raises(UserError, match=f"{spec}: write train:VOCAB, .*train:bpe:VOCAB or train:byte-bpe:VOCAB"):
        parse_training(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("train:100", "train:100: .* at least 260"),
        ("train:bpe:259", "train:bpe:259: .* at least 260"),
        ("train:byte-bpe:257", "train:byte-bpe:257: .* at least 258"),
        ("train:byte-bpe:999999999999", "at most 10,000,000"),
    ],
)
def test_vocabularies_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_training(spec)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(kind: str, trained: dict[str, Path], texts: list[str]) -> None:
    tokenizer = load_tokenizer(trained[kind])
    assert tokenizer.vocab_size == 600
    assert (tokenizer.separator, tokenizer.eos_token_id) == (("<|endoftext|>", 0) if "byte" in kind else ("</s>", 2))
    # SentencePiece reads its own mark for a space as a space.
    awkward = [text for text in (*texts, *AWKWARD_TEXTS) if kind == "byte-bpe" or "\u2581" not in text]
    encoded = tokenizer.encode_batch(awkward)
    assert [tokenizer.decode(ids) for ids in encoded] == awkward
    assert max(int(ids.max(initial=0)) for ids in encoded) < 600
    assert len(np.concatenate(encoded)) < sum(len(text.encode()) for text in awkward)


def test_the_same_texts_give_the_same_bytes(trained: dict[str, Path], tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", AGAIN, str(tmp_path), *KINDS], check=True, env=environment)
    for kind, path in trained.items():
        assert (tmp_path / kind / path.name).read_bytes() == path.read_bytes()
        assert [left.name for left in (tmp_path / kind).iterdir()] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_vocabulary_is_named(kind: str, tmp_path: Path) -> None:
    texts = ["much too little text for so large a vocabulary"] * 3
    with pytest.raises(UserError, match="too small for this vocabulary; use train:.* or less") as caught:
        train_tokenizer(texts, Training(kind, 5000), tmp_path)
    assert not list(tmp_path.iterdir())
    advice = parse_training(str(caught.value).split("; use ")[1].split(" ")[0])
    assert advice is not None and advice.kind == kind
    assert load_tokenizer(train_tokenizer(texts, advice, tmp_path)).vocab_size == advice.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_no_text(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(iter([""]), Training(kind, 1000), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_too_many_characters(kind: str, tmp_path: Path) -> None:
    texts = ["".join(map(chr, range(0x4E00, 0x4F00)))] * 3
    with pytest.raises(UserError, match="too many distinct characters; use at least 515"):
        train_tokenizer(texts, Training(kind, 300), tmp_path)


def test_reading_ends_with_the_sample(demo_texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "MAX_SENTENCES", 300)
    monkeypatch.setattr(training, "MAX_CHARACTERS", 20_000)
    for kind in KINDS:
        texts = iter(demo_texts)
        train_tokenizer(texts, Training(kind, 400), tmp_path)
        read = len(demo_texts) - len(list(texts))
        assert 0 < read < len(demo_texts) // 2


def test_byte_level_pieces_are_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_PIECE_CHARACTERS", 10)
    text = "one two three four  five " + "x" * 35 + " six\n\nseven"
    pieces = list(training._pieces([text, "", "short"]))
    assert "".join(pieces) == text + "short"
    assert max(map(len, pieces)) == 10
    assert pieces[:3] == ["one two", " three", " four "]
    monkeypatch.setattr(training, "MAX_CHARACTERS", 12)
    assert "".join(training._pieces([text, "short"])) == text[:12]
