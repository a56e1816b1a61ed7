"""Corpora out of token ids that other programs made."""

import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deconattn.data import TokenCorpus, read_manifest
from deconattn.data.corpus_tools.convert_ids import convert
from deconattn.data.corpus_tools.decode import decode
from deconattn.data.corpus_tools.verify import verify
from deconattn.data.packing.selection import is_validation
from deconattn.data.tokenizing.tokenizer import load_tokenizer
from deconattn.errors import UserError
from tests.data.corpus_tools.shard_corpora import EOS, TEXTS, encode

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}


@pytest.fixture
def documents(tokenizer_file: Path) -> list[list[int]]:
    """TEXTS as ids, separators included."""
    tokenizer = load_tokenizer(tokenizer_file)
    return [encode(tokenizer, text).tolist() for text in TEXTS]


def write_megatron(
    prefix: Path, sequences: Sequence[Sequence[int]], bounds: Sequence[int] | None = None, dtype: str = "uint16"
) -> Path:
    """As Megatron-LM's IndexedDatasetBuilder does; by default a sequence is a document."""
    arrays = [np.array(sequence, dtype=dtype) for sequence in sequences]
    bounds = range(len(sequences) + 1) if bounds is None else bounds
    offsets = np.cumsum([0, *(array.nbytes for array in arrays)])[:-1]
    index = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, CODES[dtype], len(arrays), len(bounds))
    index += np.array([len(array) for array in arrays], dtype=np.int32).tobytes()
    index += offsets.astype(np.int64).tobytes() + np.array(bounds, dtype=np.int64).tobytes()
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    prefix.with_name(prefix.name + ".bin").write_bytes(b"".join(array.tobytes() for array in arrays))
    return prefix


def write_arrow(path: Path, column: pa.Array, rows: int = 2, name: str = "input_ids", stream: bool = True) -> Path:
    """A file as `datasets` writes it, record batches of `rows` rows."""
    path.parent.mkdir(exist_ok=True)
    table = pa.table({name: column, "attention_mask": pa.nulls(len(column))})
    make: Any = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def converted(source: Path, tokenizer: Path, val_fraction: float = 0.0, **flags: Any) -> Path:
    out = source.with_name("out")
    convert(source, out, str(tokenizer), val_fraction=val_fraction, shard_tokens=40, **flags)
    return out


def ids_of(folder: Path, split: str = "train") -> list[list[int]]:
    return [document.ids.tolist() for document in decode(folder, split, 0)]


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint16"])
@pytest.mark.parametrize("end", ["", ".bin", ".idx"])
def test_megatron(tmp_path: Path, tokenizer_file: Path, documents: list[list[int]], dtype: str, end: str) -> None:
    prefix = write_megatron(tmp_path / "my.data_text_document", documents, dtype=dtype)
    out = converted(prefix.with_name(prefix.name + end), tokenizer_file)
    assert ids_of(out) == documents
    assert [document.text for document in decode(out, "train", 0)] == TEXTS
    assert verify(out, 200).faults == []
    assert len(read_manifest(out).shards) == 2


def test_the_separator_that_is_named(tmp_path: Path, tokenizer_file: Path) -> None:
    prefix = write_megatron(tmp_path / "my", [[5, 6], [7]])
    out = tmp_path / "out"
    result = convert(prefix, out, str(tokenizer_file), val_fraction=0.0, shard_tokens=1000, eos="a")
    letter = load_tokenizer(tokenizer_file).find("a")
    assert ids_of(out) == [[5, 6, letter], [7, letter]]
    assert result.manifest is not None and result.manifest.eos_token_id == letter
    assert verify(out, 0).faults == []


def test_documents_of_several_sequences(tmp_path: Path, tokenizer_file: Path) -> None:
    sentences = [[1, 2], [3], [4, EOS], [5], [6, 7]]
    prefix = write_megatron(tmp_path / "data", sentences, bounds=[0, 3, 3, 5])
    result = convert(prefix, tmp_path / "out", str(tokenizer_file), val_fraction=0, shard_tokens=100)
    assert ids_of(tmp_path / "out") == [[1, 2, 3, 4, EOS], [5, 6, 7, EOS]]
    assert (result.kind, result.added, result.empty) == ("Megatron-LM", 1, 1)


