"""The tokenizer in a packed folder is the one that packed it, or the folder is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deconattn.commands import shards
from deconattn.data import PackConfig, SampleStream, TokenCorpus, load_tokenizer, read_manifest
from deconattn.data.corpus_tokenizer import load_corpus_tokenizer, note_of
from deconattn.data.corpus_tools.rewrite import merge, recut
from deconattn.data.corpus_tools.verify import verify
from deconattn.data.manifest import write_manifest
from deconattn.data.packing.pack import pack
from deconattn.data.shards import ShardSchema, ShardWriter
from deconattn.data.tokenizing.fingerprints import first_fingerprint
from deconattn.errors import UserError
from deconattn.launch.preflight import checked_flags
from tests.conftest import SMALL

Kind = Callable[[str], Path]


@pytest.fixture(scope="module")
def packed(kind: Kind, demo_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of the Gemma kind. Do not write into it."""
    folder = tmp_path_factory.mktemp("packed")
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in demo_texts[:6]))
    pack(PackConfig((str(source),), str(kind("gemma")), folder / "out", workers=1, val_fraction=0.0))
    return folder / "out"


@pytest.fixture
def corpus(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "corpus")


@pytest.fixture
def old(packed: Path, tmp_path: Path) -> Path:
    """As an earlier version packed it: a fingerprint of its kind, `</s>` (which is not special), nothing beside."""
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(packed / "tokenizer.json", folder)
    known = first_fingerprint(json.loads((packed / "tokenizer.json").read_text()))
    tokenizer = load_tokenizer(packed, "</s>")
    schema = ShardSchema(known, tokenizer.vocab_size, tokenizer.eos_token_id, "test")
    with ShardWriter(folder / "train-00000.arrow", "train", schema) as writer:
        for ids in tokenizer.encode_batch(["one two three " * 30, "four five"]):
            writer.append(np.append(ids, np.uint32(tokenizer.eos_token_id)))
    assert writer.entry is not None
    content = dataclasses.asdict(schema.manifest((writer.entry,)))
    del content["bos_token_id"], content["special_tokens"]
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def flags(*folders: Path) -> list[str]:
    return [*SMALL, "--data", *map(str, folders)]


def damage_a_merge(content: str) -> str:
    document = json.loads(content)
    document["model"]["merges"][0], document["model"]["merges"][1] = document["model"]["merges"][1::-1]
    return json.dumps(document)


def without_the_pattern(content: str) -> str:
    document = json.loads(content)
    document["pre_tokenizer"]["use_regex"] = False
    return json.dumps(document)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("tokenizer.json", lambda content: content[:-100], "is not a tokenizer.json"),
        ("tokenizer.json", damage_a_merge, "fingerprint v2:.* in the manifest"),
        ("tokenizer.json", without_the_pattern, "fingerprint v2:.* in the manifest"),
        ("tokenizer_config.json", lambda content: content.replace("<eos>", "<bos>"), "other settings"),
        ("tokenizer_config.json", lambda content: content.replace("false", "true"), "other settings"),
        ("tokenizer_config.json", lambda content: content[:-5], "is not a JSON object"),
    ],
)
def test_a_changed_file_does_not_train(corpus: Path, name: str, damage: Callable[[str], str], message: str) -> None:
    path = corpus / name
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=message) as caught:
        checked_flags(flags(corpus))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert str(verify(corpus, 10).faults[0]).startswith(str(path))


def test_a_lost_tokenizer_does_not_train(corpus: Path) -> None:
    (corpus / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="holds no tokenizer.json"):
        checked_flags(flags(corpus))


def test_a_sound_one_trains_without_a_word(corpus: Path) -> None:
    checked_flags(flags(corpus))
    assert note_of(corpus, read_manifest(corpus)) is None
    (corpus / "tokenizer_config.json").unlink()  # the manifest has it all
    assert load_corpus_tokenizer(corpus, read_manifest(corpus)).eos_token_id == 1


def test_a_corpus_of_an_earlier_version_stays_usable(old: Path, tmp_path: Path) -> None:
    manifest = read_manifest(old)
    assert (manifest.bos_token_id, manifest.special_tokens) == (None, None)
    tokenizer = load_corpus_tokenizer(old, manifest)
    assert tokenizer.separator == "</s>"
    checked_flags(flags(old))
    verdict = verify(old, 10)
    assert verdict.faults == []
    assert verdict.notes == [note_of(old, manifest)]
    assert "an earlier version packed it" in verdict.notes[0]
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).separator == "</s>"  # as checkpoints and exports carry it on
    document = json.loads((old / "tokenizer.json").read_text())
    document["model"]["merges"].pop()
    (old / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="fingerprint"):
        checked_flags(flags(old))


def test_an_earlier_version_s_corpus_blends_and_is_renewed(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    recut(old, new, 10_000, (0, None), None)
    manifest = read_manifest(new)
    assert manifest.tokenizer_fingerprint.startswith("v2:") and manifest.special_tokens == "token"
    assert verify(new, 10).faults == [] and verify(new, 10).notes == []
    SampleStream([(TokenCorpus(old), 1.0), (TokenCorpus(new), 1.0)], 8, seed=0)
    with pytest.raises(UserError, match=f"split {old} OUT, and merge that"):
        merge(tmp_path / "both", [new, old])
    merge(tmp_path / "both", [new, shutil.copytree(new, tmp_path / "copy")])
    assert verify(tmp_path / "both", 10).faults == []


@pytest.mark.parametrize("change", [{"eos_token_id": 2}, {"bos_token_id": 2}, {"tokenizer_fingerprint": "v2:other"}])
def test_what_was_tokenized_differently_does_not_blend(
    packed: Path, corpus: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    write_manifest(corpus, dataclasses.replace(read_manifest(corpus), **change))  # type: ignore[arg-type]
    [name] = change
    with pytest.raises(UserError, match=f"packed with different tokenizers \\({name}"):
        SampleStream([(TokenCorpus(packed), 1.0), (TokenCorpus(corpus), 1.0)], 8, seed=0)
    with pytest.raises(UserError, match=f"different tokenizers \\({name}"):
        merge(tmp_path / "both", [packed, corpus])


def test_info_tells_the_settings(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(corpus, dataclasses.replace(read_manifest(corpus), bos_token_id=2))
    assert shards.main(["info", str(corpus)]) == 0
    line = "separator 1 '<eos>', documents begin with 2; special tokens spelled in a text are read as token"
    assert line in capsys.readouterr().out
    [fault, *_] = verify(corpus, 1).faults
    assert "does not begin with the id 2" in fault
