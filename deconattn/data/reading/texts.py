"""From blocks of lines and rows to the texts of documents.

What is no document is counted and named; it is an error only beyond a limit.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import orjson
import pyarrow as pa

from deconattn.data.reading.blocks import InputBlock, read_blocks, read_input
from deconattn.data.reading.chat import BadConversation, ChatTemplate
from deconattn.data.reading.input_files import STDIN, Input, find_inputs
from deconattn.data.reading.lines import GRID, LIMIT
from deconattn.errors import UserError

_EXAMPLES = 5


@dataclass
class Tally:
    """Counts of what was skipped, and why.

    Attributes:
        max_bad: how many bad lines are tolerated; one more is fatal.
        bad: lines and rows that hold no document.
        empty: documents that are empty or white space.
        duplicates: documents that came before.
        short: documents of too few tokens.
        reasons: bad lines by reason.
        examples: the first bad lines, "NAME:LINE: REASON".
    """

    max_bad: int
    bad: int = 0
    empty: int = 0
    duplicates: int = 0
    short: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add_bad(self, name: str, line: int, reason: str) -> None:
        """Count one bad line (1-based; a row, for Parquet and Arrow). Raises :class:`UserError` beyond `max_bad`."""
        self.bad += 1
        self.reasons[reason] += 1
        place = f"{name}:{line}: {reason}"
        if len(self.examples) < _EXAMPLES:
            self.examples.append(place)
        if self.bad > self.max_bad:
            first = f", first {self.examples[0]}" if self.bad > 1 else ""
            remedy = _REMEDIES.get(reason, "mend the input")
            raise UserError(f"{place}: bad line {self.bad}{first}; {remedy} or raise --max-bad ({self.max_bad})")

    def why_nothing(self) -> str:
        """Why there is no document: what was skipped, how often and where first; empty if nothing was there at all."""
        skipped = ((self.empty, "empty documents"), (self.short, "too short"))
        counts = [f"{count:,} {kind}" for count, kind in skipped if count]
        counts += [f"{count:,} bad lines: {reason}" for reason, count in self.reasons.most_common()]
        first = f", the first {self.examples[0]}" if self.examples else ""
        return f" ({', '.join(counts)}{first})" if counts else ""

    def remedies(self) -> str:
        """What may help where there is no document."""
        special = [_REMEDIES[reason] for reason in self.reasons if reason in _REMEDIES]
        return "; ".join([*special, "check --text-field, --min-tokens"])

    def as_dict(self) -> dict[str, Any]:
        """The tally as JSON types."""
        return {**vars(self), "reasons": dict(self.reasons), "examples": list(self.examples)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Tally":
        """The inverse of :meth:`as_dict`."""
        return cls(**{**values, "reasons": Counter(values["reasons"]), "examples": list(values["examples"])})


_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_UTF8 = "not UTF-8"
_NUL = "NUL bytes, not text"
_REMEDIES = {
    _NOT_UTF8: "convert the file to UTF-8 (iconv -f LATIN1 -t UTF-8, if it is Latin-1)",
    _NUL: "convert the file to UTF-8 (iconv -f UTF-16LE -t UTF-8, if it is UTF-16)",
}
_NUL_SHARE = 20  # one byte in so many that is NUL is a stray one; UTF-16 and tables of numbers have more
_TOO_LONG = f"longer than {LIMIT >> 20} MiB"


@dataclass
class Parsed:
    """Parsed content of a block.

    Attributes:
        texts: the texts of the good, non-empty documents, in order.
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


def parse_block(block: InputBlock, text_field: str, chat: ChatTemplate | None = None) -> Parsed:
    """The documents of a block; `text_field` is the field of a JSON line that holds the text.

    With a chat template a JSON line is a conversation.
    """
    parsed = Parsed()
    if chat is not None:
        _parse_conversations(block.payload.removeprefix(_BOM), chat, parsed)
        return parsed
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
    if content.count(0) * _NUL_SHARE > len(content):
        parsed.rows = content.count(b"\n") + (content[-1:] != b"\n")
        parsed.bad += [(row, _NUL) for row in range(parsed.rows)]
        return
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


def _parse_conversations(content: bytes, chat: ChatTemplate, parsed: Parsed) -> None:
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    parsed.rows = len(lines)
    for row, line in enumerate(lines):
        if not line or line.isspace():
            continue
        try:
            parsed.add(chat.text(orjson.loads(line)))
        except BadConversation as bad:
            parsed.bad.append((row, str(bad)))
        except ValueError:
            parsed.bad.append((row, "not JSON"))


def _parse_line(line: bytes, text_field: str) -> str:
    """A line that orjson did not take: with NaN or a surrogate elsewhere it is good for Python's reader."""
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise _Bad(_NOT_UTF8) from None
    except (ValueError, RecursionError):
        raise _Bad(_NUL if 0 in line else "not JSON") from None
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


_SAMPLED = 32  # open at a time, each with its decompressor and a block
_MAX_BAD = 100


def read_texts(inputs: Sequence[str], text_field: str = "text", max_bad: int = _MAX_BAD) -> Iterator[str]:
    """The texts of all documents of files, folders, patterns and URLs, in order.

    Raises:
        UserError: an input that is missing or damaged, or more than `max_bad` bad lines.
    """
    return documents_of(find_inputs(inputs), text_field, Tally(max_bad))


def documents_of(inputs: Sequence[Input], text_field: str, tally: Tally) -> Generator[str, None, None]:
    """The texts of all good documents, in order; the others are counted in `tally`. Raises :class:`UserError`."""
    line, index = 1, 0
    with closing(read_blocks(inputs, text_field)) as blocks:
        for block in blocks:
            if block.input != index:
                line, index = 1, block.input
            parsed = parse_block(block, text_field)
            for row, reason in parsed.bad:
                tally.add_bad(inputs[index].name, line + row, reason)
            tally.empty += parsed.empty
            line += parsed.rows
            yield from parsed.texts


def sample_texts(inputs: Sequence[Input], text_field: str) -> Iterator[str]:
    """Texts for tokenizer training, in turn from up to 32 inputs spread over the list, so that no source leads.

    Of a text file about 1 MiB comes at a time. Bad lines are passed over; packing counts and judges them. Raises
    :class:`UserError` for stdin, which cannot be read twice, for inputs that are damaged, and where there is no text.
    """
    if any(source.name == STDIN for source in inputs):
        raise UserError("stdin can be read once only, not to train a tokenizer too; give a file, or a ready tokenizer")
    step = -(-len(inputs) // _SAMPLED)
    tally = Tally(sys.maxsize)
    turns = [_texts_of(source, text_field, tally) for source in inputs[::step]]
    found = False
    while turns:
        for texts in list(turns):
            if (text := next(texts, None)) is None:
                turns.remove(texts)
            else:
                found = True
                yield text
    if not found:
        raise no_documents([source.name for source in inputs], tally)


def no_documents(names: Sequence[str], tally: Tally) -> UserError:
    """The error for inputs without a document, with the reasons that the tally knows."""
    shown = ", ".join(names[:_EXAMPLES]) + (f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else "")
    return UserError(f"{shown}: no document with text in it{tally.why_nothing()}; {tally.remedies()}")


def _texts_of(source: Input, text_field: str, tally: Tally) -> Iterator[str]:
    line = 1
    for block in read_input(source, text_field, text_grid=GRID):
        parsed = parse_block(block, text_field)
        for row, reason in parsed.bad:
            tally.add_bad(source.name, line + row, reason)
        tally.empty += parsed.empty
        line += parsed.rows
        yield from parsed.texts
