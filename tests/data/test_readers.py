import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deconattn.data.readers import DocumentReader, Tally, find_files
from deconattn.errors import UserError


def write(path: Path, texts: list[str]) -> Path:
    """Write documents in the format that the name calls for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)).encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(lines)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), path, row_group_size=3)
    elif path.suffix == ".txt":
        path.write_bytes("".join(texts).encode())
    else:
        path.write_bytes(lines)
    return path


def read(*paths: Path, max_bad: int = 100, text_field: str = "text") -> tuple[list[str], Tally]:
    tally = Tally(max_bad)
    return list(DocumentReader(paths, text_field, tally)), tally


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.JSONL"])
def test_documents_come_back(tmp_path: Path, texts: list[str], name: str) -> None:
    path = write(tmp_path / name, texts)
    reader = DocumentReader([path], "text", Tally(0))
    assert list(reader) == texts
    assert reader.bytes_read == reader.bytes_total == path.stat().st_size


def test_a_text_file_is_one_document(tmp_path: Path, texts: list[str]) -> None:
    path = write(tmp_path / "a.txt", texts)
    assert read(path)[0] == ["".join(texts)]


def test_lines_longer_than_a_chunk_and_no_last_newline(tmp_path: Path) -> None:
    texts = ["a" * 3_000_000, "b", "c" * 1_500_000, "end"]
    path = write(tmp_path / "a.jsonl", texts)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read(path)[0] == texts


def test_concatenated_compressed_members(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", ["one"])
    path.write_bytes(path.read_bytes() * 2)
    assert read(path)[0] == ["one", "one"]


def test_bad_lines_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        b'\xef\xbb\xbf{"text": "first"}\r',
        b"\xff\xfe",
        b"{nonsense",
        b"[1]",
        b'{"body": "x"}',
        b'{"text": 5}',
        b'{"text": "\\ud800"}',
        b"",
        b'{"text": " \\n"}',
        b'{"text": "last"}',
    ]
    path.write_bytes(b"\n".join(lines))
    documents, tally = read(path, max_bad=6)
    assert documents == ["first", "last"]
    assert (tally.bad, tally.empty) == (6, 1)
    assert tally.examples == [
        f"{path}:2: not UTF-8",
        f"{path}:3: not JSON",
        f"{path}:4: not a JSON object",
        f"{path}:5: no field 'text'",
        f"{path}:6: field 'text' is not text",
    ]
    with pytest.raises(UserError, match=r"a\.jsonl:7: a lone surrogate.*bad line 6.*a\.jsonl:2.*--max-bad \(5\)"):
        read(path, max_bad=5)


def test_bad_lines_of_a_text_file_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n\xff bad\nfine \xc3\xa9\r\n")
    documents, tally = read(path)
    assert documents == ["good\nfine é\r\n"]
    assert tally.examples == [f"{path}:2: not UTF-8"]


def test_bad_rows_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["one", None, "", "two"])}), path)
    documents, tally = read(path)
    assert documents == ["one", "two"]
    assert (tally.examples, tally.empty) == ([f"{path}:2: field 'text' is not text"], 1)
    with pytest.raises(UserError, match="no column 'body'; give --text-field one of text"):
        read(path, text_field="body")
    pq.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(UserError, match="'text' is int64, not text"):
        read(path)


def test_dictionary_encoded_parquet_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["x", "y", "x"]).dictionary_encode()}), path)
    assert read(path)[0] == ["x", "y", "x"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path: Path, demo_texts: list[str], name: str, kept: float) -> None:
    path = write(tmp_path / name, demo_texts[:10])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match="truncated or damaged") as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_inputs_expand_in_a_fixed_order(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.txt", "sub/c.parquet", "sub/d.jsonl.gz"]
    paths = {name: write(tmp_path / name, ["x"]) for name in names}
    (tmp_path / "notes.md").write_text("not a document")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden" / "e.txt", ["x"])
    everything = [paths["a.txt"], paths["b.jsonl"], paths["sub/c.parquet"], paths["sub/d.jsonl.gz"]]
    assert find_files([str(tmp_path)]) == everything
    assert find_files([str(tmp_path / "*.jsonl"), str(tmp_path / "a.txt")]) == [paths["b.jsonl"], paths["a.txt"]]
    assert find_files([str(tmp_path / "**/*.gz")]) == [paths["sub/d.jsonl.gz"]]
    assert find_files([str(paths["b.jsonl"]), str(tmp_path)])[0] == paths["b.jsonl"]
    assert len(find_files([str(paths["b.jsonl"]), str(tmp_path)])) == 4


def test_inputs_that_give_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    for given, message in [
        ("absent.jsonl", "no such file"),
        ("*.jsonl", "matches nothing"),
        ("notes.md", "unknown kind of file"),
        ("", "holds no .txt"),
    ]:
        with pytest.raises(UserError, match=message):
            find_files([str(tmp_path / given)])
