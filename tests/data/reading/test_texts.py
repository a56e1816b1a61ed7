import threading
from itertools import islice
from pathlib import Path

import pytest

from deconattn.data.reading.input_files import find_inputs
from deconattn.data.reading.texts import Tally, documents_of, read_texts, sample_texts
from deconattn.errors import UserError
from tests.data.reading.mutations import NAMES, encode

TEXTS = ["  two  spaces\tand\n\n\nnewlines \r\n", "naïve 日本語 🙂\u200d", "\x00 control \x07", "x" * 70_000, "end"]


@pytest.mark.parametrize("name", NAMES)
def test_documents_come_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encode(name, TEXTS))
    expected = ["".join(TEXTS)] if ".txt" in name else TEXTS
    assert list(read_texts([str(path)])) == expected
    assert list(sample_texts(find_inputs([str(path)]), "text")) == expected


def test_bad_lines_are_judged_by_file_and_line(tmp_path: Path) -> None:
    names = ["a.jsonl", "b.jsonl", "c.parquet"]
    for name in names:
        (tmp_path / name).write_bytes(encode(name, ["x" * 600_000, "y" * 600_000, None, " ", "z"]))
    tally = Tally(max_bad=3)
    texts = list(documents_of(find_inputs([str(tmp_path)]), "text", tally))
    assert [text[0] for text in texts] == ["x", "y", "z"] * 3
    assert tally.examples == [f"{tmp_path / name}:3: field 'text' is not text" for name in names]
    assert (tally.bad, tally.empty) == (3, 3)
    with pytest.raises(UserError, match=rf"c\.parquet:3: .* bad line 3, first {tmp_path}/a\.jsonl:3.*--max-bad \(2\)"):
        list(read_texts([str(tmp_path)], max_bad=2))


def test_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    assert list(read_texts([str(tmp_path)], "body")) == ["x"]


def test_a_missing_input_is_told_at_once() -> None:
    with pytest.raises(UserError, match="no such file"):
        read_texts(["/nowhere/a.txt"])


def test_leaving_early_ends_the_thread(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(encode("a.jsonl", ["word " * 1000] * 5000))
    texts = read_texts([str(tmp_path)])
    assert len(list(islice(texts, 3))) == 3
    del texts
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_a_sample_takes_turns_and_spreads(tmp_path: Path) -> None:
    for number in range(70):
        content = b"nonsense\n" + encode("a.jsonl", [f"{number} {turn}" for turn in range(1 + number % 2)])
        (tmp_path / f"{number:02}.jsonl").write_bytes(content)
    inputs = find_inputs([str(tmp_path)])
    numbers = range(0, 70, 3)
    expected = [f"{number} 0" for number in numbers] + [f"{number} 1" for number in numbers if number % 2]
    assert list(sample_texts(inputs, "text")) == expected


def test_a_sample_of_a_text_comes_in_parts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a line\n" * 400_000)
    parts = list(sample_texts(find_inputs([str(tmp_path)]), "text"))
    assert len(parts) == 3
    assert "".join(parts) == "a line\n" * 400_000


def test_stdin_is_no_sample() -> None:
    with pytest.raises(UserError, match="stdin can be read once only"):
        list(sample_texts(find_inputs(["-"]), "text"))
