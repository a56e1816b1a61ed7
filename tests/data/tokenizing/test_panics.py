"""A pattern that no library can match in reasonable time ends in a line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deconattn.data import load_tokenizer
from deconattn.data.tokenizing import memory
from deconattn.data.tokenizing.fast import load_fast_tokenizer
from deconattn.data.tokenizing.panics import panics_told
from deconattn.errors import UserError

Kind = Callable[[str], Path]
_SLOW = """
import sys, time
from deconattn.data.tokenizing import panics
panics._PATIENCE = 0.2
with panics.panics_told("tokenizer.json"):
    print("not lost", file=sys.stderr, flush=True)
    time.sleep(100)
"""


def with_pattern(source: Path, folder: Path, pattern: str) -> Path:
    """A tokenizer.json whose words a pattern cuts."""
    document = json.loads((source / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, document["pre_tokenizer"]]}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(("pattern", "text"), [("(a+)+$", "a" * 40 + "b"), ("(?:(?:x+x+)+y)", "x" * 50)])
def test_a_catastrophic_pattern(
    kind: Kind, tmp_path: Path, capfd: pytest.CaptureFixture[str], pattern: str, text: str
) -> None:
    path = with_pattern(kind("gemma"), tmp_path, pattern)
    tokenizer = load_tokenizer(path)
    with pytest.raises(UserError, match="gives up on a text .*mend the regular expressions") as caught:
        tokenizer.encode_batch(["fine", text])
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert tokenizer.encode_batch(["fine"])[0].tolist()
    with pytest.raises(UserError, match="gives up on a text"):
        load_fast_tokenizer(path, [text]).encode_flat([text])
    assert "panicked" not in capfd.readouterr().err


def test_other_errors_and_what_is_printed_pass_through(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), panics_told("x"):
        os.write(2, b"kept\n")
        raise ZeroDivisionError
    assert capfd.readouterr().err == "kept\n"


def test_what_does_not_come_back_is_ended() -> None:
    done = subprocess.run([sys.executable, "-c", _SLOW], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: tokenizer.json has been at a text for 0 s; mend the regular expressions")


@pytest.mark.parametrize("name", ["gemma", "sentencepiece_unigram"])
def test_a_long_word_without_memory_for_it(kind: Kind, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tokenizer = load_tokenizer(kind(name))
    monkeypatch.setattr(memory, "_LONG", 1000)
    expected = tokenizer.encode_batch(["b" * 5000])[0]
    monkeypatch.setattr(memory, "_free", lambda: 100_000)
    assert len(tokenizer.encode_batch(["b" * 999])[0])
    with pytest.raises(UserError, match="take its library some .* GiB of memory.*cut long documents up"):
        tokenizer.encode_batch(["b" * 5000])
    monkeypatch.undo()
    assert tokenizer.encode_batch(["b" * 5000])[0].tolist() == expected.tolist()
