"""What a pack does with the tokenizer that it is given: separators, beginnings, special tokens, said and stored."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deconattn.data import PackConfig, TokenCorpus, load_tokenizer, read_manifest
from deconattn.data.corpus import read_documents
from deconattn.data.packing.pack import pack
from deconattn.errors import UserError
from tests.data.tokenizing.kinds import write_json

Kind = Callable[[str], Path]
TEXTS = ["one <bos> two", "three</s>", "<eos>"]


@pytest.fixture
def gemma(kind: Kind, tmp_path: Path) -> Path:
    return shutil.copytree(kind("gemma"), tmp_path / "gemma")


def packed(tmp_path: Path, tokenizer: Path | str, texts: list[str] = TEXTS, **flags: Any) -> tuple[Path, str]:
    """The packed folder and the summary."""
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    flags = {"workers": 1, "val_fraction": 0.0, **flags}
    return tmp_path / "out", str(pack(PackConfig((str(source),), str(tokenizer), tmp_path / "out", **flags)))


def documents(folder: Path) -> list[list[int]]:
    manifest = read_manifest(folder)
    return [ids.tolist() for _, ids in read_documents(folder, manifest, "train")]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_of_several_that_a_model_names(gemma: Path, tmp_path: Path, workers: int) -> None:
    write_json(gemma, generation_config={"eos_token_id": [3, 1]})
    folder, summary = packed(tmp_path, gemma, workers=workers)
    assert f"separator '<unk>' (id 3), named by {gemma / 'generation_config.json'} (the first of 2)" in summary
    assert "are read as those tokens (--special-tokens text: as text)" in summary
    assert [ids[-1] for ids in documents(folder)] == [3, 3, 3]
    assert documents(folder)[2] == [1, 3]
    assert read_manifest(folder).eos_token_id == 3
    assert load_tokenizer(folder).eos_token_id == 3
    assert TokenCorpus(folder).manifest.special_tokens == "token"


def test_flags_of_the_user(gemma: Path, tmp_path: Path) -> None:
    write_json(gemma, generation_config={"eos_token_id": [3, 1]})
    folder, summary = packed(tmp_path, gemma, eos="</s>", bos="<bos>", special_tokens="text")
    assert "separator '</s>' (id 450), named by --eos" in summary
    assert "note: '</s>' (id 450) is no special token: a text that holds it seems to end there" in summary
    assert "special tokens spelled in a text are read as text" in summary
    library = load_tokenizer(gemma, "</s>", "text")
    assert documents(folder) == [[2, *ids.tolist(), 450] for ids in library.encode_batch(TEXTS)]
    manifest = read_manifest(folder)
    assert (manifest.eos_token_id, manifest.bos_token_id, manifest.special_tokens) == (450, 2, "text")


def test_a_single_document_that_is_cut_begins_twice(gemma: Path, tmp_path: Path) -> None:
    folder, _ = packed(tmp_path, gemma, texts=["some words " * 20], bos="<bos>", val_fraction=0.3)
    for split in ("train", "val"):
        corpus = TokenCorpus(folder, split)
        tokens = corpus.read(0, corpus.num_tokens).tolist()
        assert (tokens[0], tokens[-1], tokens.count(2)) == (2, 1, 1)


def test_what_the_library_puts_first_comes_only_when_asked_for(kind: Kind, tmp_path: Path) -> None:
    folder, _ = packed(tmp_path, kind("llama3"), texts=["one two", "three"])
    assert all(0 not in ids for ids in documents(folder))
    shutil.rmtree(folder)
    folder, _ = packed(tmp_path, kind("llama3"), texts=["one two", "three"], bos="<|begin_of_text|>")
    assert [ids.count(0) for ids in documents(folder)] == [1, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"eos": "[EOS]"}, r"--eos: .* has no token '\[EOS\]' .*<eos>"),
        ({"bos": "[CLS]"}, r"--bos: .* has no token '\[CLS\]' .*<bos>"),
    ],
)
def test_tokens_that_are_not_there(gemma: Path, tmp_path: Path, flags: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        packed(tmp_path, gemma, **flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gemma", "in.jsonl"]


def test_a_trained_tokenizer_takes_them_too(tmp_path: Path, demo_texts: list[str]) -> None:
    folder, summary = packed(tmp_path, "train:bpe:400", texts=demo_texts[:3], eos="<s>", bos="</s>")
    assert "separator '<s>' (id 1), named by --eos" in summary
    assert [(ids[0], ids[-1]) for ids in documents(folder)] == [(2, 1)] * 3
    assert load_tokenizer(folder).separator == "<s>"
