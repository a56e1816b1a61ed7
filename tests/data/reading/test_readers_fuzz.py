"""Whatever a file holds: good documents or one clear line, the same every time."""

import re
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deconattn.data.reading import columns, sources
from deconattn.data.reading.input_files import find_inputs
from deconattn.data.reading.texts import Tally, documents_of
from deconattn.errors import UserError
from tests.data.reading.mutations import NAMES, encode, mutate, odd_lines

TEXTS = ["alpha beta\n" * 3, "naïve 日本語 🙂", "x", None, "", "repeat " * 200, "repeat " * 200, "z" * 500, "end"]
Outcome = tuple[list[str], int, int] | str
Reader = Callable[[str, bytes], Outcome]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Read a file of that name and content: documents, bad lines and empty ones, or the error's message."""
    folder = tmp_path_factory.mktemp("fuzz")

    def read(name: str, content: bytes) -> Outcome:
        path = folder / name
        path.write_bytes(content)
        tally = Tally(max_bad=10**9)
        try:
            documents = list(documents_of(find_inputs([str(path)]), "text", tally))
        except UserError as error:
            return str(error).replace(str(path), name)
        return documents, tally.bad, tally.empty

    return read


def check(outcome: Reader, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Read twice, the second time with other sizes of what is read at once."""
    first = outcome(name, content)
    with monkeypatch.context() as patched:
        patched.setattr(sources, "_CHUNK", 61)
        patched.setattr(columns, "_ROWS", 2)
        second = outcome(name, content)
    if isinstance(first, str) and isinstance(second, str):
        assert name in first and "\n" not in first
        # How much comes out before the damage shows depends on how much is asked for.
        first, second = (re.sub(r"after [\d,]+ decompressed", "after N decompressed", text) for text in (first, second))
        if ".json." in name:  # so does which of two faults is met first, that of the codec or that of the JSON
            first, second = (text.partition(" damaged")[0] for text in (first, second))
    assert first == second
    if not isinstance(first, str):
        for document in first[0]:
            assert document.strip()
            document.encode()
    return first


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files(outcome: Reader, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(name, TEXTS)
    whole = check(outcome, name, content, monkeypatch)
    assert not isinstance(whole, str)
    results = [check(outcome, name, mutate(content, Random(seed)), monkeypatch) for seed in range(90)]
    damaged = sum(isinstance(result, str) for result in results)
    assert damaged == 0 if name in ("a.txt", "a.jsonl") else damaged > 45


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_odd_lines(outcome: Reader, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = 0
    for seed in range(150):
        lines = odd_lines(Random(seed))
        content = lines if name == "a.jsonl" else encode("a.txt.zst", [lines.decode(errors="replace")])
        result = check(outcome, name, content, monkeypatch)
        assert not isinstance(result, str)
        bad += result[1]
    assert bad > 100


@pytest.mark.parametrize("name", NAMES)
def test_every_cut(outcome: Reader, name: str) -> None:
    """A file that ends early is an error, but for those whose lines stand for themselves."""
    content = encode(name, ["first", "second"])
    step = max(len(content) // 40, 1)
    for end in range(0, len(content), step):
        result = outcome(name, content[:end])
        assert isinstance(result, tuple) == (name in ("a.txt", "a.jsonl")), end


ANY = dict(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet", "file.arrow", "stream.arrow"])
def test_any_bytes(outcome: Reader, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @settings(**ANY)
    @given(st.binary(max_size=200))
    def run(content: bytes) -> None:
        check(outcome, name, content, monkeypatch)

    run()
