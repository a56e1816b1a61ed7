import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deconattn.data import PackConfig, PackSummary, TokenCorpus, load_tokenizer, read_manifest, verify_checksums
from deconattn.data.packing.pack import pack
from deconattn.errors import UserError


def write_lines(path: Path, texts: Sequence[str]) -> Path:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if path.suffix == ".jsonl":
        path.write_bytes(lines)
    else:
        with pa.CompressedOutputStream(str(path), {".gz": "gzip", ".zst": "zstd"}[path.suffix]) as stream:
            stream.write(lines)
    return path


def run(inputs: Path | Sequence[Path], tokenizer: Path | str, out: Path, **options: Any) -> PackSummary:
    paths = [inputs] if isinstance(inputs, Path) else inputs
    options = {"workers": 1, **options}
    return pack(PackConfig(inputs=tuple(map(str, paths)), tokenizer=str(tokenizer), out=out, **options))


def documents(out: Path, split: str) -> list[str]:
    """The texts of a split, decoded; checks the separators on the way."""
    corpus = TokenCorpus(out, split)
    tokenizer = load_tokenizer(corpus.tokenizer_path)
    starts = corpus.document_starts(0, corpus.num_tokens)
    texts = []
    for start, end in zip(starts, [*starts[1:], corpus.num_tokens], strict=True):
        tokens = corpus.read(int(start), int(end - start))
        assert tokens[-1] == tokenizer.eos_token_id == corpus.manifest.eos_token_id
        texts.append(tokenizer.decode(tokens[:-1]))
    return texts


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("kind", ["hf", "sp"])
def test_round_trip(tmp_path: Path, texts: list[str], hf_tokenizer: Path, sp_model: Path, name: str, kind: str) -> None:
    if name == "a.parquet":
        pq.write_table(pa.table({"text": texts}), tmp_path / name)
    else:
        write_lines(tmp_path / name, texts)
    summary = run(tmp_path / name, hf_tokenizer if kind == "hf" else sp_model, tmp_path / "out", val_fraction=0.3)
    train, val = documents(tmp_path / "out", "train"), documents(tmp_path / "out", "val")
    assert sorted(train + val) == sorted(texts)
    assert train == [text for text in texts if text in train]  # in order
    assert summary.documents == len(texts)
    assert summary.tokens == TokenCorpus(tmp_path / "out").num_tokens + TokenCorpus(tmp_path / "out", "val").num_tokens
    assert summary.text_bytes == sum(len(text.encode()) for text in texts)
    verify_checksums(tmp_path / "out")


def test_a_single_text_file_is_cut_for_validation(tmp_path: Path, demo_texts: list[str], sp_model: Path) -> None:
    text = "".join(demo_texts[:10])
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    run(tmp_path / "a.txt", sp_model, tmp_path / "out", val_fraction=0.1)
    train, val = documents(tmp_path / "out", "train"), documents(tmp_path / "out", "val")
    assert (len(train), len(val)) == (1, 1)
    assert train[0] + val[0] == text
    assert 0.09 < len(val[0]) / len(text) < 0.11


def test_demo_corpus_with_a_trained_tokenizer(demo_folder: Path, demo_texts: list[str]) -> None:
    manifest = read_manifest(demo_folder)
    assert (manifest.vocab_size, manifest.dtype) == (2048, "uint16")
    train, val = documents(demo_folder, "train"), documents(demo_folder, "val")
    assert sorted(train + val) == sorted(demo_texts)
    assert 2 <= len(val) <= 30


def test_the_demo_corpus_is_what_it_says(demo_texts: list[str]) -> None:
    text = "".join(demo_texts)
    assert len(text.encode()) == 1_115_394
    assert all(document.endswith("\n\n") for document in demo_texts[:-1])
    assert all(4000 <= len(document) <= 8000 for document in demo_texts)


def test_output_does_not_depend_on_workers(
    tmp_path: Path, demo_texts: list[str], sp_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deconattn.data.reading.blocks.GRID", 20_000)  # many blocks
    path = write_lines(tmp_path / "a.jsonl", demo_texts)
    for workers in (1, 3):
        run(path, sp_model, tmp_path / str(workers), workers=workers, shard_tokens=50_000)
    one, three = contents(tmp_path / "1"), contents(tmp_path / "3")
    assert one == three
    assert {"manifest.json", "tokenizer.model", "train-00000.arrow", "train-00008.arrow", "val-00000.arrow"} <= set(one)


def test_shards_are_cut_between_documents(tmp_path: Path, demo_texts: list[str], sp_model: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", demo_texts[:20])
    run(path, sp_model, tmp_path / "out", shard_tokens=6_000, val_fraction=0.0)
    shards = read_manifest(tmp_path / "out").shards
    assert len(shards) > 5
    assert all(shard.tokens <= 6_000 or shard.documents == 1 for shard in shards)
    assert documents(tmp_path / "out", "train") == demo_texts[:20]
    for shard in shards:
        table = pa.ipc.open_file(str(tmp_path / "out" / shard.name)).read_all()
        flat = np.concatenate([np.array(row) for row in table.column("tokens").to_pylist()])
        assert (len(table), len(flat), flat.max()) == (shard.documents, shard.tokens, shard.max_token_id)
        assert (tmp_path / "out" / shard.name).stat().st_size == shard.bytes


def test_bad_lines_are_reported(tmp_path: Path, sp_model: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ["one", "two", "three"])
    path.write_bytes(b"{bad\n" + path.read_bytes() + b"\xff\n" + b'{"text": ""}\n')
    summary = run(path, sp_model, tmp_path / "out", max_bad=2)
    assert summary.documents == 3
    text = str(summary)
    assert "skipped 2 bad lines: 1 not JSON, 1 not UTF-8" in text
    assert f"{path}:1: not JSON" in text and f"{path}:5: not UTF-8" in text
    assert "skipped 1 empty documents" in text
    with pytest.raises(UserError, match=f"{path}:5: not UTF-8: bad line 2"):
        run(path, sp_model, tmp_path / "fatal", max_bad=1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_nothing_to_pack(tmp_path: Path, sp_model: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "  "}\n\n')
    for tokenizer in (sp_model, "train:300"):
        with pytest.raises(UserError, match="no (document with )?text.*--text-field"):
            run(tmp_path / "a.jsonl", tokenizer, tmp_path / "out")
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_tokenizer_training_draws_on_every_file(
    tmp_path: Path, demo_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deconattn.data.tokenizing.training.MAX_SENTENCES", 2000)  # fewer than the first file has
    write_lines(tmp_path / "a.jsonl", demo_texts[:30])
    write_lines(tmp_path / "b.jsonl", ["a qwrtp a qwrtp\n" * 20] * 20)
    run(tmp_path, "train:600", tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert len(tokenizer.encode_batch([" qwrtp"])[0]) == 1


@pytest.mark.parametrize("spec", ["train:", "train:abc", "train:-5", "train:1e3"])
def test_train_needs_a_number(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UserError, match="train:VOCAB"):
        run(write_lines(tmp_path / "a.jsonl", ["x"]), spec, tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "value"),
    [("workers", 0), ("val_fraction", 1.0), ("val_fraction", -0.1), ("shard_tokens", 0), ("max_bad", -1)],
)
def test_values_out_of_range(tmp_path: Path, option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')} {value}"):
        PackConfig(inputs=("a",), tokenizer="t", out=tmp_path, **{option: value})  # type: ignore[arg-type]
