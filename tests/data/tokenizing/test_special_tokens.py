"""What becomes of a special token that a text spells out."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from deconattn.data import load_tokenizer
from deconattn.data.tokenizing.fast import load_fast_tokenizer
from deconattn.errors import UserError
from tests.data.tokenizing.kinds import write_json

Kind = Callable[[str], Path]
TEXTS = ["a <eos>b</s>\n\n", "<pad><eos>", "no special one </s>", "<bos> first", " ", "<eos", "the <unk> king"]


def test_as_text_or_as_token(kind: Kind) -> None:
    token, text = (load_tokenizer(kind("gemma"), None, how) for how in (None, "text"))
    assert (token.special_tokens, text.special_tokens) == ("token", "text")
    special = {0, 1, 2, 3}
    assert special & {*token.encode_batch(["a <eos> b"])[0].tolist()} == {1}
    found = text.encode_batch(TEXTS)
    assert not special & {token for ids in found for token in ids.tolist()}
    assert [text.decode(ids) for ids in found] == TEXTS
    assert 450 in found[0] and 452 in found[0]  # </s> and the line ends are added tokens, but not special


@pytest.mark.parametrize("name", ["gemma", "neox", "llama2"])
def test_the_fast_way_and_other_processes_read_the_same(kind: Kind, name: str) -> None:
    exact = load_tokenizer(kind(name), None, "text")
    fast = load_fast_tokenizer(kind(name), TEXTS, None, "text")
    texts = [*TEXTS, f"x{exact.separator}y", *(f" {token}" for token in exact.special())]
    expected = [ids.tolist() for ids in exact.encode_flat(texts)]
    for tokenizer in (exact, fast, fast.fresh(), *(pickle.loads(pickle.dumps(one)) for one in (exact, fast))):
        assert [ids.tolist() for ids in tokenizer.encode_flat(texts)] == expected
        assert (tokenizer.eos_token_id, tokenizer.special_tokens) == (exact.eos_token_id, "text")


def test_the_file_beside_it_says_so(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((kind("gemma") / "tokenizer.json").read_bytes())
    write_json(tmp_path, tokenizer_config={"split_special_tokens": True})
    assert load_tokenizer(tmp_path).special_tokens == "text"
    assert load_tokenizer(tmp_path, None, "token").special_tokens == "token"


def test_a_model_that_has_them_among_its_words(kind: Kind) -> None:
    with pytest.raises(UserError, match=r"--special-tokens text: .* has '<pad>' among the words"):
        load_tokenizer(kind("unigram"), None, "text")
    assert load_tokenizer(kind("word_level"), None, "text").special_tokens == "text"  # it cuts [EOS] at the marks


def test_sentencepiece_reads_text_only(kind: Kind) -> None:
    assert load_tokenizer(kind("sentencepiece_bpe")).special_tokens == "text"
    with pytest.raises(UserError, match="--special-tokens token: SentencePiece reads no special token"):
        load_tokenizer(kind("sentencepiece_bpe"), None, "token")


def test_gigatoken_is_not_given_an_ordinary_separator(
    kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((kind("gemma") / "tokenizer.json").read_text())
    word = next(piece for piece in document["model"]["vocab"] if len(piece) == 4)
    tokenizer = load_fast_tokenizer(kind("gemma"), TEXTS, word)
    assert type(tokenizer) is type(load_tokenizer(kind("gemma")))
    assert "takes no separator that is an ordinary token" in capsys.readouterr().err
