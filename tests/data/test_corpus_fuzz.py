"""Packed corpora with any damage: training, `shards info` and `shards verify` give what is there, or one line."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from deconattn.data import SampleStream, TokenCorpus
from deconattn.data.corpus import read_documents
from deconattn.data.corpus_tools.info import corpus_info
from deconattn.data.corpus_tools.verify import verify
from deconattn.data.manifest import MANIFEST_NAME, read_manifest
from deconattn.errors import UserError
from tests.data.corpus_tools.shard_corpora import make_corpus, rewrite, write_tokenizer
from tests.data.reading.mutations import mutate

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 2**31, 2**63, 10**40, 0.5, 1e300, float("nan"), "", "x", "..", "/etc/passwd", "uint16",
    "uint64", "val", "train-00001.arrow", "train-00000.arrow\0", "\x1b[2J.arrow", "a\nb", [], {}, [[]], {"name": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("deconattn.data.shards.TOKENS_PER_RECORD_BATCH", 25)
        return make_corpus(folder / "sound", write_tokenizer(folder / "tokenizer.json"))


def field(folder: Path, random: Random) -> None:
    """Another value, a missing or a surplus field, anywhere in the manifest."""
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    place: Any = random.choice([content, content, *content["shards"], content["shards"]])
    key = random.randrange(len(place)) if isinstance(place, list) else random.choice([*place, "surplus"])
    if random.random() < 0.2 and key != "surplus":
        del place[key]
    elif random.random() < 0.2:
        place[key] = dict(random.choice(content["shards"]))
    else:
        place[key] = random.choice(ODD)
    path.write_text(json.dumps(content))


def manifest_bytes(folder: Path, random: Random) -> None:
    path = folder / MANIFEST_NAME
    content = path.read_bytes()
    nested = random.choice((b"[", b'{"shards":')) * 100_000
    path.write_bytes(nested if random.random() < 0.1 else mutate(content, random))


def a_shard(folder: Path, random: Random) -> Path:
    return random.choice(sorted(folder.glob("*.arrow")))


def shard_bytes(folder: Path, random: Random) -> None:
    path = a_shard(folder, random)
    path.write_bytes(mutate(path.read_bytes(), random))


def shard_and_checksum(folder: Path, random: Random) -> None:
    """Damage that the checksum agrees with."""
    path = a_shard(folder, random)
    rewrite(folder, path.name, mutate(path.read_bytes(), random) + b"x" * random.choice((0, 0, 4)) or b"x")


def swapped(folder: Path, random: Random) -> None:
    one, other = a_shard(folder, random), a_shard(folder, random)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def swapped_in_the_manifest(folder: Path, random: Random) -> None:
    """Each of two files is said to be the other."""
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    one, other = random.sample(content["shards"], 2)
    for key in random.choice((("name",), ("name", "split"), ("split",), ("sha256",), ("bytes", "sha256"))):
        one[key], other[key] = other[key], one[key]
    path.write_text(json.dumps(content))


def no_file(folder: Path, random: Random) -> None:
    """Something else in a file's place."""
    path = random.choice([folder / MANIFEST_NAME, a_shard(folder, random), folder / "tokenizer.json"])
    path.unlink()
    kind = random.randrange(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(path.name)
    elif kind == 3:
        path.symlink_to(a_shard(folder, random).name)
    elif kind == 4:
        path.touch()


DAMAGES = (field, manifest_bytes, shard_bytes, shard_and_checksum, swapped, swapped_in_the_manifest, no_file)


@contextmanager
def no_hang() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def train(folder: Path) -> None:
    """All that training reads."""
    corpus = TokenCorpus(folder)
    stream = SampleStream([(corpus, 1.0)], 5, seed=0)
    stream.batch(range(stream.num_samples), doc_mask=True)
    corpus.document_lengths()
    assert corpus.tokenizer_path.is_file()


def print_documents(folder: Path) -> None:
    manifest = read_manifest(folder)
    for split in ("train", "val"):
        for _ in read_documents(folder, manifest, split):
            pass


def told(action: Callable[[Path], Any], folder: Path) -> None:
    """It comes through, or says why not in one line."""
    message = "none"
    try:
        action(folder)
    except UserError as error:
        message = str(error)
    assert message and "\n" not in message


def state(folder: Path) -> dict[str, Any]:
    """What the checksums and the schema speak of; `source` is free text, and no `bos_token_id` is as good as null."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with suppress(KeyError, ValueError, TypeError, RecursionError):
        found[MANIFEST_NAME] = {"bos_token_id": None, **json.loads(found[MANIFEST_NAME]), "source": ""}
    return found


def run(sound: Path, folder: Path, seeds: range) -> None:
    accepted = 0
    for seed in seeds:
        random = Random(seed)
        damage = DAMAGES[seed % len(DAMAGES)]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        damage(folder, random)
        with no_hang():
            told(train, folder)
            told(corpus_info, folder)
            told(print_documents, folder)
            verdict = verify(folder, 5)
        assert all(fault and "\n" not in fault for fault in verdict.faults)
        if not verdict.faults:
            accepted += 1
            if damage is not shard_and_checksum:
                assert state(folder) == state(sound), (seed, damage)
    assert accepted < len(seeds) // 4


def test_any_damage(sound: Path, tmp_path: Path) -> None:
    run(sound, tmp_path / "corpus", range(140))


@pytest.mark.slow
def test_much_damage(sound: Path, tmp_path: Path) -> None:
    run(sound, tmp_path / "corpus", range(140, 2400))


def test_the_sound_corpus_is_accepted(sound: Path) -> None:
    train(sound)
    print_documents(sound)
    assert verify(sound, 5).faults == []
    assert corpus_info(sound).splits["train"].documents == 6


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shard_of_the_other_split_is_not_trained_on(sound: Path, tmp_path: Path, split: str) -> None:
    folder = shutil.copytree(sound, tmp_path / "corpus")
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    train_entry = next(entry for entry in content["shards"] if entry["split"] == "train")
    val_entry = next(entry for entry in content["shards"] if entry["split"] == "val")
    (folder / train_entry["name"]).rename(folder / "kept")
    (folder / val_entry["name"]).rename(folder / train_entry["name"])
    (folder / "kept").rename(folder / val_entry["name"])
    for key in ("bytes", "sha256", "tokens", "documents", "max_token_id"):
        train_entry[key], val_entry[key] = val_entry[key], train_entry[key]
    path.write_text(json.dumps(content))
    corpus = TokenCorpus(folder, split)
    with pytest.raises(
        UserError, match=rf"{split}-00000.arrow is damaged \(its split is .*, {split} in the manifest\)"
    ):
        corpus.read(0, 3)


def test_tokens_are_read_as_the_manifest_says(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "corpus")
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text().replace("uint16", "uint32"))
    with pytest.raises(UserError, match="its tokens are list<item: uint16>, not lists of uint32"):
        TokenCorpus(folder).read(0, 3)
    assert np.dtype(read_manifest(folder).dtype) == np.uint32
