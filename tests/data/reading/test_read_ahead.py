"""The thread that reads ahead: it ends, it is bounded, and so is memory."""

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deconattn.data.reading.blocks import read_ahead, read_blocks
from deconattn.data.reading.input_files import find_inputs
from deconattn.errors import UserError
from tests.data.reading.mutations import encode

ROOT = Path(__file__).parents[3]


def reading_threads() -> int:
    return sum(thread.name == "read-ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "file.arrow"])
def test_closing_ends_the_thread(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encode(name, ["word " * 100] * 30_000))
    blocks = read_blocks(find_inputs([str(tmp_path)]), "text")
    assert reading_threads() == 0
    next(blocks)
    assert reading_threads() == 1
    blocks.close()
    assert reading_threads() == 0


def test_only_so_much_is_read_ahead() -> None:
    made = 0
    full = threading.Event()

    def make(stopped: object) -> Iterator[int]:
        nonlocal made
        for _ in range(100):
            made += 1
            if made == 5:
                full.set()
            yield 10

    items = read_ahead(make, lambda item: item, limit=35)
    assert next(items) == 10
    assert full.wait(10)  # one taken, three waiting, one in hand
    assert made <= 5
    assert sum(items) == 990
    assert made == 100
    assert sum(read_ahead(make, lambda item: 1000, limit=35)) == 1000


def test_an_error_comes_after_what_was_before_it() -> None:
    def make(stopped: object) -> Iterator[int]:
        yield from (1, 2)
        raise UserError("no more")

    items = read_ahead(make, lambda item: 1, limit=10)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(UserError, match="no more"):
        next(items)


SCRIPT = """
import sys, threading
from deconattn.data.reading.blocks import read_blocks
from deconattn.data.reading.input_files import find_inputs
from deconattn.data.reading.texts import parse_block
blocks = read_blocks(find_inputs(["-"]), "text")
for block in blocks:
    print(parse_block(block, "text").texts, block.position, flush=True)
    if len(sys.argv) > 1:
        break
blocks.close()
print(sum(thread.name == "read-ahead" for thread in threading.enumerate()))
"""


def test_stdin() -> None:
    command = [sys.executable, "-c", SCRIPT]
    content = b'{"text": "one"}\n{"text": "two"}'
    done = subprocess.run(command, input=content, capture_output=True, cwd=ROOT)
    assert (done.stdout.decode(), done.stderr) == (f"['one', 'two'] {len(content)}\n0\n", b"")


def test_a_stdin_that_says_nothing_more_can_be_left() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT, "1"], cwd=ROOT, stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b'{"text": "' + b"x" * (1 << 20) + b'"}\n{"text": "two"}\n')
        process.stdin.flush()
        assert len(process.stdout.readline()) > 1 << 20
        assert process.stdout.readline() == b"0\n"  # it did not wait for the pipe to end
        process.stdin.close()
        assert process.stderr.read() == b""


MEMORY = """
import resource, sys
from pathlib import Path
from deconattn.data.reading import blocks
from deconattn.data.reading.input_files import find_inputs
from deconattn.data.reading.texts import parse_block
import pyarrow.parquet
blocks.LIMIT = blocks.TEXT_GRID = 4 << 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for block in blocks.read_blocks(find_inputs(sys.argv[1:]), "text"):
    parsed = parse_block(block, "text")
    print(parsed.rows, len(parsed.texts), parsed.bad)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.parquet"])
def test_memory_is_bounded(tmp_path: Path, name: str) -> None:
    """100 MB in one line; in pages of one row group."""
    path = tmp_path / name
    if name == "a.parquet":
        table = pa.table({"text": ["word " * 20_000] * 1000})
        pq.write_table(table, path, use_dictionary=False, write_statistics=False)
    elif name == "a.jsonl.gz":
        path.write_bytes(gzip.compress(b"x" * (10 << 20), 1) * 10)
    else:
        with path.open("wb") as file:
            file.truncate(100_000_000)
    done = subprocess.run([sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    *parts, mebibytes = done.stdout.splitlines()
    if name == "a.parquet":
        assert sum(int(part.split()[0]) for part in parts) == 1000
    elif name == "a.txt":
        assert parts == ["1 0 [(0, 'NUL bytes, not text')]"] * 23  # of 4 MiB, the last one with the rest
    else:
        assert parts == ["1 0 [(0, 'longer than 64 MiB')]"]
    assert int(mebibytes) < 48