def test_documents_are_split_as_packing_splits(tmp_path: Path, tokenizer_file: Path) -> None:
    documents = [[number, EOS] for number in range(60)]
    out = converted(write_megatron(tmp_path / "data", documents), tokenizer_file, val_fraction=0.2)
    held = [is_validation(number, 0.2) for number in range(60)]
    assert 0 < sum(held) < 60
    assert ids_of(out, "val") == [document for document, val in zip(documents, held, strict=True) if val]
    assert ids_of(out) == [document for document, val in zip(documents, held, strict=True) if not val]


@pytest.mark.parametrize(("count", "fraction", "train", "val"), [(1, 0.5, 1, 0), (2, 1e-9, 1, 1), (3, 0, 3, 0)])
def test_neither_split_stays_empty(
    tmp_path: Path, tokenizer_file: Path, count: int, fraction: float, train: int, val: int
) -> None:
    out = converted(write_megatron(tmp_path / "data", [[1, EOS]] * count), tokenizer_file, val_fraction=fraction)
    manifest = read_manifest(out)
    for split, expected in (("train", train), ("val", val)):
        assert sum(entry.documents for entry in manifest.of_split(split)) == expected


def damage_index(prefix: Path, at: int, value: bytes) -> None:
    path = prefix.with_name(prefix.name + ".idx")
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)


LENGTHS, OFFSETS, BOUNDS = 34, 34 + 4 * 6, 34 + 12 * 6  # of TEXTS' six sequences


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"X", "data.idx: byte 0: no index of Megatron-LM"),
        (9, b"\x02", "data.idx: byte 0: no index of Megatron-LM, version 1"),
        (17, b"\x07", "data.idx: byte 17: the ids are floating point numbers"),
        (17, b"\x63", "data.idx: byte 17: the ids are of type 99"),
        (18, b"\x05", "data.idx: 162 bytes, 150 expected"),
        (18, b"\xff" * 8, "data.idx: 162 bytes, "),
        (LENGTHS + 4, b"\xff" * 4, "data.bin: sequence 1 is -1 ids at byte 8"),
        (LENGTHS + 8, b"\xff\xff\xff\x7f", "data.bin: sequence 2 is 2147483647 ids at byte 28"),
        (OFFSETS + 8, b"\xff" * 7 + b"\x7f", "data.bin: sequence 1 is 10 ids at byte 9223372036854775807"),
        (BOUNDS, b"\x01", "data.idx: the documents are sequences 1 to 6 of 6"),
        (BOUNDS + 48, b"\x09", "data.idx: the documents are sequences 0 to 9 of 6"),
        (BOUNDS + 16, b"\x09", "data.idx: document 2 ends before it begins"),
    ],
)
def test_a_damaged_index(
    tmp_path: Path, tokenizer_file: Path, documents: list[list[int]], at: int, value: bytes, message: str
) -> None:
    prefix = write_megatron(tmp_path / "data", documents)
    damage_index(prefix, at, value)
    with pytest.raises(UserError, match=message):
        converted(prefix, tokenizer_file)
    assert not (tmp_path / "out").exists()


def test_megatron_files_that_are_cut_off_or_missing(
    tmp_path: Path, tokenizer_file: Path, documents: list[list[int]]
) -> None:
    prefix = write_megatron(tmp_path / "data", documents)
    tokens, index = tmp_path / "data.bin", tmp_path / "data.idx"
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-2])
    with pytest.raises(
        UserError, match=f"data.bin: sequence 5 is 14 ids at byte .*, but the file has {len(content) - 2}"
    ):
        converted(prefix, tokenizer_file)
    tokens.unlink()
    with pytest.raises(UserError, match="data.bin: no such file"):
        converted(prefix, tokenizer_file)
    tokens.write_bytes(content)
    whole = index.read_bytes()
    index.write_bytes(whole + bytes(len(documents)))
    with pytest.raises(UserError, match="data.idx: a multimodal dataset"):
        converted(prefix, tokenizer_file)
    index.write_bytes(whole[:20])
    with pytest.raises(UserError, match="data.idx: 20 bytes, no index"):
        converted(prefix, tokenizer_file)
    index.unlink()
    with pytest.raises(UserError, match="data.idx: no such file"):
        converted(prefix, tokenizer_file)


