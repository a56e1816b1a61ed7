"""Where a prompt comes from."""

import io
from pathlib import Path

import pytest

from deconattn.errors import UserError
from deconattn.generation.text_io import read_prompt


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def stdin(content: bytes, kind: type[io.TextIOWrapper] = io.TextIOWrapper) -> io.TextIOWrapper:
    return kind(io.BytesIO(content), encoding="ascii")


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_flag_a_file_and_a_pipe_agree(tmp_path: Path, ending: str) -> None:
    text = "Où?\r\n\n ё "
    (tmp_path / "prompt").write_bytes((text + ending).encode())
    assert read_prompt(text, None, stdin(b"not read")) == text
    assert read_prompt(None, tmp_path / "prompt", stdin(b"not read")) == text
    assert read_prompt(None, None, stdin((text + ending).encode())) == text


def test_only_one_line_end_is_taken_and_none_from_the_flag() -> None:
    assert read_prompt(None, None, stdin(b"a\n\n")) == "a\n"
    assert read_prompt("a\n", None, stdin(b"")) == "a\n"


def test_what_is_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("né".encode("latin-1"))
    (tmp_path / "blank").write_bytes(b"\n")
    for text, file, where, message in (
        ("a", tmp_path / "latin", stdin(b""), "--prompt and --file are both given"),
        (None, None, stdin(b"", Terminal), "there is no prompt: give --prompt TEXT or --file PATH"),
        (None, None, stdin(b"\n"), "the prompt is empty (standard input)"),
        (None, tmp_path / "blank", stdin(b"a"), "the prompt is empty (--file"),
        ("", None, stdin(b"a"), "the prompt is empty (--prompt)"),
        ("a\udcff", None, stdin(b""), "--prompt: not UTF-8 (byte 1)"),
        (None, tmp_path / "latin", stdin(b""), "latin: not UTF-8 (byte 1)"),
        (None, tmp_path / "none", stdin(b""), "none: No such file"),
        (None, tmp_path, stdin(b""), "Is a directory"),
    ):
        with pytest.raises(UserError) as caught:
            read_prompt(text, file, where)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
