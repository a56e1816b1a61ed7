"""Info, merge, split and decode."""

import json
import os
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from deconattn.data import TokenCorpus, read_manifest
from deconattn.data.corpus_tools.decode import decode
from deconattn.data.corpus_tools.info import corpus_info
from deconattn.data.corpus_tools.rewrite import merge, parse_range, recut
from deconattn.data.corpus_tools.verify import verify
from deconattn.errors import UserError
from tests.data.corpus_tools.shard_corpora import (
    EOS,
    TEXTS,
    VALIDATION,
    change_entry,
    contents,
    make_corpus,
    positions,
    put,
    write_tokenizer,
)


@pytest.fixture
def corpus(tmp_path: Path, tokenizer_file: Path) -> Path:
    return make_corpus(tmp_path / "corpus", tokenizer_file)


def texts_of(folder: Path, split: str = "train") -> list[str]:
    return [document.text for document in decode(folder, split, 0)]


def test_info(corpus: Path) -> None:
    info = corpus_info(corpus)
    lengths = [len(text.encode()) + 1 for text in TEXTS]
    train = info.splits["train"]
    assert (train.documents, train.tokens, train.shards) == (len(TEXTS), sum(lengths), 2)
    assert (train.shortest, train.longest) == (min(lengths), max(lengths))
    assert train.median == np.median(lengths)
    assert train.mean == pytest.approx(np.mean(lengths))
    assert train.bytes == sum((corpus / f"train-0000{n}.arrow").stat().st_size for n in range(2))
    for bin in train.histogram:
        inside = [length for length in lengths if bin.at_least <= length <= bin.at_most]
        assert (bin.documents, bin.tokens) == (len(inside), sum(inside))
    assert sum(bin.documents for bin in train.histogram) == len(TEXTS)
    assert info.tokenizer.separator == "<|endoftext|>"
    assert info.tokenizer.eos_token_id == EOS
    assert info.tokenizer.matches_manifest
    assert info.shards == read_manifest(corpus).shards


def test_info_as_it_is_printed(corpus: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["info", str(corpus), "--json"]) == 0
    [printed] = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(corpus_info(corpus).as_dict()))
    assert tool.main(["info", str(corpus)]) == 0
    text = capsys.readouterr().out
    assert f"train: {len(TEXTS)} documents" in text
    for entry in read_manifest(corpus).shards:
        assert entry.sha256 in text
    write_tokenizer(corpus / "tokenizer.json", separator="</s>")
    tool.main(["info", str(corpus)])
    assert "(the manifest has another)" in capsys.readouterr().out


def test_merge(corpus: Path, tmp_path: Path, tokenizer_file: Path) -> None:
    other = make_corpus(tmp_path / "other", tokenizer_file, train=["more"], val=["yet more"], source="elsewhere")
    manifest = merge(tmp_path / "all", [corpus, other])
    assert texts_of(tmp_path / "all") == [*TEXTS, "more"]
    assert texts_of(tmp_path / "all", "val") == [*VALIDATION, "yet more"]
    assert manifest == read_manifest(tmp_path / "all")
    assert manifest.source == "test, elsewhere"
    assert verify(tmp_path / "all", 200).faults == []
    assert (tmp_path / "all" / "train-00000.arrow").samefile(corpus / "train-00000.arrow")


