"""Input files of every format and ways to damage them, for the tests of reading and packing."""

import bz2
import gzip
import json
import lzma
from collections.abc import Sequence
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NAMES = (
    "a.txt",
    "a.jsonl",
    "a.txt.zst",
    "a.jsonl.gz",
    "a.jsonl.zst",
    "a.jsonl.bz2",
    "a.jsonl.xz",
    "a.json.gz",
    "a.parquet",
    "dictionary.parquet",
    "file.arrow",
    "stream.arrow",
    "packed.arrow",
)
"""One name a format. `packed` is compressed inside; `dictionary` holds codes for repeated texts."""


def encode(name: str, texts: Sequence[str | None]) -> bytes:
    """A file of these documents in the format that the name calls for (one document, for text)."""
    stem, _, ending = name.lower().partition(".")
    if ending.startswith("txt"):
        return _compress(ending, "".join(text or "" for text in texts).encode())
    if ending.startswith("json."):
        return _compress(
            ending, json.dumps([{"id": n, "text": text} for n, text in enumerate(texts)], indent=1).encode()
        )
    if "json" in ending:
        lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(texts)]
        return _compress(ending, "".join(line + "\n" for line in lines).encode())
    column = pa.array(texts, pa.string())
    table = pa.table({"id": list(range(len(texts))), "text": column})
    sink = pa.BufferOutputStream()
    if ending == "parquet":
        if stem == "dictionary":
            table = table.set_column(1, "text", column.dictionary_encode())
        pq.write_table(table, sink, row_group_size=3, write_page_checksum=True)
    else:
        options = pa.ipc.IpcWriteOptions(compression="zstd" if stem == "packed" else None)
        new = pa.ipc.new_stream if stem == "stream" else pa.ipc.new_file
        with new(sink, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=3)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _compress(ending: str, content: bytes) -> bytes:
    if ending.endswith("gz"):
        return gzip.compress(content, mtime=0)
    if ending.endswith("zst"):
        return pa.compress(content, "zstd", asbytes=True)
    if ending.endswith("xz"):
        return lzma.compress(content)
    return bz2.compress(content) if ending.endswith("bz2") else content


def mutate(content: bytes, random: Random) -> bytes:
    """The content with one to three damages: cut, bits flipped, bytes overwritten, removed, repeated or added."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 3)):
        size = len(changed)
        start = random.randrange(size + 1)
        end = min(size, start + random.choice((1, 2, 4, 16, 256)))
        kind = random.randrange(7)
        if kind == 0:
            del changed[start:]
        elif kind == 1:
            for _ in range(random.choice((1, 1, 4, 32))):
                if size:
                    changed[random.randrange(size)] ^= 1 << random.randrange(8)
        elif kind == 2:
            changed[start:end] = random.randbytes(end - start)
        elif kind == 3:
            del changed[start:end]
        elif kind == 4:
            changed[start:start] = changed[start:end] * random.choice((1, 2, 50))
        elif kind == 5:
            changed[start:start] = random.choice((b"\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"{}\n", b"\r\n\r\n", b'"'))
        else:
            changed[start:end] = random.choice((b"\0", b"\xff", b"\x7f")) * (end - start)
    return bytes(changed)


def odd_lines(random: Random) -> bytes:
    """JSON lines of values of any type, some not JSON at all."""
    return b"".join(_odd_line(random) for _ in range(random.randint(0, 20)))


def _odd_line(random: Random) -> bytes:
    key = random.choice(("text", "text", "text", "Text", ""))
    line = json.dumps({key: _odd_value(random, 3), "more": _odd_value(random, 2)}).encode()
    kind = random.randrange(8)
    if kind == 0:
        line = json.dumps(_odd_value(random, 3)).encode()
    elif kind == 1:
        line = b"[" * random.choice((1, 900, 3000)) + line
    elif kind == 2:
        line = random.randbytes(random.randrange(30))
    return line + random.choice((b"\n", b"\n", b"\r\n", b"\n\n", b" \t\n", b""))


def _odd_value(random: Random, depth: int) -> Any:
    texts = ("plain", "", " \n", "naïve 日本", "\ud83d", "\u2028", "\x00", '"\\')
    others = (None, True, 5, -0.0, 1e400, float("nan"), 10**400)
    if depth and random.random() < 0.3:
        return [_odd_value(random, depth - 1) for _ in range(random.randrange(3))]
    if depth and random.random() < 0.3:
        return {random.choice(texts): _odd_value(random, depth - 1)}
    return random.choice(texts if random.random() < 0.7 else others)
