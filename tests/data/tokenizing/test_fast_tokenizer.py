"""The fast tokenizer gives the exact one's ids, or it is not used."""

import json
import pickle
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from deconattn.data import load_tokenizer
from deconattn.data.tokenizing import fast as module
from deconattn.data.tokenizing.disagreements import AWKWARD_TEXTS, has_unsettled, with_added_tokens
from deconattn.data.tokenizing.fast import FastTokenizer, first_difference, load_fast_tokenizer
from deconattn.data.tokenizing.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer
from deconattn.data.tokenizing.training import Training, train_tokenizer
from deconattn.program import installation

pytest.importorskip("gigatoken")


@pytest.fixture(scope="module", params=["given", "byte-bpe", "bpe"])
def path(
    request: pytest.FixtureRequest,
    hf_tokenizer: Path,
    demo_texts: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    if request.param == "given":
        return hf_tokenizer
    return train_tokenizer(demo_texts[:20], Training(request.param, 700), tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def exact(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def small(demo_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(demo_texts[:5], Training("byte-bpe", 300), tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def fast(path: Path) -> FastTokenizer:
    tokenizer = load_fast_tokenizer(path, ["a sample"])
    assert isinstance(tokenizer, FastTokenizer)
    return tokenizer


def assert_same(exact: Tokenizer, fast: FastTokenizer, texts: list[str]) -> None:
    ids, counts = exact.encode_flat(texts)
    others, other_counts = fast.encode_flat(texts)
    assert np.array_equal(ids, others) and ids.dtype == others.dtype
    assert np.array_equal(counts, other_counts) and counts.dtype == other_counts.dtype


def test_ids_are_the_exact_ones(exact: Tokenizer, fast: FastTokenizer, demo_texts: list[str]) -> None:
    awkward = [*AWKWARD_TEXTS, *with_added_tokens([*exact.added_tokens()])]
    for texts in (demo_texts[:60], awkward, awkward[::-1], [], [""], ["", "x", ""]):
        assert_same(exact, fast, texts)
    assert (fast.vocab_size, fast.eos_token_id, fast.separator, fast.fingerprint, fast.content, fast.file_name) == (
        exact.vocab_size,
        exact.eos_token_id,
        exact.separator,
        exact.fingerprint,
        exact.content,
        exact.file_name,
    )
    assert [ids.tolist() for ids in fast.encode_batch(awkward)] == [ids.tolist() for ids in exact.encode_batch(awkward)]
    assert fast.decode(exact.encode_batch(["a word"])[0]) == "a word"


def test_a_separator_in_a_text_is_no_end(exact: Tokenizer, fast: FastTokenizer) -> None:
    assert_same(exact, fast, ["one", f"t{fast.separator}o", "<s>three</s><|endoftext|>", fast.separator, "five"])


def test_pickled_and_fresh_ones_are_not_checked_again(
    exact: Tokenizer, fast: FastTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "first_difference", None)
    for other in (pickle.loads(pickle.dumps(fast)), fast.fresh()):
        assert other._engine is not fast._engine and other._exact is None
        assert_same(exact, other, ["naïve café", "new \U0001fae9 emoji", "plain"])


def test_threads_may_share_it(fast: FastTokenizer, demo_texts: list[str]) -> None:
    batches = [demo_texts[start : start + 5] for start in range(0, 60, 5)]
    expected = [fast.encode_flat(batch)[0].tolist() for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        assert [ids.tolist() for ids, _ in pool.map(fast.encode_flat, batches)] == expected


def test_memory_is_given_back(
    exact: Tokenizer, fast: FastTokenizer, demo_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = iter(range(0, 1 << 50, 1 << 40))
    monkeypatch.setattr(module, "_CHECK_BYTES", 1000)
    monkeypatch.setattr(module, "_resident", lambda: next(resident))
    mine = fast.fresh()
    engine = mine._engine
    assert_same(exact, mine, demo_texts[:3])
    assert mine._engine is not engine


def test_marks_newer_than_a_library_go_to_the_exact_one(small: Path, tmp_path: Path) -> None:
    # In tokenizers' normal form these neither compose nor move; in gigatoken's they do.
    texts = ["a", "\U000113c2\U000113c2", "e\u1abf\u0301", "e\u0eba\u0301", "\U00011935\U00011930", "e\u07fd\u0301"]
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(json.loads(small.read_text()) | {"normalizer": {"type": "NFC"}})
    )
    fast = load_fast_tokenizer(tmp_path, [])
    assert isinstance(fast, FastTokenizer)
    assert_same(load_tokenizer(tmp_path), fast, [*texts, "b"])


def test_unsettled_characters() -> None:
    settled = "English \u2013 “quotes” naïve 日本語 🙂\u200d é e\u0301 한국어 עִברית العربيّة हिन्दी ไทย \U0001d4b3 \x00"
    assert not has_unsettled(settled.encode())
    assert not has_unsettled(b"") and not has_unsettled("é".encode())
    for character in ("\u07fd", "\u0eba", "\u1abf", "\ua82c", "\U000113c2", "\U00010f46", "\u2fe0", "\U0003ffff"):
        for text in (character, settled + character, character + settled):
            assert has_unsettled(text.encode()), hex(ord(character))


def test_marks_since_unicode_5_are_unsettled() -> None:
    for point in range(0x7C0, 0x20000):
        character = chr(point)
        is_mark = unicodedata.combining(character) and unicodedata.ucd_3_2_0.category(character) == "Cn"
        assert not is_mark or has_unsettled(character.encode()), hex(point)


def test_other_ids_are_not_taken(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = FastTokenizer._encode_joined

    def broken(self: FastTokenizer, contents: list[bytes]) -> object:
        return encode(self, [content.replace(b"needle", b"needles") for content in contents])

    monkeypatch.setattr(FastTokenizer, "_encode_joined", broken)
    assert isinstance(load_fast_tokenizer(small, ["hay"]), FastTokenizer)
    assert not capsys.readouterr().err
    assert isinstance(load_fast_tokenizer(small, ["hay", "a needle in it", "hay"]), HuggingFaceTokenizer)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {small}: gigatoken gives other ids") and "'a needle in it'" in line


def test_a_setting_that_gigatoken_passes_over(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(small.read_text())
    digits = {"type": "Digits", "individual_digits": True}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    word = document["added_tokens"][0] | {"content": "word", "id": 300, "single_word": True}
    changes = (
        ({"added_tokens": [*document["added_tokens"], word]}, "gives other ids, for example for 'awordb'"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, split]}}, "does not take"),
        ({"normalizer": {"type": "Lowercase"}}, "does not take this tokenizer (Unsupported normalizer"),
    )
    for change, message in changes:
        (tmp_path / "tokenizer.json").write_text(json.dumps(document | change))
        assert isinstance(load_fast_tokenizer(tmp_path, ["a sample"]), HuggingFaceTokenizer)
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_a_missing_library_is_said_where_it_would_be_faster(
    sp_model: Path, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not isinstance(load_fast_tokenizer(sp_model, []), FastTokenizer)  # a unigram model
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert isinstance(load_fast_tokenizer(sp_model, []), SentencePieceTokenizer)
    assert not capsys.readouterr().err
    assert isinstance(load_fast_tokenizer(small, []), HuggingFaceTokenizer)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: {small}: gigatoken is not installed ({installation('fast')}); "
        "going on with its own library, which is slower"
    )


def test_the_first_difference(small: Path, sp_model: Path) -> None:
    one, other = load_tokenizer(small), load_tokenizer(sp_model)
    assert first_difference(one, one, ["a", "b"]) is None
    assert first_difference(one, other, ["a", "b"]) == "a"
