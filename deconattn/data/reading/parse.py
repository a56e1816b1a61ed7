"""From blocks of lines and rows to texts; what is no document is counted and named, never raised."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import orjson
import pyarrow as pa

from deconattn.data.reading.blocks import Block
from deconattn.data.reading.lines import LIMIT

_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_UTF8 = "not UTF-8"
_TOO_LONG = f"longer than {LIMIT >> 20} MiB"


@dataclass
class Parsed:
    """What a block holds.

    Attributes:
        texts: of the good, non-empty documents, in order.
        rows: lines or rows in the block.
        bad: (row within the block from 0, reason) of each line or row that is no document, in order.
        empty: documents that are empty or white space.
    """

    texts: list[str] = field(default_factory=list)
    rows: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    empty: int = 0

    def add(self, text: str) -> None:
        """Count a document that is good."""
        if text and not text.isspace():
            self.texts.append(text)
        else:
            self.empty += 1


def parse_block(block: Block, text_field: str) -> Parsed:
    """The documents of a block; `text_field` is the field of a JSON line that holds the text."""
    parsed = Parsed()
    if block.kind == "arrow":
        _parse_rows(block.payload, text_field, parsed)
        return parsed
    content = block.payload.removeprefix(_BOM) if block.number == 0 else block.payload
    if block.kind == "text":
        _parse_text(content, parsed)
    else:
        _parse_lines(content, text_field, parsed)
    if block.too_long:
        parsed.bad.append((parsed.rows, _TOO_LONG))
        parsed.rows += 1
    return parsed


class _Bad(Exception):
    """A line or row to skip; the message is the reason."""


def _parse_text(content: bytes, parsed: Parsed) -> None:
    try:
        text = content.decode()
        parsed.rows = content.count(b"\n") + (text[-1:] not in ("", "\n"))
    except UnicodeDecodeError:
        kept = []
        for line in BytesIO(content):
            try:
                kept.append(line.decode())
            except UnicodeDecodeError:
                parsed.bad.append((parsed.rows, _NOT_UTF8))
            parsed.rows += 1
        text = "".join(kept)
    parsed.add(text)


def _parse_lines(content: bytes, text_field: str, parsed: Parsed) -> None:
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    parsed.rows = len(lines)
    for row, line in enumerate(lines):
        try:
            text = orjson.loads(line)[text_field]
        except (ValueError, LookupError, TypeError):
            text = None
        if type(text) is not str:
            if not line or line.isspace():
                continue
            try:
                text = _parse_line(line, text_field)
            except _Bad as reason:
                parsed.bad.append((row, str(reason)))
                continue
        parsed.add(text)


def _parse_line(line: bytes, text_field: str) -> str:
    """A line that orjson did not take: with NaN or a surrogate elsewhere it is good for Python's reader."""
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise _Bad(_NOT_UTF8) from None
    except (ValueError, RecursionError):
        raise _Bad("not JSON") from None
    if not isinstance(record, dict):
        raise _Bad("not a JSON object")
    if text_field not in record:
        raise _Bad(f"no field {text_field!r}")
    text = record[text_field]
    if not isinstance(text, str):
        raise _Bad(f"field {text_field!r} is not text")
    if _SURROGATE.search(text):
        raise _Bad("a lone surrogate, not UTF-8")
    return text


def _parse_rows(content: bytes, text_field: str, parsed: Parsed) -> None:
    for batch in pa.ipc.open_stream(content):
        for text in _texts(batch.column(0), text_field, whole=len(content) <= LIMIT):
            if isinstance(text, str):
                parsed.add(text)
            else:
                parsed.bad.append((parsed.rows, str(text)))
            parsed.rows += 1


def _texts(column: Any, text_field: str, whole: bool) -> Iterable[str | _Bad]:
    """Each row's text or what is wrong with it; `whole` says that none can be too long."""
    if whole and not column.null_count:
        kind = pa.large_string() if pa.types.is_large_binary(column.type) else pa.string()
        try:
            texts: list[str | _Bad] = column.view(kind).to_pylist()
            return texts
        except UnicodeDecodeError:
            pass
    return (_text(value.as_py(), text_field) for value in column)


def _text(value: bytes | None, text_field: str) -> str | _Bad:
    if value is None:
        return _Bad(f"field {text_field!r} is not text")
    if len(value) > LIMIT:
        return _Bad(_TOO_LONG)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return _Bad(_NOT_UTF8)
