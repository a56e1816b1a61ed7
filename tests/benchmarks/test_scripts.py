"""The benchmarks at toy dimensions: that they measure what they say, not how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import machine
from benchmarks.training import cpu, cpu_contestant, losses
from deconattn.data import TokenCorpus
from deconattn.errors import UserError
from deconattn.mixers import variant_names
from tests.conftest import ROOT
from tests.train.conftest import environment

TOY = cpu_contestant.Spec(cpu_contestant.PEER, "tiny", seq_len=16, batch_size=2, vocab_size=64, layers=2)


def row(seconds: float, loss: float = 1.0) -> dict[str, float]:
    return {"seconds": seconds, "cpu_seconds": seconds, "loss": loss, "peak_gib": 0.5}


def test_a_result_carries_where_it_came_from(tmp_path: Path):
    machine.write_result(tmp_path / "new" / "x.json", {"figure": 1})
    found = json.loads((tmp_path / "new" / "x.json").read_text())
    assert found["figure"] == 1
    assert {"date", "command", "machine", "versions"} < set(found)
    assert found["versions"]["torch"] == torch.__version__


def test_markdown_table():
    assert machine.markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


def test_the_peer_does_the_same_work():
    """The first loss of transformers' model is that of ours, and it learns."""
    tokens = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(0))
    total, labels, _ = cpu_contestant._initialized(TOY)(tokens[:, :-1], tokens[:, 1:])
    step = cpu_contestant.build(TOY)
    first = cpu_contestant.timed(step, tokens)
    assert first["loss"] == pytest.approx(float(total.detach() / labels), rel=1e-5)
    assert cpu_contestant.timed(step, tokens)["loss"] < first["loss"]
    assert first["peak_gib"] > 0


def test_ratios_are_taken_within_rounds():
    samples = {cpu_contestant.PEER: [row(1), row(3), row(1)], "standard": [row(0.5), row(1.5), row(2)]}
    summary = cpu.summarize(samples, tokens=100)
    assert summary["standard"]["ratio"] == 2
    assert summary["standard"]["tokens_per_second"] == pytest.approx(100 / 1.5)
    assert summary[cpu_contestant.PEER]["ratio"] == 1


def test_every_group_has_the_peer():
    peer = cpu_contestant.PEER
    assert cpu.groups(["a", "b", "c"], 3) == [[peer, "a", "b"], [peer, "c"]]
    assert cpu.groups(["a", "b"], 1) == [[peer, "a"], [peer, "b"]]


def test_unknown_variant():
    with pytest.raises(UserError, match="nosuch"):
        cpu.Arguments(variants=("nosuch",))


def test_thirteen_runs():
    names = [name for name, *_ in losses.planned()]
    assert names[0] == "standard"
    assert len(names) == len(set(names)) == 2 * len(variant_names()) - 1


def test_unigram_entropy(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(losses, "READ_AT_ONCE", 1000)
    train, held_out = TokenCorpus(corpus), TokenCorpus(corpus, "val")
    counts = np.bincount(train.read(0, train.num_tokens), minlength=512) + 1.0
    expected = -np.log(counts / counts.sum())[held_out.read(0, held_out.num_tokens)]
    assert losses.unigram_entropy(corpus) == pytest.approx(expected[1:].mean())
    assert losses.unigram_entropy(corpus, 20) == pytest.approx(expected[1:21].mean())


def finished_run(folder: Path, **optimization: float) -> None:
    (folder / "checkpoints" / "step-2").mkdir(parents=True)
    steps = [{"step": n, "loss": 3.0 - n, "tokens_per_second": 10.0, "skipped_steps": 0} for n in (1, 2)]
    rows = [*steps, {"step": 2, "val_loss": 1.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps({"flags": {"optimization": optimization}}))


def test_finished_losses_are_not_trained_again(tmp_path: Path, corpus: Path):
    arguments = losses.Arguments(data=corpus, out=tmp_path, steps=2)
    kept = {name: getattr(arguments, name) for name in ("global_batch_size", "seed", "adam_beta2", "warmup_steps")}
    finished_run(tmp_path / "mlp-1to1", lr=arguments.lr, **kept)
    result = losses.train(arguments, "mlp-1:1", "mlp", "1:1")
    assert (result.val_loss, result.train_loss, result.tokens_per_second) == (1.5, 1.5, 10.0)
    assert "| mlp-1:1 | 1.500 | -0.500 |" in losses.table({"mlp-1:1": result}, entropy=2.0)
    assert losses.result_of(tmp_path / "mlp-1to1", steps=3) is None
    with pytest.raises(UserError, match="trained with lr"):
        losses.train(losses.Arguments(data=corpus, out=tmp_path, steps=2, lr=1.0), "mlp-1:1", "mlp", "1:1")


@pytest.mark.slow
def test_train_cpu_end_to_end(tmp_path: Path):
    script = [sys.executable, str(ROOT / "benchmarks" / "training" / "cpu.py"), "--size", "tiny", "--layers", "2"]
    script += ["--seq-len", "32", "--vocab-size", "256", "--repeats", "2", "--threads", "1", "--out", str(tmp_path)]
    subprocess.run(script, env=environment(), check=True, timeout=300)
    found = json.loads((tmp_path / "train_cpu-tiny-fp32.json").read_text())
    assert set(found["summary"]) == {cpu_contestant.PEER, *variant_names()}
    ours, peer = (found["summary"][name]["last_loss"] for name in ("standard", cpu_contestant.PEER))
    assert ours == pytest.approx(peer, abs=1e-4)
