import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deconattn.data.reading import columns, sources
from deconattn.data.reading.blocks import InputBlock, read_blocks
from deconattn.data.reading.input_files import Input, find_inputs
from deconattn.data.reading.lines import cut_lines, first_byte
from deconattn.data.reading.texts import parse_block
from deconattn.errors import UserError
from tests.data.reading.mutations import NAMES, encode


def write(path: Path, content: bytes) -> list[Input]:
    path.write_bytes(content)
    return find_inputs([str(path)])


def read(inputs: list[Input], start: tuple[int, int] = (0, 0), text_field: str = "text") -> list[InputBlock]:
    return list(read_blocks(inputs, text_field, start))


def pieces(content: bytes, size: int) -> Iterator[tuple[bytes, int]]:
    for start in range(0, len(content), size):
        yield content[start : start + size], start + size


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 100 bytes, lines of 300 at most."""
    for module in ("blocks", "columns"):
        monkeypatch.setattr(f"deconattn.data.reading.{module}.GRID", 100)
    for name in ("LIMIT", "TEXT_GRID"):
        monkeypatch.setattr(f"deconattn.data.reading.blocks.{name}", 300)


@pytest.fixture
def documents() -> list[str | None]:
    random = Random(0)
    return ["word " * random.choice((0, 1, 5, 10, 45)) + f"{number}\n" for number in range(30)]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_cells_are_the_lines_that_begin_in_them(size: int) -> None:
    random = Random(1)
    for _ in range(60):
        content = b"".join(b"x" * random.choice((0, 1, 3, 9, 40)) + b"\n" for _ in range(random.randrange(12)))
        content += random.choice((b"", b"no line end"))
        expected: dict[int, list[bytes]] = {}
        at = 0
        for line in content.splitlines(keepends=True):
            expected.setdefault(at // 10, []).append(line)
            at += len(line)
        for start in range(len(content) // 10 + 2):
            cells = list(cut_lines(pieces(content[first_byte(start, 10) :], size), start, 10, 20))
            assert [(cell.number, cell.content, cell.too_long) for cell in cells] == [
                (
                    number,
                    b"".join(line for line in cell if len(line) <= 20),
                    any(len(line) > 20 for line in cell),
                )
                for number, cell in expected.items()
                if number >= start
            ]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_the_same_for_any_chunk_and_from_any_start(
    tmp_path: Path, small: None, documents: list[str | None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / f"0.{name}", encode(name, documents))
    write(tmp_path / f"1.{name}", encode(name, documents[::-1]))
    inputs = find_inputs([str(tmp_path)])
    blocks = read(inputs)
    assert len(blocks) >= 10
    assert [(block.input, block.number) for block in blocks] == sorted({(b.input, b.number) for b in blocks})
    texts = [text for block in blocks for text in parse_block(block, "text").texts]
    if blocks[0].kind == "text":
        assert "".join(texts) == "".join(str(text) for text in documents + documents[::-1])
    else:
        assert texts == documents + documents[::-1]
    for block in (blocks[-1], next(block for block in reversed(blocks) if block.input == 0)):
        assert inputs[block.input].size - 8 <= block.position <= inputs[block.input].size

    monkeypatch.setattr(sources, "_CHUNK", 17)
    monkeypatch.setattr(columns, "_ROWS", 2)

    def same(block: InputBlock) -> tuple[object, ...]:
        return block.input, block.number, block.kind, parse_block(block, "text")

    expected = [same(block) for block in blocks]
    assert [same(block) for block in read(inputs)] == expected
    for number, block in list(enumerate(blocks))[::3]:
        assert [same(block) for block in read(inputs, (block.input, block.number))] == expected[number:]
        after = read(inputs, (block.input, block.number + 1))
        assert [same(block) for block in after] == expected[number + 1 :]


def test_a_text_is_one_block_and_only_a_large_one_is_cut(tmp_path: Path) -> None:
    content = b"a line\n" * 400_000
    assert [block.payload for block in read(write(tmp_path / "a.txt", content))] == [content]
    assert [block.payload for block in read(write(tmp_path / "empty.txt", b""))] == [b""]
    assert [len(block.payload) for block in read(write(tmp_path / "b.txt", content * 3))] == [
        8_388_611,
        11_389,
    ]  # multiples of 7


def test_what_is_before_the_start_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write(tmp_path / "a.jsonl", b'{"text": "something"}\n' * 300_000)
    blocks = read(inputs)
    read_bytes = 0

    class Counting(pa.OSFile):
        def read(self, size: int) -> bytes:
            nonlocal read_bytes
            chunk: bytes = super().read(size)
            read_bytes += len(chunk)
            return chunk

    monkeypatch.setattr(pa, "OSFile", Counting)
    assert read(inputs, (0, blocks[-1].number)) == blocks[-1:]
    assert read_bytes <= len(blocks[-1].payload) + 100


def test_members_and_frames_are_all_read(tmp_path: Path) -> None:
    line = b'{"text": "one"}\n'
    skippable = b"\x50\x2a\x4d\x18\x05\0\0\0hello"
    for name, content in [
        ("a.jsonl.gz", gzip.compress(line) * 3),
        ("a.jsonl.zst", (pa.compress(line, "zstd", asbytes=True) + skippable) * 3),
        ("a.jsonl.bz2", encode("a.jsonl.bz2", ["one"]) * 3),
    ]:
        blocks = read(write(tmp_path / name, content))
        assert [parse_block(block, "text").texts for block in blocks] == [["one"] * 3]


def test_lines_beyond_the_limit_are_dropped(tmp_path: Path, small: None) -> None:
    long, longest = "y" * 288, "z" * 289  # with {"text": ""} and the line end: 301 and 302
    lines = [f'{{"text":"{text}"}}\n' for text in ("a", long, "b", longest, "c" * 5000, "d")]
    assert [len(line) for line in lines[1:4:2]] == [300, 301]
    blocks = read(write(tmp_path / "a.jsonl", "".join(lines).encode()))
    parsed = [parse_block(block, "text") for block in blocks]
    assert [text for part in parsed for text in part.texts] == ["a", long, "b", "d"]
    assert sum(part.rows for part in parsed) == 6
    assert [part.bad for part in parsed if part.bad] == [[(1, "longer than 64 MiB")], [(0, "longer than 64 MiB")]]


def test_rows_beyond_the_limit_are_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deconattn.data.reading.texts.LIMIT", 300)
    (block,) = read(write(tmp_path / "a.parquet", encode("a.parquet", ["é" * 150, "x" * 301, "end"])))
    parsed = parse_block(block, "text")
    assert (parsed.texts, parsed.bad) == (["é" * 150, "end"], [(1, "longer than 64 MiB")])


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "large dictionary"])
@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_types_of_text_columns(tmp_path: Path, kind: str, name: str) -> None:
    texts = ["x", None, "", "yy", "x"]
    if "dictionary" in kind:
        values = pa.array(texts, pa.large_string() if "large" in kind else pa.string())
        column = values.dictionary_encode()
    else:
        column = pa.array(texts, getattr(pa, kind)())
    table = pa.table({"n": range(5), "text": column})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        new = pa.ipc.new_stream if name == "stream.arrow" else pa.ipc.new_file
        with pa.OSFile(str(tmp_path / name), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table)
    (block,) = read(find_inputs([str(tmp_path)]))
    parsed = parse_block(block, "text")
    assert (parsed.texts, parsed.bad) == (["x", "yy", "x"], [(1, "field 'text' is not text")])
    assert (parsed.rows, parsed.empty) == (5, 1)


@pytest.mark.parametrize("name", ["a.parquet", "file.arrow", "stream.arrow"])
def test_columns_that_hold_no_text(tmp_path: Path, name: str) -> None:
    inputs = write(tmp_path / name, encode(name, ["x"]))
    with pytest.raises(UserError, match=f"{name} has no column 'body'; give --text-field one of id, text"):
        read(inputs, text_field="body")
    with pytest.raises(UserError, match="column 'id' is int64, not text; give another --text-field"):
        read(inputs, text_field="id")


def test_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match="several columns 'text'"):
        read(find_inputs([str(tmp_path)]))


@pytest.mark.parametrize("name", NAMES)
def test_urls_read_as_files_do(tmp_path: Path, name: str, documents: list[str | None]) -> None:
    pytest.importorskip("fsspec")
    local = write(tmp_path / name, encode(name, documents))
    remote = find_inputs([(tmp_path / name).as_uri()])
    assert remote != local
    assert read(remote) == read(local)
    assert read(remote, (0, 1)) == read(local, (0, 1))


def test_the_lines_of_json_dumps(tmp_path: Path) -> None:
    texts = ["a" * 3_000_000, "b", "c" * 1_500_000, "end"]
    content = "\r\n".join(json.dumps({"text": text}) for text in texts).encode()
    blocks = read(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + content))
    assert [text for block in blocks for text in parse_block(block, "text").texts] == texts
