import json
import pickle

import pyarrow as pa
import pytest

from deconattn.data.reading.blocks import InputBlock
from deconattn.data.reading.texts import Parsed, Tally, parse_block
from deconattn.errors import UserError


def parse(payload: bytes, kind: str = "json", number: int = 0, too_long: bool = False) -> Parsed:
    return parse_block(InputBlock(0, number, kind, payload, 0, too_long), "text")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b'{"text": "\xc3("}', "not UTF-8"),
        (b'{"text": "\xed\xa0\x80"}', "not UTF-8"),
        (b"{nonsense", "not JSON"),
        (b'{"text": "x"} {}', "not JSON"),
        (b'{"text": "tab\tinside"}', "not JSON"),
        (b"\x00", "NUL bytes, not text"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"5", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"body": "x"}', "no field 'text'"),
        (b"{}", "no field 'text'"),
        (b'{"text": 5}', "field 'text' is not text"),
        (b'{"text": null}', "field 'text' is not text"),
        (b'{"text": ["x"]}', "field 'text' is not text"),
        (b'{"text": NaN}', "field 'text' is not text"),
        (b'{"text": "\\ud800"}', "a lone surrogate, not UTF-8"),
        (b'{"text": "\\udc00\\ud800"}', "a lone surrogate, not UTF-8"),
    ],
)
def test_bad_lines_are_named(line: bytes, reason: str) -> None:
    parsed = parse(b'{"text": "first"}\n' + line + b'\n{"text": "last"}')
    assert parsed == Parsed(["first", "last"], rows=3, bad=[(1, reason)], empty=0)


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "good", "score": NaN, "more": -Infinity}',
        b'{"text": "good", "title": "\\ud800"}',
        b'{"text": "good", "number": 1' + b"0" * 400 + b"}",
        b'{"deep": ' + b"[" * 800 + b"]" * 800 + b', "text": "good"}',
        b'{"text": "bad", "text": "good"}',
        b'  {"text": "good"} \t\r',
    ],
)
def test_what_python_writes_and_reads_is_good(line: bytes) -> None:
    assert json.loads(line)["text"] == "good"
    assert parse(line + b"\n" + line) == Parsed(["good"] * 2, rows=2)


def test_blank_lines_and_empty_documents() -> None:
    content = b'\n\r\n \t\n{"text": ""}\n{"text": " \\n\\u2003"}\r\n{"text": "x"}\n\n'
    assert parse(content) == Parsed(["x"], rows=7, empty=2)
    assert parse(b"") == Parsed([], rows=0)


def test_the_mark_at_the_beginning_goes() -> None:
    line = b'\xef\xbb\xbf{"text": "x"}\n'
    assert parse(line) == Parsed(["x"], rows=1)
    assert parse(line, number=1).bad == [(0, "not JSON")]
    assert parse(b"\xef\xbb\xbfhello", kind="text") == Parsed(["hello"], rows=1)


def test_texts() -> None:
    assert parse("é\r\n two\n".encode(), kind="text") == Parsed(["é\r\n two\n"], rows=2)
    assert parse(b"no line end", kind="text") == Parsed(["no line end"], rows=1)
    assert parse(b" \n\n", kind="text") == Parsed([], rows=2, empty=1)
    assert parse(b"", kind="text") == Parsed([], rows=0, empty=1)
    assert parse(b"good\n\xff bad\nold\rmac\n\xfe\nfine \xc3\xa9\r\n", kind="text") == Parsed(
        ["good\nold\rmac\nfine é\r\n"], rows=5, bad=[(1, "not UTF-8"), (3, "not UTF-8")]
    )


def test_a_line_that_was_left_out_comes_last() -> None:
    for kind, content, texts in [("json", b'{"text": "x"}\n\xff\n', ["x"]), ("text", b"x\n\xff\n", ["x\n"])]:
        parsed = parse(content, kind, too_long=True)
        assert parsed == Parsed(texts, rows=3, bad=[(1, "not UTF-8"), (2, "longer than 64 MiB")])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_rows(kind: pa.DataType) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("", kind)])) as writer:
        for rows in ([b"good", "naïve 🙂".encode()], [None, b"\xff", b"", b" ", b"\xed\xa0\x80", b"end"]):
            writer.write_batch(pa.record_batch([pa.array(rows, kind)], names=[""]))
    assert parse(sink.getvalue().to_pybytes(), kind="arrow") == Parsed(
        ["good", "naïve 🙂", "end"],
        rows=8,
        bad=[(2, "field 'text' is not text"), (3, "not UTF-8"), (6, "not UTF-8")],
        empty=2,
    )


def test_the_tally_judges() -> None:
    tally = Tally(max_bad=6)
    for line in range(1, 7):
        tally.add_bad("a.jsonl", line, "not JSON" if line % 2 else "not UTF-8")
    assert tally.reasons == {"not JSON": 3, "not UTF-8": 3}
    assert tally.examples == [f"a.jsonl:{line}: not {'JSON' if line % 2 else 'UTF-8'}" for line in range(1, 6)]
    with pytest.raises(UserError, match=r"b:9: empty: bad line 7, first a\.jsonl:1: not JSON; .*raise --max-bad \(6\)"):
        tally.add_bad("b", 9, "empty")
    with pytest.raises(UserError, match=r"^a:1: x: bad line 1; mend the input or raise --max-bad \(0\)$"):
        Tally(0).add_bad("a", 1, "x")


def test_the_tally_survives_json() -> None:
    tally = Tally(10, empty=3, duplicates=2, short=1)
    tally.add_bad("a", 1, "not JSON")
    again = Tally.from_dict(json.loads(json.dumps(tally.as_dict())))
    assert again == tally
    again.add_bad("a", 2, "not UTF-8")
    assert (again.bad, tally.bad, len(tally.examples)) == (2, 1, 1)


def test_blocks_and_results_travel_between_processes() -> None:
    block = InputBlock(0, 0, "json", b'{"text": "x"}\n5\n', 9)
    assert pickle.loads(pickle.dumps(block)) == block
    parsed = parse_block(block, "text")
    assert pickle.loads(pickle.dumps(parsed)) == parsed