def test_ids_that_the_tokenizer_does_not_have(tmp_path: Path, tokenizer_file: Path) -> None:
    prefix = write_megatron(tmp_path / "data", [[1, EOS], [2, 3, 257, EOS]])
    with pytest.raises(
        UserError, match="data.bin: document 1: token 2: id 257 is not in the tokenizer's vocabulary of 257"
    ):
        converted(prefix, tokenizer_file)
    prefix = write_megatron(tmp_path / "data", [[-1, EOS]], dtype="int32")
    with pytest.raises(UserError, match="data.bin: document 0: token 0: id -1 is not"):
        converted(prefix, tokenizer_file)
    with pytest.raises(UserError, match="no document to write"):
        converted(write_megatron(tmp_path / "data", [[], []]), tokenizer_file)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int32()), pa.list_(pa.int64()), pa.large_list(pa.uint16()), pa.list_(pa.int32(), 4)]
)
@pytest.mark.parametrize("file", ["stream", "file", "parquet"])
def test_columns_of_ids(tmp_path: Path, tokenizer_file: Path, kind: pa.DataType, file: str) -> None:
    rows = [[1, 2, 3, EOS], [4, 5, 6, 7], [8, 9, 10, EOS], [11, 12, 13, 14], [15, 16, 17, 18]]
    column = pa.array(rows, kind)
    if file == "parquet":
        (tmp_path / "rows").mkdir()
        pq.write_table(pa.table({"input_ids": column}), tmp_path / "rows" / "a.parquet", row_group_size=2)
    else:
        write_arrow(tmp_path / "rows" / "a.arrow", column, stream=file == "stream")
    out = converted(tmp_path / "rows", tokenizer_file)
    assert ids_of(out) == [row if row[-1] == EOS else [*row, EOS] for row in rows]


def test_a_dataset_saved_on_disk(tmp_path: Path, tokenizer_file: Path, documents: list[list[int]]) -> None:
    from datasets import Dataset

    Dataset.from_dict({"ids": documents}).save_to_disk(tmp_path / "saved", num_shards=3)
    out = converted(tmp_path / "saved", tokenizer_file, column="ids")
    assert ids_of(out) == documents
    with pytest.raises(UserError, match="has no column 'input_ids' \\(but ids\\); name it with --column"):
        convert(tmp_path / "saved", tmp_path / "o", str(tokenizer_file), val_fraction=0, shard_tokens=9)


def test_a_split_is_chosen_of_several(
    tmp_path: Path, tokenizer_file: Path, tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, ids in (("train", [[1, 2, EOS]] * 3), ("test", [[7, EOS]])):
        (tmp_path / "saved" / split).mkdir(parents=True)
        write_arrow(tmp_path / "saved" / split / "data-0.arrow", pa.array(ids))
        (tmp_path / "saved" / split / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}]}')
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "saved" / "train" / "notes.md").write_text("x")
    words = ["convert", str(tmp_path / "saved"), str(tmp_path / "out"), "--tokenizer", str(tokenizer_file)]
    with pytest.raises(UserError, match="is a data set of several splits; choose one of train, test with --split"):
        tool.main(words)
    assert tool.main([*words, "--split", "train"]) == 0
    printed = capsys.readouterr().out
    assert "3 documents, 9 tokens" in printed and "files left out: 1 .md" in printed
    assert "note: the validation split has 33.33% of the tokens, not 1.00%" in printed


@pytest.mark.parametrize("piece", [1, 3, 7, 50, 1000])
def test_pieces_of_one_sequence(tmp_path: Path, tokenizer_file: Path, documents: list[list[int]], piece: int) -> None:
    together = [token for document in documents for token in document]
    rows = [together[start : start + piece] for start in range(0, len(together), piece)]
    write_arrow(tmp_path / "rows" / "a.arrow", pa.array(rows))
    assert ids_of(converted(tmp_path / "rows", tokenizer_file, pieces=True)) == documents


