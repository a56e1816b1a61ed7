"""Two tokenizers that can give different ids share no fingerprint; one that is written otherwise keeps it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from deconattn.data import load_tokenizer
from deconattn.data.tokenizing.fingerprints import fingerprint, first_fingerprint

Kind = Callable[[str], Path]


@pytest.fixture(scope="module")
def document(kind: Kind) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((kind("gemma") / "tokenizer.json").read_text())
    return content


def changed(document: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    """The document with one value changed."""
    other = copy.deepcopy(document)
    part = other
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return other


def leaves(part: Any, *path: Any) -> list[tuple[Any, ...]]:
    """The paths of all values that are neither lists nor objects, of long lists the first and last only."""
    if isinstance(part, dict):
        return [leaf for key in list(part)[:40] for leaf in leaves(part[key], *path, key)]
    if isinstance(part, list):
        places = range(len(part)) if len(part) < 10 else (0, len(part) - 1)
        return [leaf for place in places for leaf in leaves(part[place], *path, place)]
    return [path]


@pytest.mark.parametrize("name", ["gemma", "llama2", "llama3", "unigram", "word_piece"])
def test_no_value_escapes(kind: Kind, name: str) -> None:
    whole = json.loads((kind(name) / "tokenizer.json").read_text())
    found = {fingerprint(whole, "token")}
    paths = leaves(whole)
    for path in paths:
        part = whole
        for key in path:
            part = part[key]
        other = (not part) if isinstance(part, bool) else "x" if part is None else part * 2 + type(part)(1)
        found.add(fingerprint(changed(whole, *path, value=other), "token"))
    assert len(paths) > 40
    assert len(found) == len(paths) + 1


def test_the_pattern_of_a_byte_level_pre_tokenizer(document: dict[str, Any], tmp_path: Path) -> None:
    document = copy.deepcopy(document)
    document["model"]["vocab"]["eĠ"] = 453  # a word that goes on after a space, which only the pattern keeps apart
    document["model"]["merges"].insert(0, ["e", "Ġ"])
    found, ids = set(), set()
    for use_regex in (True, False):
        path = tmp_path / f"{use_regex}.json"
        path.write_text(json.dumps(changed(document, "pre_tokenizer", "use_regex", value=use_regex)))
        tokenizer = load_tokenizer(path)
        found.add(tokenizer.fingerprint)
        ids.add(tuple(tokenizer.encode_batch(["the the the king, the king"])[0].tolist()))
        assert tokenizer.fingerprint.startswith("v2:")
    assert len(found) == 2
    assert len(ids) == 2


def test_how_special_tokens_are_read_counts(document: dict[str, Any]) -> None:
    assert fingerprint(document, "text") != fingerprint(document, "token")


def test_what_the_library_writes_again_is_the_same(document: dict[str, Any]) -> None:
    again = json.loads(tokenizers.Tokenizer.from_str(json.dumps(document)).to_str())
    old = copy.deepcopy(document)
    del old["pre_tokenizer"]["use_regex"], old["model"]["byte_fallback"], old["model"]["dropout"]
    old["model"]["merges"] = [" ".join(merge) for merge in old["model"]["merges"]]
    backwards = dict(reversed(document.items()))
    assert {fingerprint(one, "token") for one in (again, old, backwards)} == {fingerprint(document, "token")}


def test_an_earlier_version_s_is_recognised(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    tokenizer = load_tokenizer(path)
    known = first_fingerprint(document)
    assert len(known) == 64
    assert tokenizer.is_known_as(known) and tokenizer.is_known_as(tokenizer.fingerprint)
    other = changed(document, "model", "merges", value=document["model"]["merges"][:-1])
    assert not tokenizer.is_known_as(first_fingerprint(other))
    assert not load_tokenizer(path, None, "text").is_known_as(known)


def test_dropout_is_switched_off_and_said(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, random = tmp_path / "plain.json", tmp_path / "random.json"
    plain.write_text(json.dumps(document))
    random.write_text(json.dumps(changed(document, "model", "dropout", value=0.5)))
    expected, tokenizer = load_tokenizer(plain), load_tokenizer(random)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: {random}: its BPE dropout of 0.5 is switched off")
    text = "the king and the queen of the castle"
    assert {tuple(ids.tolist()) for ids in tokenizer.encode_batch([text] * 50)} == {
        tuple(expected.encode_batch([text])[0].tolist())
    }
    assert tokenizer.fingerprint == expected.fingerprint
    tokenizer.save(tmp_path)
    load_tokenizer(tmp_path)
    assert not capsys.readouterr().err
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["dropout"] is None
    assert tokenizer.is_known_as(first_fingerprint(json.loads(random.read_text())))
