"""Every kind of damage is found, and named by its place."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from deconattn.data.corpus_tools.examine import examine_shard
from deconattn.data.corpus_tools.verify import verify
from deconattn.data.manifest import read_manifest, write_manifest
from deconattn.data.shards import ShardSchema, ShardWriter
from tests.data.corpus_tools.shard_corpora import (
    EOS,
    TEXTS,
    change_entry,
    encode,
    entry_of,
    make_corpus,
    positions,
    put,
    rewrite,
    write_tokenizer,
)

SHARD = "train-00001.arrow"  # documents 4 and 5 of train


@pytest.fixture
def corpus(tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards of a few documents; of SHARD's two record batches each has one."""
    monkeypatch.setattr("deconattn.data.shards.TOKENS_PER_RECORD_BATCH", 25)
    return make_corpus(tmp_path / "corpus", tokenizer_file)


def test_a_sound_corpus(corpus: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = verify(corpus, 200)
    assert (verdict.faults, verdict.notes, verdict.documents, verdict.sampled) == ([], [], 8, 8)
    assert verdict.tokens == sum(entry.tokens for entry in read_manifest(corpus).shards)
    assert verify(corpus, 3).sampled == 3
    assert tool.main(["verify", str(corpus)]) == 0
    assert "sound, 8 documents (8 of them decoded and encoded again)" in capsys.readouterr().out


def test_the_corpus_has_the_shape_that_the_places_are_of(corpus: Path) -> None:
    assert entry_of(corpus, SHARD).documents == 2
    batches = pa.ipc.open_file(str(corpus / SHARD))
    assert [len(batches.get_batch(b)) for b in range(batches.num_record_batches)] == [1, 1]


def test_a_flipped_value_breaks_the_checksum(corpus: Path) -> None:
    path = corpus / SHARD
    content = bytearray(path.read_bytes())
    content[positions(path, 1)["values"]] ^= 1
    path.write_bytes(content)
    [fault] = verify(corpus, 0).faults
    digest = hashlib.sha256(content).hexdigest()
    assert fault == f"{path}: SHA-256 {digest}, {entry_of(corpus, SHARD).sha256} in the manifest"


def test_an_id_beyond_the_vocabulary(corpus: Path) -> None:
    put(corpus, SHARD, positions(corpus / SHARD, 1)["values"] + 4, (300).to_bytes(2, "little"))
    faults = verify(corpus, 200).faults
    place = f"{corpus / SHARD}, record batch 1 (byte "
    assert faults[0].startswith(place)
    assert faults[0].endswith("document 5: token 2: id 300 is beyond the vocabulary of 257")
    assert faults[1:] == [f"{corpus / SHARD}: max_token_id 300, 256 in the manifest"]


def test_a_missing_separator(corpus: Path) -> None:
    last = positions(corpus / SHARD, 1)["values"] + 2 * len(TEXTS[5])
    put(corpus, SHARD, last, (5).to_bytes(2, "little"))
    [fault] = verify(corpus, 0).faults
    assert fault.startswith(f"{corpus / SHARD}, record batch 1 (byte ")
    assert fault.endswith("document 5: ends with id 5, not the separator 256")


@pytest.mark.parametrize(
    ("which", "value", "messages"),
    [
        (0, 3, [": its first document begins at token 3, not 0"]),
        (
            1,
            99,
            [
                ": its last document ends at token 99, but it holds 14",
                ", document 5: spans tokens 0 to 99 of 14",
            ],
        ),
        (
            1,
            -1,
            [
                ": its last document ends at token -1, but it holds 14",
                ", document 5: spans tokens 0 to -1 of 14",
            ],
        ),
        (1, 0, [": its last document ends at token 0, but it holds 14", ", document 5: is empty"]),
    ],
)
def test_offsets(corpus: Path, which: int, value: int, messages: list[str]) -> None:
    place = positions(corpus / SHARD, 1)["bounds"] + 4 * which
    put(corpus, SHARD, place, value.to_bytes(4, "little", signed=True))
    faults = verify(corpus, 200).faults
    assert all(fault.startswith(f"{corpus / SHARD}, record batch 1 (byte ") for fault in faults)
    assert [fault.split(")", 1)[1] for fault in faults] == messages


def test_offsets_out_of_order_name_their_document(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = make_corpus(tmp_path / "corpus", tokenizer_file, train=["ab"] * 50, shard_tokens=1000)
    name = "train-00000.arrow"
    place = positions(folder / name, 0)["bounds"]
    put(folder, name, place + 4 * 20, (70).to_bytes(4, "little"))
    ends = [fault.split(")", 1)[1] for fault in verify(folder, 200).faults]
    assert ends == [
        ", document 20: spans tokens 70 to 63 of 150",
        ", document 19: ends with id 64, not the separator 256",
    ]


def test_many_faults_of_a_kind_are_counted(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = make_corpus(tmp_path / "corpus", tokenizer_file, train=["ab"] * 50, shard_tokens=1000)
    manifest = read_manifest(folder)
    write_manifest(folder, dataclasses.replace(manifest, eos_token_id=7))
    lines = [line for line in verify(folder, 0).faults if "record batch" in line and "train" in line]
    assert len(lines) == 11
    assert lines[0].endswith("document 0: ends with id 256, not the separator 7")
    assert lines[10].endswith(": 40 more such documents, the last is document 49")


def test_a_damaged_footer_is_told_and_the_record_batches_are_still_looked_at(corpus: Path) -> None:
    places = positions(corpus / SHARD, 1)
    put(corpus, SHARD, places["footer"], b"\xff" * 40)
    put(corpus, SHARD, places["values"] + 4, (300).to_bytes(2, "little"))
    footer, foreign = verify(corpus, 200).faults
    assert footer.startswith(f"{corpus / SHARD}: the footer is damaged (")
    assert foreign.endswith("document 5: token 2: id 300 is beyond the vocabulary of 257")


def test_a_damaged_record_batch_is_named_and_the_others_are_looked_at(corpus: Path) -> None:
    path = corpus / SHARD
    with pa.memory_map(str(path)) as file:
        reader = pa.BufferReader(file.read_buffer())
    reader.seek(8)
    pa.ipc.read_message(reader)
    first = reader.tell()
    pa.ipc.read_message(reader)
    second = reader.tell()
    put(corpus, SHARD, first + 8, b"\xff" * 16)
    put(corpus, SHARD, positions(path, 1)["values"], (300).to_bytes(2, "little"))
    broken, foreign = verify(corpus, 0).faults
    assert broken.startswith(f"{path}, record batch 0 (byte {first}): cannot be read (")
    assert foreign.startswith(f"{path}, record batch 1 (byte {second}), its document 0: token 0: id 300")


def test_truncation(corpus: Path) -> None:
    path = corpus / SHARD
    places, size = positions(path, 1), path.stat().st_size
    os.truncate(path, places["values"] + 8)
    faults = verify(corpus, 200).faults
    assert faults[0] == f"{path}: {places['values'] + 8} bytes, {size} in the manifest"
    assert faults[1].startswith(f"{path}: the footer is damaged")
    assert faults[2].startswith(f"{path}, record batch 1 (byte ") and "cannot be read" in faults[2]
    assert len(faults) == 3
    os.truncate(path, 0)
    assert verify(corpus, 200).faults == [f"{path}: 0 bytes, {size} in the manifest"]


def test_files_that_are_missing_or_too_many(corpus: Path) -> None:
    (corpus / SHARD).rename(corpus / "train-00009.arrow")
    assert verify(corpus, 200).faults == [
        f"{corpus}: train-00009.arrow is not in the manifest",
        f"{corpus / SHARD}: cannot be read (No such file or directory)",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": 4}, "documents 2, 4 in the manifest"),
        ({"tokens": 7}, "tokens 35, 7 in the manifest"),
        ({"max_token_id": 7}, "max_token_id 256, 7 in the manifest"),
        ({"bytes": 7}, "bytes, 7 in the manifest"),
    ],
)
def test_counts_of_the_manifest(corpus: Path, changes: dict[str, int], message: str) -> None:
    change_entry(corpus, SHARD, **changes)
    [fault] = verify(corpus, 200).faults
    assert fault.startswith(f"{corpus / SHARD}: ") and fault.endswith(message)


def test_nonsense_in_the_manifest(corpus: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(corpus)
    write_manifest(corpus, dataclasses.replace(manifest, dtype="uint32"))
    assert f"{corpus}: the manifest's dtype is uint32; a vocabulary of 257 has uint16" in verify(corpus, 200).faults
    for shards, fault in [
        ((), "it lists no shard"),
        ((*manifest.shards, manifest.shards[0]), "it lists train-00000.arrow twice"),
        ((dataclasses.replace(manifest.shards[0], documents=-5),), "documents of train-00000.arrow is -5"),
    ]:
        write_manifest(corpus, dataclasses.replace(manifest, shards=shards))
        [line] = verify(corpus, 200).faults
        assert line.startswith(f"{corpus / 'manifest.json'} is damaged ({fault})")
    (corpus / "manifest.json").write_text("{")
    assert tool.main(["verify", str(corpus), str(corpus.parent / "absent")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{corpus / 'manifest.json'} is damaged")
    assert lines[2].startswith(f"{corpus.parent / 'absent'}: no such folder")


def test_another_tokenizer(corpus: Path, tmp_path: Path) -> None:
    path = write_tokenizer(corpus / "tokenizer.json", separator="</s>")
    [fault] = verify(corpus, 200).faults
    assert fault.startswith(f"{path}: fingerprint ")
    path.unlink()
    [fault] = verify(corpus, 200).faults
    assert fault.startswith(f"{corpus} holds no tokenizer.json")
    path.write_text("{}")
    [fault] = verify(corpus, 200).faults
    assert fault.startswith(f"{path} is not a tokenizer.json")


def test_a_shard_of_another_corpus(corpus: Path) -> None:
    schema = ShardSchema("other", 300, EOS, "elsewhere")
    with ShardWriter(corpus / SHARD, "val", schema) as writer:
        writer.append(np.array([299, EOS]))
    assert writer.entry is not None
    written = writer.entry
    change_entry(corpus, SHARD, documents=1, tokens=2, bytes=written.bytes, max_token_id=299, sha256=written.sha256)
    faults = verify(corpus, 0).faults
    fingerprint = read_manifest(corpus).tokenizer_fingerprint
    assert f"{corpus / SHARD}: its deconattn.split is val, the manifest's train" in faults
    assert f"{corpus / SHARD}: its deconattn.vocab_size is 300, the manifest's 257" in faults
    assert f"{corpus / SHARD}: its deconattn.tokenizer_fingerprint is other, the manifest's {fingerprint}" in faults


def test_a_file_of_something_else(corpus: Path) -> None:
    table = pa.table({"text": ["no tokens"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    rewrite(corpus, SHARD, sink.getvalue().to_pybytes())
    assert verify(corpus, 200).faults == [
        f"{corpus / SHARD}: is not a shard (its columns are text: string, not tokens: list<item: uint16>)"
    ]
    rewrite(corpus, SHARD, b"not Arrow at all, but long enough")
    faults = verify(corpus, 200).faults
    assert faults[0] == f"{corpus / SHARD}: does not begin as an Arrow file"
    assert faults[-1] == f"{corpus / SHARD}: holds no Arrow schema"


def replace_document(folder: Path, ids: list[int]) -> None:
    """Make the only document of a corpus these ids, and the manifest agree."""
    manifest = read_manifest(folder)
    schema = ShardSchema(manifest.tokenizer_fingerprint, manifest.vocab_size, EOS, "test", special_tokens="token")
    with ShardWriter(folder / "train-00000.arrow", "train", schema) as writer:
        writer.append(np.array(ids))
    assert writer.entry is not None
    write_manifest(folder, dataclasses.replace(manifest, shards=(writer.entry,)))


def test_the_round_trip_finds_bytes_that_are_not_text(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = make_corpus(tmp_path / "corpus", tokenizer_file, train=["日本"], val=[])
    assert verify(folder, 1).faults == []
    ids = pa.ipc.open_file(str(folder / "train-00000.arrow")).read_all().column(0)[0].as_py()
    replace_document(folder, [*ids[:4], EOS])  # the second character's first byte only
    [fault] = verify(folder, 1).faults
    place = f"{folder / 'train-00000.arrow'}, record batch 0 (byte "
    assert fault.startswith(place)
    assert "document 0: from token 3 on its ids are not those that the tokenizer gives its text" in fault
    assert fault.endswith("; its text has bytes that are not UTF-8 (\ufffd)")
    assert verify(folder, 0).faults == []


def test_the_replacement_character_itself_is_text(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = make_corpus(tmp_path / "corpus", tokenizer_file, train=["lost: \ufffd"], val=[])
    assert verify(folder, 1).faults == []


def test_text_that_the_tokenizer_normalises(tmp_path: Path) -> None:
    lower = write_tokenizer(tmp_path / "lower.json", normalizer="lowercase")
    folder = make_corpus(tmp_path / "corpus", lower, train=["UPPER and lower"], val=[])
    assert verify(folder, 1).faults == []
    # Ids that the tokenizer never gives, but whose text it turns into one that stays.
    plain = write_tokenizer(tmp_path / "plain.json")
    upper = make_corpus(tmp_path / "upper", plain, train=["UPPER"], val=[])
    ids = pa.ipc.open_file(str(upper / "train-00000.arrow")).read_all().column(0)[0].as_py()
    replace_document(folder, ids)
    assert verify(folder, 1).faults == []


@pytest.mark.parametrize("kind", ["hf_tokenizer", "sp_model"])
def test_awkward_texts_come_back(kind: str, tmp_path: Path, texts: list[str], request: pytest.FixtureRequest) -> None:
    folder = make_corpus(tmp_path / "corpus", request.getfixturevalue(kind), train=texts, shard_tokens=10_000)
    verdict = verify(folder, 200)
    assert verdict.faults == []
    assert verdict.sampled == len(texts) + 2


def test_separators_within_documents_are_noted(tmp_path: Path, tokenizer_file: Path) -> None:
    folder = make_corpus(tmp_path / "corpus", tokenizer_file, train=["one <|endoftext|> two", "three"])
    verdict = verify(folder, 200)
    assert verdict.faults == []
    assert verdict.notes == [f"{folder}: train documents hold 1 separators before their last token"]


def test_any_changed_byte_is_found(corpus: Path) -> None:
    """Whatever it is, nothing but faults comes of it, even where the checksum agrees."""
    path, entry, manifest = corpus / SHARD, entry_of(corpus, SHARD), read_manifest(corpus)
    good = path.read_bytes()

    def faults(content: bytes, sha256: str) -> list[str]:
        path.write_bytes(content)
        told = dataclasses.replace(entry, sha256=sha256, bytes=len(content))
        return examine_shard(corpus, told, manifest, 4, lambda *_: iter(()), lambda _: None).faults

    assert faults(good, entry.sha256) == []
    random = np.random.default_rng(0)
    for place in range(0, len(good), 7):
        content = bytearray(good)
        content[place] ^= int(random.integers(1, 256))
        assert faults(bytes(content), entry.sha256)
        assert all(
            line.startswith(str(path)) and "\n" not in line
            for line in faults(bytes(content), hashlib.sha256(content).hexdigest())
        )
    for length in range(0, len(good), 150):
        cut = good[:length]
        assert faults(cut, hashlib.sha256(cut).hexdigest()) or length == 0


def test_the_encoding_of_the_fixture(tokenizer_file: Path) -> None:
    from deconattn.data.tokenizing.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_file)
    assert tokenizer.eos_token_id == EOS
    assert tokenizer.vocab_size == EOS + 1
    assert len(encode(tokenizer, "日")) == 4
    assert json.loads(tokenizer_file.read_text())["normalizer"] is None
