"""A validation split of few documents is near its fraction, or said not to be; nothing is lost where one is cut."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from deconattn.data import PackConfig, PackSummary, TokenCorpus, load_tokenizer
from deconattn.data.corpus_tools.verify import verify
from deconattn.data.packing.journal import Journal
from deconattn.data.packing.pack import pack
from tests.data.corpus_tools.shard_corpora import write_tokenizer


@pytest.fixture
def byte_tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json")


def text(tokens: int, word: str) -> str:
    """So many bytes, a token each, but for the separator's."""
    return ((word + " ") * (tokens // len(word) + 1))[: tokens - 1]


def run(tmp_path: Path, sizes: tuple[int, ...], out: str = "out", **flags: Any) -> PackSummary:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        if not (folder / f"{number}.txt").exists():
            (folder / f"{number}.txt").write_text(text(size, f"word{number}"))
    flags = {"workers": 1, **flags}
    return pack(PackConfig((str(folder),), str(tmp_path / "tokenizer.json"), tmp_path / out, **flags))


def tokens(summary: PackSummary) -> dict[str, int]:
    return {split: sum(shard.tokens for shard in summary.manifest.of_split(split)) for split in ("train", "val")}


def texts_of(folder: Path, split: str) -> list[str]:
    corpus = TokenCorpus(folder, split)
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    starts = [*corpus.document_starts(0, corpus.num_tokens).tolist(), corpus.num_tokens]
    return [tokenizer.decode(corpus.read(start, end - start)[:-1]) for start, end in pairwise(starts)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("flags", [{}, {"shuffle": 1}, {"shard_tokens": 1200}, {"shuffle": 1, "shard_tokens": 1200}])
def test_three_files(tmp_path: Path, byte_tokenizer: Path, flags: dict[str, Any]) -> None:
    summary = run(tmp_path, (500, 1000, 200_000), **flags)
    split = tokens(summary)
    assert sum(split.values()) == 201_501  # one separator more
    assert split["val"] == pytest.approx(2015, abs=10)
    assert "note" not in str(summary)
    expected = [text(500, "word0"), text(1000, "word1"), text(200_000, "word2")]
    [val] = texts_of(tmp_path / "out", "val")
    train = texts_of(tmp_path / "out", "train")
    assert sorted(part if part in expected else part + val for part in train) == sorted(expected)
    assert val.startswith(" word2")  # cut between words
    assert verify(tmp_path / "out", 10).faults == []


@pytest.mark.parametrize("flags", [{}, {"shuffle": 1}])
def test_a_large_fraction_leaves_a_part_for_training(
    tmp_path: Path, byte_tokenizer: Path, flags: dict[str, Any]
) -> None:
    split = tokens(run(tmp_path, (500, 1000, 20_000), val_fraction=0.99, **flags))
    assert split["train"] == pytest.approx(215, abs=10)
    assert sum(split.values()) == 21_501
    [train] = texts_of(tmp_path / "out", "train")
    assert train in text(20_000, "word2")
    assert text(20_000, "word2").removeprefix(train) in texts_of(tmp_path / "out", "val")


@pytest.mark.parametrize(
    ("sizes", "val", "noted"),
    [
        ((200_000, 500, 1000), 1000, True),  # a whole document, half of what was asked for
        ((200_000, 500, 2500), 2500, False),
        ((1000,) * 20, 1000, True),
        ((50, 40, 30), 30, True),  # too short to be cut
    ],
)
def test_a_last_document_of_few_tokens_stays_whole(
    tmp_path: Path, byte_tokenizer: Path, sizes: tuple[int, ...], val: int, noted: bool
) -> None:
    summary = run(tmp_path, sizes)
    assert tokens(summary) == {"train": sum(sizes) - val, "val": val}
    share = f"note: the validation split has {val / sum(sizes):.2%} of the tokens, not 1.00%"
    assert (share in str(summary)) == noted


def test_documents_chosen_by_number_are_told_of(tmp_path: Path, byte_tokenizer: Path) -> None:
    summary = run(tmp_path, (200, 300, 90_000, 200, 200, 200), val_fraction=0.3)
    held = tokens(summary)["val"] / summary.tokens
    assert held > 0.9
    assert f"note: the validation split has {held:.2%} of the tokens, not 30.00%" in str(summary)
    assert "note" not in str(run(tmp_path, (200, 90_000), "none", val_fraction=0.0))


@pytest.mark.parametrize("flags", [{}, {"shuffle": 1}])
def test_an_interrupted_pack_cuts_the_same(
    tmp_path: Path, byte_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any]
) -> None:
    monkeypatch.setattr("deconattn.data.packing.shuffle.RUN_BYTES", 600)
    monkeypatch.setattr("deconattn.data.packing.shuffle.RANGE_BYTES", 700)
    sizes = (500, 700, 300, 400, 9000)
    run(tmp_path, sizes, "whole", shard_tokens=800, **flags)
    append = Journal.append
    entries = 0
    for stop in range(1, 12):
        made = 0

        def dying(journal: Journal, entry: dict[str, Any], stop: int = stop) -> None:
            nonlocal made
            append(journal, entry)
            made += 1
            if made == stop:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Journal, "append", dying)
            try:
                run(tmp_path, sizes, "killed", shard_tokens=800, overwrite=True, **flags)
            except KeyboardInterrupt:
                entries += 1
        run(tmp_path, sizes, "killed", shard_tokens=800, overwrite=True, **flags)
        assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert entries >= 2


def test_the_summary_and_the_report_name_what_is_left_out(tmp_path: Path, byte_tokenizer: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("README.md", "a.pdf", "b.pdf", ".hidden.txt"):
        (tmp_path / "in" / name).write_text("x")
    summary = run(tmp_path, (300, 200))
    assert "left out 4 files of the folders: 2 .pdf, 1 .md, 1 hidden" in str(summary)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["files_left_out"] == {".md": 1, ".pdf": 2, "hidden": 1}
