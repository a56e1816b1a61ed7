"""JSON arrays and objects over several lines, encodings that a mark names, lines of any length, all that xz and gzip
write: the same documents from any of them, in any pieces and from any start."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from random import Random

import pytest

from deconattn.data.reading import sources
from deconattn.data.reading.blocks import InputBlock, read_blocks
from deconattn.data.reading.input_files import Input, find_inputs
from deconattn.data.reading.lines import cut_text, first_byte
from deconattn.data.reading.texts import Tally, documents_of, parse_block, read_texts
from deconattn.errors import UserError

TEXTS = ['quotes " and \\ and [brackets], {braces}', "naïve 日本語 🙂", "line\nline\r\n\ttab", "x" * 700, "end"]
RECORDS = [
    {"id": number, "meta": {"tags": ["a", "]", '"'], "n": None}, "text": text} for number, text in enumerate(TEXTS)
]


def write(path: Path, content: bytes) -> list[Input]:
    path.write_bytes(content)
    return find_inputs([str(path)])


def documents(inputs: list[Input], bad: int = 0) -> list[str]:
    tally = Tally(max_bad=10**6)
    texts = list(documents_of(inputs, "text", tally))
    assert tally.bad == bad, tally.examples
    return texts


LAYOUTS = {
    "array": json.dumps(RECORDS),
    "unescaped": json.dumps(RECORDS, ensure_ascii=False),
    "indented array": json.dumps(RECORDS, indent=2),
    "tabs and returns": json.dumps(RECORDS, indent="\t").replace("\n", "\r\n"),
    "array of lines": "[" + ",\n".join(map(json.dumps, RECORDS)) + "]\n",
    "after white space": " \n\n" + json.dumps(RECORDS) + " \n",
    "lines": "\n".join(map(json.dumps, RECORDS)),
    "blank lines": "\n\n".join(map(json.dumps, RECORDS)) + "\n",
    "indented objects": "\n".join(json.dumps(record, indent=1) for record in RECORDS),
    "objects without line ends": " ".join(json.dumps(record, indent=1) for record in RECORDS),
}


@pytest.mark.parametrize("chunk", [1, 7, 100_000])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_content_tells_the_layout(tmp_path: Path, layout: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    content = LAYOUTS[layout].encode()
    for mark in (b"", b"\xef\xbb\xbf"):
        assert documents(write(tmp_path / "a.json", mark + content)) == TEXTS
    assert documents(write(tmp_path / "a.json.gz", gzip.compress(content))) == TEXTS
    assert documents(write(tmp_path / "a.JSON.xz", lzma.compress(content))) == TEXTS


@pytest.mark.parametrize("layout", ["indented array", "array", "indented objects", "lines"])
def test_json_goes_on_from_any_block(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deconattn.data.reading.blocks.GRID", 100)
    inputs = write(tmp_path / "a.json", LAYOUTS[layout].encode())
    blocks = list(read_blocks(inputs, "text"))
    assert len(blocks) >= 4
    for number, block in enumerate(blocks):
        again = [(b.number, b.payload) for b in read_blocks(inputs, "text", (0, block.number))]
        assert again == [(b.number, b.payload) for b in blocks[number:]]


@pytest.mark.parametrize(
    ("content", "texts", "bad"),
    [
        (b"[]", [], 0),
        (b" [ \n ] ", [], 0),
        (b'{"text": "one"}', ["one"], 0),
        (b'{\n "text": "one"\n}\n', ["one"], 0),
        (b'{"text": "o",\n"more": [1,\n2]}', ["o"], 0),
        (b'[{"text": "one"}, 5, {"text": 5}, {"text": "two"}]', ["one", "two"], 2),
        (b'[{"text": "one"},, {"text": "two"}]', ["one", "two"], 1),
        (b'[{"text": "one"}, ]', ["one"], 1),
        (b'[{"text": "one"} {"text": "two"}, {"text": "three"}]', ["three"], 1),
        (b'[{"text": "li\nne"}, {"text": "two"}]', ["two"], 1),
        (b'["one", "two"]', [], 2),
        (b'{"bad\n{"text": "one"}', ["one"], 1),
        (b'{"data": [{"text": "nested"}]}', [], 1),
        (b"nonsense\n", [], 1),
        (b"", [], 0),
    ],
)
def test_json_that_is_odd(tmp_path: Path, content: bytes, texts: list[str], bad: int) -> None:
    assert documents(write(tmp_path / "a.json", content), bad) == texts


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'[{"text": "one"}, {"text": "tw', "its JSON array is not closed"),
        (b'[{"text": "one"},', "its JSON array is not closed"),
        (b"[", "its JSON array is not closed"),
        (b'[{"text": "one"}]\n[]', "something follows the end of its JSON array"),
        (b'[{"text": "one"}}', "its JSON array is closed by a brace"),
        (b'{\n "text": "one",\n', "its last JSON object is not closed"),
        (b'{\n "text": "one\n}', "its last JSON object is not closed"),
    ],
)
def test_json_that_is_not_whole(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=f"a.json is truncated or damaged .{reason}.; fetch it again"):
        documents(write(tmp_path / "a.json", content))


def test_the_number_of_a_bad_element_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.json", json.dumps([*RECORDS, {"body": 1}], indent=2).encode())
    with pytest.raises(UserError, match="a.json:6: no field 'text': bad line 1"):
        list(read_texts([str(tmp_path / "a.json")], max_bad=0))


@pytest.mark.parametrize("chunk", [1, 3, 100_000])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8"])
def test_marks_of_encodings(tmp_path: Path, encoding: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"  # those two write it themselves
    text = "".join(TEXTS)
    assert documents(write(tmp_path / "a.txt", (mark + text).encode(encoding))) == [text]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
    for name, content in [("a.jsonl", lines), ("a.json", LAYOUTS["indented array"])]:
        encoded = (mark + content).encode(encoding)
        assert documents(write(tmp_path / name, encoded)) == TEXTS
        assert documents(write(tmp_path / f"{name}.bz2", bz2.compress(encoded))) == TEXTS


def test_marked_text_goes_on_from_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deconattn.data.reading.blocks.GRID", 100)
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    inputs = write(tmp_path / "a.jsonl", lines.encode("utf-16"))
    blocks = list(read_blocks(inputs, "text"))
    assert len(blocks) > 3
    for number, block in enumerate(blocks):
        assert next(read_blocks(inputs, "text", (0, block.number))).payload == blocks[number].payload


def test_text_in_an_encoding_without_a_mark_is_refused(tmp_path: Path) -> None:
    text = "Größe und Maß\n" * 120
    for encoding, message in [
        ("latin-1", r"a.txt:101: not UTF-8: bad line 101.*iconv -f LATIN1 -t UTF-8.*or raise --max-bad"),
        ("utf-16-le", r"a.txt:101: NUL bytes, not text: bad line 101.*iconv -f UTF-16LE -t UTF-8"),
        ("utf-32-be", r"a.txt:101: NUL bytes, not text"),
    ]:
        (tmp_path / "a.txt").write_bytes(text.encode(encoding))
        with pytest.raises(UserError, match=message):
            list(read_texts([str(tmp_path / "a.txt")]))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe" + text.encode("utf-16-le")[:-1])
    with pytest.raises(UserError, match="a.txt is truncated or damaged .*truncated data"):
        list(read_texts([str(tmp_path / "a.txt")]))


def test_a_table_of_numbers_is_no_text(tmp_path: Path) -> None:
    content = b"".join(number.to_bytes(4, "little") for number in range(9))
    assert documents(write(tmp_path / "a.txt", content), bad=1) == []
    assert documents(write(tmp_path / "b.txt", b"a stray \0 in a long line of text")) == [
        "a stray \0 in a long line of text"
    ]


def cells(content: bytes, size: int, start: int, grid: int) -> list[tuple[int, bytes]]:
    rest = content[first_byte(start, grid) :]
    pieces = ((rest[at : at + size], at) for at in range(0, len(rest), size))
    return [(cell.number, cell.content) for cell in cut_text(pieces, start, grid)]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_nothing_of_a_text_is_lost_however_long_its_lines(size: int) -> None:
    random = Random(size)
    for _ in range(60):
        words = ("x" * random.choice((1, 5, 12, 40)), "é" * random.choice((1, 20)), "日本語" * 5, " ", "\n", "🙂" * 9)
        content = "".join(random.choice(words) for _ in range(random.randrange(25))).encode()
        found = cells(content, size, 0, 16)
        assert b"".join(cell for _, cell in found) == content
        assert [number for number, _ in found] == sorted({number for number, _ in found})
        for _, cell in found:
            cell.decode()  # cut between two characters
            assert len(cell) < 16 + 16 + 5 or b"\n" not in cell[16:-1]
        for start in range(len(content) // 16 + 2):
            assert cells(content, size, start, 16) == [(number, cell) for number, cell in found if number >= start]


def test_a_long_line_is_cut_between_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deconattn.data.reading.blocks.TEXT_GRID", 1000)
    text = " ".join(f"word{number}" for number in range(2000))  # as text8, one line
    parts = documents(write(tmp_path / "text8.txt", text.encode()))
    assert "".join(parts) == text
    assert len(parts) > 10
    assert all(part.startswith(" word") for part in parts[1:])


def test_padding_and_members(tmp_path: Path) -> None:
    line = b'{"text": "one"}\n'
    for name, content in [
        ("a.jsonl.gz", gzip.compress(line) + bytes(512) + gzip.compress(line) + bytes(3)),
        ("a.jsonl.xz", lzma.compress(line) + bytes(512) + lzma.compress(line) + bytes(4)),
        ("a.jsonl.bz2", bz2.compress(line) * 2),
    ]:
        assert documents(write(tmp_path / name, content)) == ["one", "one"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.jsonl.bz2"])
def test_a_second_member_that_is_damaged(tmp_path: Path, name: str) -> None:
    line = b'{"text": "one"}\n'
    member = {"gz": gzip.compress(line), "xz": lzma.compress(line), "bz2": bz2.compress(line)}[name.rpartition(".")[2]]
    for rest in (member[:-3], member[:2], b"no member", bytes(8) + member[:-9]):
        with pytest.raises(UserError, match=f"{name} is truncated or damaged after [0-9]+ decompressed bytes"):
            documents(write(tmp_path / name, member + rest))
    with pytest.raises(UserError, match=f"{name} is truncated or damaged"):
        documents(write(tmp_path / name, bytes(100)))


def block(payload: bytes, kind: str = "text") -> InputBlock:
    return InputBlock(0, 0, kind, payload, 0)


def test_the_error_gives_the_tally_s_reason(tmp_path: Path) -> None:
    assert parse_block(block("für".encode("utf-16-le")), "text").bad == [(0, "NUL bytes, not text")]
    path = tmp_path / "a.txt"
    path.write_bytes("für\n".encode("latin-1") * 3)
    tally = Tally(100)
    assert list(documents_of(find_inputs([str(path)]), "text", tally)) == []
    assert tally.why_nothing() == f" (1 empty documents, 3 bad lines: not UTF-8, the first {path}:1: not UTF-8)"
    assert "iconv" in tally.remedies()
