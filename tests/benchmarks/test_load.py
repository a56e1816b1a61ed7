"""The loading benchmark at toy dimensions: that it reads what it says, and how it counts."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.loading import contestants as load_contestants
from benchmarks.loading import load
from benchmarks.loading import worker as load_worker
from benchmarks.loading.contestants import CONTESTANTS, DIRECT, OURS, Spec
from deconattn.data import TokenCorpus
from deconattn.errors import UserError


@pytest.fixture
def spec(corpus: Path, tmp_path: Path) -> Spec:
    return Spec(OURS, str(corpus), str(tmp_path / "copy"), DIRECT, seq_len=16, batch_size=2)


@pytest.mark.parametrize("workers", [DIRECT, 0])
def test_ours_reads_every_sample_once(spec: Spec, workers: int) -> None:
    batches = list(load_contestants.ours(dataclasses.replace(spec, workers=workers)))
    tokens = TokenCorpus(spec.corpus)
    assert len(batches) == (tokens.num_tokens - 1) // 16 // 2
    rows = sorted(row for ids, _ in batches for row in ids.tolist())
    wanted = sorted(tokens.read(start, 16).tolist() for start in range(0, tokens.num_tokens - 16, 16))
    assert len(wanted) - len(rows) < 2 and all(row in wanted for row in rows[:20])
    assert all(torch.equal(ids[:, 1:], labels[:, :-1]) for ids, labels in batches[:20])


def test_the_others_get_the_same_tokens(spec: Spec) -> None:
    tokens = TokenCorpus(spec.corpus)
    whole = tokens.read(0, tokens.num_tokens).tolist()
    assert [i for document in load_contestants.documents(spec) for i in document.tolist()] == whole
    cut = [i for sample in load_contestants.samples(spec) for i in sample.tolist()]
    assert cut == whole[: len(cut)] and len(whole) - len(cut) < 17


def test_a_measurement_and_an_absent_contestant(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    row = load_worker.measure(spec, seconds=0.05)
    assert row["tokens"] > 0 and row["tokens"] % (16 * 2) == 0
    assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
    monkeypatch.setitem(CONTESTANTS, "other", dataclasses.replace(CONTESTANTS["litdata"], package="no_such_package"))
    absent = load_worker.measure(dataclasses.replace(spec, name="other"), seconds=0.05)
    assert "no_such_package" in absent["absent"]


def row(rate: float) -> dict[str, float]:
    return {"tokens": rate, "tokens_per_second": rate, "cpu_seconds": 0.5, "opening_seconds": 1, "peak_gib": 1}


def test_ratios_are_taken_within_rounds() -> None:
    samples = {
        f"{OURS}, direct": [row(100), row(50), row(100)],
        "litdata, direct": [row(10), row(5), row(50)],
        "mosaicml-streaming, direct": [{"absent": "not installed"}],
        "Megatron GPTDataset, direct": [row(10), {"absent": "it failed"}],
    }
    rows = load.summarize(samples, train=2.0)
    assert rows.keys() == {f"{OURS}, direct", "litdata, direct"}
    assert rows["litdata, direct"]["ratio"] == 10
    assert rows[f"{OURS}, direct"]["times_training"] == 50
    assert rows[f"{OURS}, direct"]["tokens_per_cpu_second"] == 200


def test_the_script_writes_its_result_and_names_who_is_absent(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CONTESTANTS, "litdata", dataclasses.replace(CONTESTANTS["litdata"], package="no_such_package"))
    for name in ("Megatron GPTDataset", "mosaicml-streaming"):
        monkeypatch.delitem(CONTESTANTS, name)

    def here(arguments: load.Arguments, spec: Spec) -> dict[str, float]:
        return load_worker.measure(spec, arguments.seconds)

    monkeypatch.setattr(load, "_process", here)
    flags = f"--data {corpus} --seq-len 16 --batch-size 2 --workers 0 --seconds 0.02 --rounds 2 --out {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["load.py", *flags.split()])
    threads = torch.get_num_threads()
    load.main()
    torch.set_num_threads(threads)
    assert "Absent: litdata, direct (No module named 'no_such_package')" in capsys.readouterr().out
    found = json.loads((tmp_path / "load.json").read_text())
    assert found["summary"].keys() == {f"{OURS}, direct", f"{OURS}, 0"}
    assert "litdata" in (tmp_path / "load.md").read_text()


def test_a_wrong_flag_is_named() -> None:
    with pytest.raises(UserError, match="--rounds"):
        load.Arguments(Path("x"), rounds=0)
    with pytest.raises(UserError, match="--workers"):
        load.Arguments(Path("x"), workers=(-1,))
