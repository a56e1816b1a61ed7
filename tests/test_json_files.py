"""JSON files that somebody else wrote: a value, or one error, and no waiting."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deconattn.json_files import open_regular, parse_json, read_json, reason


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_read(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    for read in (read_json, open_regular):
        with pytest.raises(OSError, match="no regular file") as caught:
            read(tmp_path / "x")
        assert str(caught.value.filename) == str(tmp_path / "x") and reason(caught.value) == "no regular file"


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"\xef\xbb\xbf{}", b"", b"{}x", b"\0", b'["\\u0000"]']
)
def test_what_is_no_json_is_one_error(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (its kinds are many)
        read_json(tmp_path / "x")
    assert reason(caught.value) and "\n" not in reason(caught.value)


def test_numbers_that_json_has_not() -> None:
    assert parse_json(b"[Infinity]") == [math.inf]
    with pytest.raises(ValueError, match="NaN is no number of JSON's"):
        parse_json(b'{"lr": NaN}', finite=True)


def test_a_reason_is_one_line() -> None:
    assert reason(ValueError("\n first\nsecond")) == "first"
    assert reason(KeyError()) == "KeyError"