def test_what_follows_the_last_separator_is_a_document(tmp_path: Path, tokenizer_file: Path) -> None:
    write_arrow(tmp_path / "rows" / "a.arrow", pa.array([[1, EOS, 2], [3], [4, 999]]))
    with pytest.raises(UserError, match="a.arrow: row 0: token 3: id 999"):
        converted(tmp_path / "rows", tokenizer_file, pieces=True)
    write_arrow(tmp_path / "rows" / "a.arrow", pa.array([[1, EOS, 2], [3], [4, 5]]))
    assert ids_of(converted(tmp_path / "rows", tokenizer_file, pieces=True)) == [[1, EOS], [2, 3, 4, 5, EOS]]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1], [2], [3], None, [4]]), "a.arrow: row 3 is null"),
        (pa.array([[1], [2], [3], [4, None], [5]]), "a.arrow: row 3: id 1 is null"),
        (pa.array([[1], [2], [3], [4, 600], [5]]), "a.arrow: row 3: token 1: id 600 is not"),
        (pa.array([[0.5]]), "a.arrow: column 'input_ids' is list<.*double>, not lists of ids"),
        (pa.array(["text"]), "a.arrow: column 'input_ids' is string, not lists of ids"),
    ],
)
def test_rows_that_are_no_ids(tmp_path: Path, tokenizer_file: Path, column: pa.Array, message: str) -> None:
    write_arrow(tmp_path / "rows" / "a.arrow", column)
    with pytest.raises(UserError, match=message):
        converted(tmp_path / "rows", tokenizer_file)
    assert not (tmp_path / "out").exists()


def test_damaged_datasets(tmp_path: Path, tokenizer_file: Path) -> None:
    path = write_arrow(tmp_path / "rows" / "a.arrow", pa.array([[number] * 100 for number in range(9)]))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UserError, match=r"a.arrow: row [246]: cannot be read \("):
        converted(tmp_path / "rows", tokenizer_file)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"a.arrow: row 0: cannot be read \("):
        converted(tmp_path / "rows", tokenizer_file)
    path.rename(tmp_path / "rows" / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: row 0: cannot be read \("):
        converted(tmp_path / "rows", tokenizer_file)
    (tmp_path / "rows" / "a.parquet").rename(tmp_path / "rows" / "a.jsonl")
    with pytest.raises(UserError, match="a.jsonl: not a dataset of ids"):
        converted(tmp_path / "rows", tokenizer_file)


def test_any_changed_byte_of_a_dataset_gives_one_line_or_a_corpus(tmp_path: Path, tokenizer_file: Path) -> None:
    rows: list[npt.NDArray[np.int32]] = [np.arange(number, number + 5, dtype=np.int32) for number in range(6)]
    path = write_arrow(tmp_path / "rows" / "a.arrow", pa.array([row.tolist() for row in rows], pa.list_(pa.int32())))
    good = path.read_bytes()
    random = np.random.default_rng(1)
    for place in range(0, len(good), 29):
        content = bytearray(good)
        content[place] ^= int(random.integers(1, 256))
        path.write_bytes(content)
        out = tmp_path / f"out-{place}"
        with suppress(UserError):
            convert(tmp_path / "rows", out, str(tokenizer_file), val_fraction=0, shard_tokens=40)
        assert not out.exists() or verify(out, 0).faults == []


def test_the_command_line(
    tool: ModuleType, tmp_path: Path, tokenizer_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = write_megatron(tmp_path / "data", [[1, 2], [], [3, EOS]])
    words = ["convert", str(prefix), str(tmp_path / "out"), "--tokenizer", str(tokenizer_file), "--val-fraction", "0"]
    assert tool.main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"converted {tmp_path / 'out'} from Megatron-LM: 2 documents, 5 tokens, 1 shards",
        "  separators added: 1",
        "  empty documents left out: 1",
    ]
    assert TokenCorpus(tmp_path / "out").read(0, 5).tolist() == [1, 2, EOS, 3, EOS]
    for flags, message in (
        ([], "already exists"),
        (["--pieces"], "--pieces: a Megatron-LM dataset knows"),
        (["--val-fraction", "1"], "--val-fraction 1.0"),
    ):
        with pytest.raises(UserError, match=message):
            tool.main([*words, *flags])
    with pytest.raises(UserError, match="absent: no such file or folder"):
        tool.main(["convert", str(tmp_path / "absent"), str(tmp_path / "o"), "--tokenizer", str(tokenizer_file)])
