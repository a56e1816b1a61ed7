"""The synthetic corpus: as large as asked for, the same for a seed, no document twice."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.packing import synthetic_corpus
from benchmarks.packing.corpus import DEMO, read_lines
from benchmarks.packing.synthetic_corpus import Arguments, cut, perturbed, write_files, write_text
from deconattn.errors import UserError

TEXTS = ["one two", 'quotes " and \\ and \n\t lines ' * 40, "naïve 日本語 🙂 " * 90, "word " * 400, "x" * 3000]


def lines_of(count: int, seed: int = 0) -> list[tuple[bytes, int]]:
    return list(islice(perturbed([cut(text) for text in TEXTS], seed), count))


def test_lines_are_json_of_as_many_bytes():
    for line, size in lines_of(20):
        assert line.count(b"\n") == 1 and line.endswith(b"\n")
        text = json.loads(line)["text"]
        assert len(text.encode()) == size


def test_a_document_keeps_its_pieces_and_gains_words():
    document = cut(TEXTS[1])
    assert b"".join(document.pieces) == json.dumps(TEXTS[1])[1:-1].encode()
    assert document.text_bytes == len(TEXTS[1])
    assert len(document.pieces) > 2 and min(map(len, document.pieces[:-1])) > synthetic_corpus.PIECE_BYTES
    ((line, size),) = islice(perturbed([document], 0), 1)
    assert all(piece in line for piece in document.pieces)
    assert size > document.text_bytes


def test_no_document_comes_twice():
    lines = [line for line, _ in lines_of(40 * len(TEXTS))]
    assert len(set(lines)) == len(lines)


def test_the_same_seed_gives_the_same_bytes():
    assert lines_of(15, seed=3) == lines_of(15, seed=3)
    assert not {line for line, _ in lines_of(15, seed=3)} & {line for line, _ in lines_of(15, seed=4)}


def test_pieces_change_places():
    documents = [cut(" ".join(f"place{number:03d}" for number in range(1000)))]
    places = []
    for line, _ in islice(perturbed(documents, 0), 5):
        words = json.loads(line)["text"].split()
        places.append([word for word in words if word.startswith("place") and word[5:].isdigit()])
    assert all(found != sorted(found) for found in places)
    assert len({tuple(found) for found in places}) == 5


def test_as_much_as_asked_for():
    parts: list[bytes] = []
    written = write_text(perturbed([cut(text) for text in TEXTS], 0), 50_000, parts.append)
    texts = [json.loads(line)["text"] for line in b"".join(parts).splitlines()]
    assert written == sum(len(text.encode()) for text in texts)
    assert written - len(texts[-1].encode()) < 50_000 <= written


@pytest.mark.parametrize("compress", [False, True])
def test_files(tmp_path: Path, compress: bool):
    """Of the size asked for, one going on where the other ends, and nothing beside them."""
    arguments = Arguments(gb=1e-4, folder=tmp_path / "new", file_mb=0.04, compress=compress)
    paths = write_files(iter(lines_of(10_000)), arguments)
    assert sorted((tmp_path / "new").iterdir()) == paths
    assert [path.name[:15] for path in paths] == [f"synthetic-{number:05d}" for number in range(3)]
    found = [line for line, _ in read_lines(paths)]
    assert found == [line for line, _ in lines_of(len(found))]
    sizes = [sum(len(text.encode()) for _, text in read_lines([path])) for path in paths]
    assert all(size >= 40_000 for size in sizes[:2]) and sum(sizes) >= 100_000
    if compress:
        assert pa.CompressedInputStream(str(paths[0]), "zstd").read(9) == b'{"text": '


def test_on_standard_output(monkeypatch: pytest.MonkeyPatch, capfdbinary: Any):
    monkeypatch.setattr("sys.argv", ["synthetic_corpus.py", "--gb", "0.0001", "--corpus", str(DEMO)])
    synthetic_corpus.main()
    lines = capfdbinary.readouterr().out.splitlines()
    assert sum(len(json.loads(line)["text"].encode()) for line in lines) >= 100_000


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"gb": 0.0}, "--gb 0.0: must be above 0"),
        ({"gb": 1.0, "file_mb": 0.0}, "--file-mb 0.0: must be above 0"),
        ({"gb": 1.0, "compress": True}, "--compress: give --folder"),
        ({"gb": 1.0, "seed": -1}, "--seed -1"),
    ],
)
def test_bad_input(flags: dict[str, Any], expected: str):
    with pytest.raises(UserError, match=expected):
        Arguments(**flags)


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    arguments = Arguments(gb=1e-6, folder=tmp_path / "file" / "below")
    with pytest.raises(UserError, match="below: Not a directory; give another --folder"):
        write_files(iter(lines_of(10)), arguments)


def test_a_corpus_without_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "in.jsonl").write_text('{"text": ""}\n')
    monkeypatch.setattr("sys.argv", ["synthetic_corpus.py", "--gb", "1", "--corpus", str(tmp_path / "in.jsonl")])
    with pytest.raises(UserError, match="no text"):
        synthetic_corpus.main()
