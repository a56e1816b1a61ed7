"""Ids are judged by whether the tokenizer gives them to a text, not by what their text looks like."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deconattn.data import PackConfig, load_tokenizer, read_manifest
from deconattn.data.corpus_tools.round_trip import IdJudge
from deconattn.data.corpus_tools.verify import verify
from deconattn.data.manifest import SpecialTokens
from deconattn.data.packing.pack import pack
from tests.data.tokenizing.kinds import KINDS, SENTENCEPIECE

Kind = Callable[[str], Path]
TEXTS = [
    "<s>old price</s> now",
    "plain words and more. It's  so\n\nnice  ",
    "na\u00efve \u6771\u4eac \U0001f642 <eos> tag e\u0301",
    "The King</s>  doth <unk>keep <pad> here <mask> or  <mask>there",
    "<s>a</s><s> b</s>",
    "[SEP] what [CLS] is<|endoftext|>  <|begin_of_text|>\u2581it ",
    "    eight        spaces\t</s>\n\n</s>",
]


@pytest.mark.parametrize("special_tokens", [None, "text"])
@pytest.mark.parametrize("name", [*KINDS, *SENTENCEPIECE])
def test_right_ids_of_every_kind_are_sound(kind: Kind, name: str, special_tokens: SpecialTokens | None) -> None:
    if special_tokens and name in ("unigram", *SENTENCEPIECE):
        return  # one refuses, the others read text anyway
    tokenizer = load_tokenizer(kind(name), None, special_tokens)
    judge = IdJudge(tokenizer)
    assert [judge.fault(ids) for ids in tokenizer.encode_batch(TEXTS)] == [""] * len(TEXTS)


@pytest.mark.parametrize("name", ["llama2", "llama2_first", "gemma", "neox", "llama3", *SENTENCEPIECE])
def test_ids_that_no_text_has(kind: Kind, name: str, demo_texts: list[str]) -> None:
    """A word that is cut within, somewhere after a special token."""
    tokenizer = load_tokenizer(kind(name))
    judge = IdJudge(tokenizer)
    text = f"an older one{tokenizer.separator} and the" if name not in SENTENCEPIECE else "an older one and the"
    ids = tokenizer.encode_batch([text])[0]
    assert len(tokenizer.decode(ids[-1:]).strip()) > 1
    letters = [tokenizer.encode_batch(["x" + letter])[0][-1] for letter in "the"]
    wrong = np.array([*ids[:-1], *letters], dtype=np.uint32)
    assert judge.fault(ids) == ""
    assert judge.fault(wrong).startswith("from token ")


def test_special_tokens_in_a_corpus_that_was_read_as_text(kind: Kind) -> None:
    tokenizer = load_tokenizer(kind("gemma"), None, "text")
    ids = tokenizer.encode_batch(["one two"])[0]
    assert IdJudge(tokenizer).fault(np.array([*ids, tokenizer.find("<pad>")])).startswith("from token ")


@pytest.mark.parametrize("name", ["llama2", "gemma", "word_piece"])
@pytest.mark.parametrize("special_tokens", [None, "text"])
def test_a_packed_corpus_is_sound(kind: Kind, tmp_path: Path, name: str, special_tokens: SpecialTokens | None) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    bos = {"llama2": "<s>", "gemma": "<bos>", "word_piece": "[CLS]"}[name]
    config = PackConfig(
        (str(source),), str(kind(name)), tmp_path / "out", workers=1, bos=bos, special_tokens=special_tokens
    )
    summary = str(pack(config))
    assert ("(--special-tokens text: as text)" in summary) == (special_tokens is None)
    assert "named by the list of usual ones" in summary
    verdict = verify(config.out, 100)
    assert (verdict.faults, verdict.sampled) == ([], len(TEXTS))
    manifest = read_manifest(config.out)
    assert manifest.bos_token_id == load_tokenizer(config.out).find(bos)
    assert manifest.special_tokens == (special_tokens or "token")