def test_merge_copies_where_there_are_no_links(
    corpus: Path, tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    other = make_corpus(tmp_path / "other", tokenizer_file)
    merge(tmp_path / "all", [corpus, other])
    assert not (tmp_path / "all" / "train-00000.arrow").samefile(corpus / "train-00000.arrow")
    assert verify(tmp_path / "all", 200).faults == []
    content = bytearray((other / "val-00000.arrow").read_bytes())
    content[-20] ^= 1
    (other / "val-00000.arrow").write_bytes(content)
    with pytest.raises(UserError, match=f"{other}/val-00000.arrow does not match its checksum"):
        merge(tmp_path / "again", [corpus, other])
    assert not (tmp_path / "again").exists()


def test_what_cannot_be_merged(corpus: Path, tmp_path: Path) -> None:
    others = write_tokenizer(tmp_path / "other.json", separator="</s>")
    other = make_corpus(tmp_path / "other", others)
    out = tmp_path / "all"
    with pytest.raises(UserError, match=f"{other} and {corpus} have different tokenizers"):
        merge(out, [corpus, other])
    with pytest.raises(UserError, match="nothing to merge; name two"):
        merge(out, [corpus])
    with pytest.raises(UserError, match="is given twice"):
        merge(out, [corpus, corpus / ".." / "corpus"])
    copy = shutil.copytree(corpus, tmp_path / "copy")
    (copy / "train-00001.arrow").unlink()
    with pytest.raises(UserError, match=f"{copy}/train-00001.arrow is missing"):
        merge(out, [corpus, copy])
    with pytest.raises(UserError, match="already exists; name a new folder"):
        merge(other, [corpus, shutil.copytree(corpus, tmp_path / "second")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "copy", "corpus", "other", "other.json", "second", "tokenizer.json",
    ]  # fmt: skip


@pytest.mark.parametrize("shard_tokens", [1, 15, 40, 1000])
def test_split_is_what_packing_would_have_given(
    corpus: Path, tmp_path: Path, tokenizer_file: Path, shard_tokens: int
) -> None:
    recut(corpus, tmp_path / "again", shard_tokens)
    expected = make_corpus(tmp_path / "expected", tokenizer_file, shard_tokens=shard_tokens)
    assert contents(tmp_path / "again") == contents(expected)


@pytest.mark.parametrize(
    ("documents", "tokens", "expected"),
    [
        ("2:4", None, TEXTS[2:4]),
        ("4:", None, TEXTS[4:]),
        (":1", None, TEXTS[:1]),
        ("0:99", None, TEXTS),
        (":", 14, TEXTS[:2]),  # of 4 and 10 tokens
        (":", 15, TEXTS[:3]),
        ("1:3", 1, TEXTS[1:2]),
        ("4:", 22, TEXTS[4:]),  # the first has 21
        (":", 10_000, TEXTS),
    ],
)
def test_parts(corpus: Path, tmp_path: Path, documents: str, tokens: int | None, expected: list[str]) -> None:
    recut(corpus, tmp_path / "part", 1000, parse_range(documents), tokens)
    assert texts_of(tmp_path / "part") == expected
    assert texts_of(tmp_path / "part", "val") == VALIDATION


def test_parts_across_record_batches(tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deconattn.data.shards.TOKENS_PER_RECORD_BATCH", 7)
    texts = [f"{number:02}" for number in range(40)]
    corpus = make_corpus(tmp_path / "corpus", tokenizer_file, train=texts, shard_tokens=30)
    for first, count in [(0, 40), (1, 38), (9, 2), (10, 10), (13, 9), (39, 1)]:
        out = tmp_path / f"{first}-{count}"
        recut(corpus, out, 1000, (first, first + count))
        assert texts_of(out) == texts[first : first + count]
        recut(corpus, out / "by-tokens", 1000, (first, None), 3 * count)
        assert texts_of(out / "by-tokens") == texts[first : first + count]


def test_what_cannot_be_split(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for wrong in ("3", "a:b", "-1:2", ""):
        with pytest.raises(UserError, match="write A:B"):
            parse_range(wrong)
    for wrong in ("6:", "3:3", "4:2"):
        with pytest.raises(UserError, match="has training documents 0 to 5"):
            recut(corpus, out, 1000, parse_range(wrong))
    with pytest.raises(UserError, match="--tokens 0"):
        recut(corpus, out, 1000, tokens=0)
    with pytest.raises(UserError, match="--shard-tokens 0"):
        recut(corpus, out, 0)
    with pytest.raises(UserError, match="already exists"):
        recut(corpus, corpus, 1000)
    change_entry(corpus, "train-00000.arrow", documents=5)
    with pytest.raises(UserError, match="holds 4 documents, 5 expected; see python .*tools/shards.py verify"):
        recut(corpus, out, 1000)
    (corpus / "tokenizer.json").unlink()
    change_entry(corpus, "train-00000.arrow", documents=4)
    with pytest.raises(UserError, match="has lost its tokenizer.json"):
        recut(corpus, out, 1000)
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def test_damage_that_opening_does_not_see(corpus: Path, tmp_path: Path) -> None:
    name = "train-00000.arrow"
    put(corpus, name, positions(corpus / name, 0)["bounds"] + 4, (30).to_bytes(4, "little"))
    with pytest.raises(UserError, match=f"{corpus / name}: document 1 ends before it begins"):
        recut(corpus, tmp_path / "out", 1000)
    (corpus / name).write_bytes(b"")
    for command in (corpus_info, lambda folder: list(decode(folder, "train", 0))):
        with pytest.raises(UserError, match=f"{corpus / name} is empty"):
            command(corpus)


def test_a_terminal_sees_progress(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(corpus, 0)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "300")
    verify(corpus, 0)
    assert f"verifying {corpus}" in capsys.readouterr().err
    recut(corpus, tmp_path / "out", 1000)
    tokens = sum(entry.tokens for entry in read_manifest(corpus).shards)
    assert f"{tokens} of {tokens} tokens" in capsys.readouterr().err


def test_decode(corpus: Path) -> None:
    for start in range(len(TEXTS)):
        documents = list(decode(corpus, "train", start))
        assert [document.number for document in documents] == list(range(start, len(TEXTS)))
        assert [document.text for document in documents] == TEXTS[start:]
    tokens = TokenCorpus(corpus)
    together = np.concatenate([document.ids for document in decode(corpus, "train", 0)])
    assert together.tolist() == tokens.read(0, tokens.num_tokens).tolist()


def test_decode_as_it_is_printed(corpus: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    tool.main(["decode", str(corpus), "--document", "1", "--count", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["--- train document 1, 10 tokens", TEXTS[1], "--- train document 2, 22 tokens", TEXTS[2]]
    tool.main(["decode", str(corpus), "--split", "val", "--ids"])
    _, ids, text = capsys.readouterr().out.splitlines()
    assert text == VALIDATION[0]
    assert [int(number) for number in ids.split()] == next(decode(corpus, "val", 0)).ids.tolist()
    tool.main(["decode", str(corpus), "--grep", "o"])
    assert capsys.readouterr().out.splitlines() == [
        "0: one", "1: two words", "4: four lines of text", "5: the end of it",
    ]  # fmt: skip
    tool.main(["decode", str(corpus), "--grep", "o", "--document", "1", "--count", "1"])
    assert capsys.readouterr().out == "1: two words\n"


def test_an_excerpt_is_short(tmp_path: Path, tokenizer_file: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", tokenizer_file, train=[f"{'a' * 500} needle\n{'b' * 500}"], val=[])
    excerpt = next(decode(corpus, "train", 0)).excerpt("needle")
    assert excerpt == f"...{'a' * 59} needle {'b' * 59}..."


def test_what_cannot_be_decoded(corpus: Path, tmp_path: Path, tokenizer_file: Path) -> None:
    with pytest.raises(UserError, match="has train documents 0 to 5"):
        next(decode(corpus, "train", 6))
    alone = make_corpus(tmp_path / "alone", tokenizer_file, val=[])
    with pytest.raises(UserError, match="has no val split; give --split train"):
        next(decode(alone, "val", 0))
    values = positions(corpus / "val-00000.arrow", 0)["values"]
    put(corpus, "val-00000.arrow", values + 2 * len(VALIDATION[0]) + 4, b"\xff\xff")
    with pytest.raises(UserError, match="document 1: id 65535 is beyond the vocabulary of 257"):
        list(decode(corpus, "val", 0))


def test_wrong_command_lines(corpus: Path, tmp_path: Path, tool: ModuleType) -> None:
    for words, message in (
        (["info"], "no corpus; name packed folders"),
        (["verify"], "no corpus; name packed folders"),
        (["verify", str(corpus), "--sample", "-1"], "--sample -1"),
        (["decode", str(corpus), "--count", "0"], "--count 0"),
        (["decode", str(corpus), "--split", "test"], "--split"),
        (["info", str(tmp_path / "absent")], "no such folder"),
        (["shuffle"], "shuffle"),
        ([], "info"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            tool.main(words)
        assert "\n" not in str(caught.value)


def test_commands_that_write_say_what(
    corpus: Path, tmp_path: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = sum(entry.tokens for entry in read_manifest(corpus).shards)
    words = ["split", str(corpus), str(tmp_path / "one"), "--shard-tokens", "1000"]
    assert tool.main(words) == 0
    assert capsys.readouterr().out == f"split {tmp_path / 'one'}: 8 documents, {tokens} tokens, 2 shards\n"
    assert tool.main(["merge", str(tmp_path / "all"), str(corpus), str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out == f"merged {tmp_path / 'all'}: 16 documents, {2 * tokens} tokens, 5 shards\n"
