"""Text that says by a mark at its beginning how it is encoded, as UTF-8."""

import codecs
from collections.abc import Iterator

_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MARK_BYTES = 4
"""Bytes from a file's beginning by which the encoding is known."""


def marked_encoding(head: bytes) -> str | None:
    """The encoding of content that begins with `head`; None for UTF-8 and for all that has no mark."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)


def decode_head(head: bytes) -> str:
    """As much of a file's beginning as is text."""
    return head.decode(marked_encoding(head) or "utf-8", errors="ignore")


def as_utf8(chunks: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    """The bytes of a whole file as UTF-8, whatever mark it begins with; without one they are not looked at.

    A half of a surrogate pair becomes bytes that are not UTF-8. Raises UnicodeDecodeError where the file ends within a
    character or has a number that is none.
    """
    head, position = b"", 0
    while len(head) < MARK_BYTES and (piece := next(chunks, None)):
        head, position = head + piece[0], piece[1]
    encoding = marked_encoding(head)
    if encoding is None:
        if head:
            yield head, position
        yield from chunks
        return
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    yield decoder.decode(head).encode("utf-8", "surrogatepass"), position
    for chunk, position in chunks:
        yield decoder.decode(chunk).encode("utf-8", "surrogatepass"), position
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass"), position
