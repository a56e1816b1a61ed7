"""Packed ids are the library's own ids and a separator, whatever the text and the tokenizer."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from deconattn.data import load_tokenizer
from deconattn.data.manifest import SpecialTokens
from deconattn.data.packing.encode import Work
from deconattn.data.reading.blocks import InputBlock
from deconattn.data.tokenizing.fast import load_fast_tokenizer
from tests.data.tokenizing.kinds import KINDS, SENTENCEPIECE

Kind = Callable[[str], Path]
PIECES = (
    *("the King, ", "It's ", "don't", "\n", "\r\n\r\n", " " * 7, "\t\t", "\u00a0", "\u3000", "e\u0301"),
    *("\u0338\u0301", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\ufb01", "\u212b"),
    *("\u05e9\u05dc\u05d5\u05dd", "\u202e\u0645\u0631", "\u6771\u4eac", "\ud55c\uad6d", "\u0e20\u0e32", "\u0130"),
    *("\x00", "\x1b[0m", "\ufeff", "\ufffd", "\\ud800", "\U0010ffff", "\u2581", "12345", "1,2.3e-4", "a" * 50),
    *("<", "|>", "</s", "<0x0A>", "&amp;", "_", "=" * 9),
)
"""Parts of texts: marks, both directions, controls, escapes, runs, and beginnings of special tokens."""


def fuzzed(rng: random.Random, special: list[str], most: int) -> str:
    """A text of some of the parts, some of the special tokens and some characters of any kind."""
    parts = []
    for _ in range(rng.randint(1, most)):
        draw = rng.random()
        if draw < 0.6:
            parts.append(rng.choice(PIECES))
        elif draw < 0.8:
            parts.append(rng.choice(special))
        else:
            points = (rng.choice((rng.randint(1, 0xD7FF), rng.randint(0xE000, 0x10FFFF))) for _ in range(3))
            parts.append("".join(map(chr, points)))
    return "".join(parts)


def check(folder: Path, special_tokens: SpecialTokens | None, count: int, seed: int) -> None:
    """Compare what packing makes of texts with what the library itself does."""
    rng = random.Random(seed)
    exact = load_tokenizer(folder, None, special_tokens)
    special = [*exact.added_tokens(), "<s>", "</s>", "<|endoftext|>", "[SEP]"]
    texts = [fuzzed(rng, special, 40) for _ in range(count)] + [rng.choice(PIECES) * 5000, fuzzed(rng, special, 4000)]
    if (folder / "tokenizer.json").is_file():
        library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        library.encode_special_tokens = special_tokens == "text"
        theirs = [library.encode(text, add_special_tokens=False).ids for text in texts]
    else:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        theirs = [processor.encode(text) for text in texts]
    expected = [[0, *ids, exact.eos_token_id] for ids in theirs]
    for tokenizer in (exact, load_fast_tokenizer(folder, texts[:2], None, special_tokens)):
        for start in range(0, len(texts), 100):
            part = texts[start : start + 100]
            work = Work(tokenizer, "text", "uint32", hashes=False, bos_token_id=0)
            encoded = work.encode(tokenizer, block(part))
            found = np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])
            wanted = [ids for ids, text in zip(expected[start : start + 100], part, strict=True) if text.strip()]
            assert [ids.tolist() for ids in found] == wanted


def block(texts: list[str]) -> InputBlock:
    """The texts as lines of JSON."""
    payload = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    return InputBlock(0, 1, "json", payload, 0)


WAYS = [
    (name, how)
    for name in (*KINDS, *SENTENCEPIECE)
    for how in (None, "text")
    if (name, how) != ("unigram", "text") and not (name in SENTENCEPIECE and how)
]


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_packed_ids_are_the_library_s(kind: Kind, name: str, how: SpecialTokens | None) -> None:
    check(kind(name), how, count=30, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), WAYS)
def test_thousands_of_texts(kind: Kind, name: str, how: SpecialTokens | None) -> None:
    check(kind(name), how, count=2000, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("how", [None, "text"])
def test_thousands_of_texts_through_a_real_one(hf_tokenizer: Path, tmp_path: Path, how: SpecialTokens | None) -> None:
    (tmp_path / "tokenizer.json").write_bytes(hf_tokenizer.read_bytes())
    check(tmp_path, how, count=4000, seed=3)
