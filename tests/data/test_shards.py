import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from deconattn.data import TokenCorpus, read_manifest, verify_checksums
from deconattn.data.shards import ShardSchema, ShardWriter
from deconattn.errors import UserError

PackedFolder = Callable[..., Path]
SHARDS = [[[1, 2, 3, 0], [4, 0]], [[5, 6, 0]]]


def test_a_shard_is_a_plain_arrow_file(packed_folder: PackedFolder) -> None:
    folder = packed_folder(SHARDS)
    table = pa.ipc.open_file(str(folder / "train-00000.arrow")).read_all()
    assert table.column("tokens").to_pylist() == SHARDS[0]
    assert table.schema.field("tokens").type == pa.list_(pa.uint16())
    assert table.schema.metadata == {
        b"deconattn.format_version": b"1",
        b"deconattn.tokenizer_fingerprint": b"f",
        b"deconattn.vocab_size": b"1000",
        b"deconattn.eos_token_id": b"0",
        b"deconattn.source": b"test",
        b"deconattn.split": b"train",
    }


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_the_type_is_the_narrowest(packed_folder: PackedFolder, vocab_size: int, dtype: str) -> None:
    folder = packed_folder([[[vocab_size - 1, 0]]], vocab_size=vocab_size)
    assert read_manifest(folder).dtype == dtype
    assert read_manifest(folder).shards[0].max_token_id == vocab_size - 1
    assert TokenCorpus(folder).read(0, 2).tolist() == [vocab_size - 1, 0]


def test_record_batches_are_bounded(packed_folder: PackedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deconattn.data.shards.TOKENS_PER_RECORD_BATCH", 5)
    documents = [[1, 0], [1, 2, 0], [1, 0], [1, 2, 3, 4, 5, 6, 0], [1, 0]]
    folder = packed_folder([documents])
    reader = pa.ipc.open_file(str(folder / "train-00000.arrow"))
    lengths = [len(reader.get_batch(i).column(0).values) for i in range(reader.num_record_batches)]
    assert lengths == [5, 2, 7, 2]
    assert TokenCorpus(folder).read(0, 16).tolist() == [i for document in documents for i in document]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    schema = ShardSchema("f", 10, 0, "test")
    with pytest.raises(ValueError, match="token id 10"), ShardWriter(tmp_path / "a.arrow", "train", schema) as writer:
        writer.append(np.array([1, 2]))
        writer.append(np.array([10]))
    assert not list(tmp_path.iterdir())


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a packed corpus \(pack with python .*tools/pack.py\)"):
        TokenCorpus(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        TokenCorpus(tmp_path / "absent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2, newer"),
        ({"vocab_size": "many"}, "damaged"),
        ({"surprise": 1}, "damaged"),
        ({"shards": [{"name": "x"}]}, "damaged"),
        ({"shards": None}, "damaged"),
    ],
)
def test_damaged_manifest(packed_folder: PackedFolder, change: dict[str, object], message: str) -> None:
    path = packed_folder(SHARDS) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        TokenCorpus(path.parent)
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match=f"{path} is damaged"):
        TokenCorpus(path.parent)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: None, "is missing"),
        (lambda content: b"", "is empty"),
        (lambda content: content[:-10], "is truncated"),
        (lambda content: content + b"x", "is too long"),
    ],
)
def test_damaged_shard_is_named_on_opening(
    packed_folder: PackedFolder, damage: Callable[[bytes], bytes | None], message: str
) -> None:
    folder = packed_folder(SHARDS)
    path = folder / "train-00001.arrow"
    content = damage(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} {message}.*pack the corpus again"):
        TokenCorpus(folder)


def test_what_is_no_arrow_file_is_named_on_reading(packed_folder: PackedFolder) -> None:
    folder = packed_folder(SHARDS)
    path = folder / "train-00001.arrow"
    path.write_bytes(b"x" * path.stat().st_size)
    corpus = TokenCorpus(folder)
    with pytest.raises(UserError, match=f"{path} is not an Arrow file.*pack the corpus again"):
        corpus.read(0, 7)


def test_damaged_footer_is_named_on_reading(packed_folder: PackedFolder) -> None:
    folder = packed_folder(SHARDS)
    path = folder / "train-00001.arrow"
    content = bytearray(path.read_bytes())
    content[-40:-10] = b"\xff" * 30
    path.write_bytes(content)
    corpus = TokenCorpus(folder)
    assert corpus.read(0, 6).tolist() == [1, 2, 3, 0, 4, 0]  # the other shard
    with pytest.raises(UserError, match=f"{path} is damaged"):
        corpus.read(0, 7)


def test_checksums(packed_folder: PackedFolder) -> None:
    folder = packed_folder(SHARDS)
    assert verify_checksums(folder) == read_manifest(folder)
    path = folder / "train-00000.arrow"
    content = bytearray(path.read_bytes())
    where = content.index(np.array([1, 2, 3, 0], dtype=np.uint16).tobytes())
    content[where] = 9
    path.write_bytes(content)
    assert TokenCorpus(folder).read(0, 1).tolist() == [9]  # sizes agree
    with pytest.raises(UserError, match=f"{path} does not match its checksum"):
        verify_checksums(folder)
