"""How batches are loaded: by worker processes, and with documents packed whole."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from deconattn.config.command_line import parse_training_flags
from deconattn.data import PackConfig, TokenCorpus
from deconattn.data.packing.pack import pack
from deconattn.data.tokenizing.settings import read_bos
from deconattn.errors import UserError
from deconattn.train.inputs import TrainingData, open_data
from tests.conftest import DEMO, SMALL
from tests.ranks import Ranks
from tests.train.conftest import losses, validation_losses
from tests.train.jobs import run_job


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_loader_workers_and_resumes_change_nothing(small: list[str], tmp_path: Path, packing: str) -> None:
    flags = [*small, "--doc-mask", "--packing", packing]
    run_job([*flags, "--save", str(tmp_path / "thread")])
    run_job(["stop=3", *flags, "--loader-workers", "2", "--save", str(tmp_path / "workers")])
    run_job(["--save", str(tmp_path / "workers"), "--resume", "--loader-workers", "1", "--micro-batch-size", "4"])
    assert losses(tmp_path / "workers") == pytest.approx(losses(tmp_path / "thread"), abs=1e-5)
    validated = validation_losses(tmp_path / "thread")
    assert validation_losses(tmp_path / "workers") == pytest.approx(validated, abs=1e-5)


def test_best_fit_trains_on_other_sequences_and_says_what_it_wastes(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job([*small, "--save", str(tmp_path / "concat")])
    assert "padding" not in capsys.readouterr().err
    run_job([*small, "--packing", "best-fit", "--save", str(tmp_path / "packed")])
    assert "% padding, " in (shown := capsys.readouterr().err) and "cut (longer than a sequence)" in shown
    assert losses(tmp_path / "packed")[1] != losses(tmp_path / "concat")[1]
    with pytest.raises(UserError, match="the run has --packing best-fit but the flags say concat"):
        run_job(["--save", str(tmp_path / "packed"), "--resume", "--packing", "concat"])


def test_loader_workers_below_zero(small: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--loader-workers is -1: it must not be below zero"):
        run_job([*small, "--loader-workers", "-1", "--save", str(tmp_path)])


@pytest.mark.parametrize("bos", [None, "</s>"])
def test_checkpoints_name_what_documents_begin_with(bos: str | None, corpus: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.jsonl", tmp_path / "packed"
    text.write_text("".join(DEMO.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8")
    pack(PackConfig((str(text),), str(corpus), out, workers=1, val_fraction=0.1, bos=bos))
    TrainingData((str(out),), parse_training_flags([*SMALL, "--data", str(out)])).write_tokenizer(tmp_path)
    assert read_bos(tmp_path) == bos


def test_validation_that_cannot_happen_is_told(corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(DEMO.read_text(encoding="utf-8").splitlines(keepends=True)[:40]), encoding="utf-8")
    none, short = tmp_path / "none", tmp_path / "short"
    for folder, fraction in ((none, 0.0), (short, 0.02)):
        pack(PackConfig((str(text),), str(corpus), folder, workers=1, val_fraction=fraction))
    held = TokenCorpus(short, "val").num_tokens
    flags = [*SMALL, "--seq-len", str(held), "--steps", "1"]  # its labels would need one token more

    def report(*data: Path, length: int = held) -> list[str]:
        words = [*flags, "--seq-len", str(length), "--data", *map(str, data)]
        return TrainingData(tuple(map(str, data)), parse_training_flags(words)).validation_report()

    has_none = f"{none} has no validation split"
    too_short = f"the validation split of {short} has {held} tokens, and one sequence with its labels {held + 1}"
    remedy = "(pack with a larger --val-fraction, or give a shorter --seq-len)"
    assert report(none, short) == [f"no validation, and no val_loss: {has_none}; {too_short} {remedy}"]
    assert report(corpus, none) == [f"validation leaves corpora out: {has_none} {remedy}"]
    assert report(corpus, short) == [f"validation leaves corpora out: {too_short} {remedy}"]
    assert report(corpus, short, length=held - 1) == report(corpus) == []
    run_job([*flags, "--data", str(short), "--save", str(tmp_path / "run")])
    assert f"no validation, and no val_loss: {too_short}" in capfd.readouterr().err
    assert not validation_losses(tmp_path / "run")


def _opened(data: str, run: str) -> tuple[list[str], list[int], list[int]]:
    """What each rank opens of a corpus, by names; bytes and samples of its first batch."""
    looked_at: list[str] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if noting and event in ("open", "os.scandir", "os.listdir") and str(arguments[0]).startswith(data):
            looked_at.append(f"{event} {Path(str(arguments[0])).name}")

    noting = True
    sys.addaudithook(note)
    flags = parse_training_flags([*SMALL, "--data", data, "--packing", "best-fit"])
    opened = open_data((data,), flags, Path(run))
    noting = False
    stream = opened.loader(0, dist.get_rank(), dist.get_world_size(), pin=False)
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, (looked_at, stream.take(1)[0].input_ids.sum().item()))
    stream.close()
    return shares  # type: ignore[return-value]


def _refused(data: str, run: str) -> list[str]:
    flags = parse_training_flags([*SMALL, "--data", data])
    said: list[Any] = [None] * dist.get_world_size()
    try:
        open_data((data,), flags, Path(run))
        mine = ""
    except UserError as error:
        mine = str(error)
    dist.all_gather_object(said, mine)
    return said


def test_rank_0_reads_the_manifest_and_makes_the_table_for_all(
    ranks: Callable[[int], Ranks], corpus: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus, data, ignore=shutil.ignore_patterns(".best-fit"))
    (first, _), (other, _) = ranks(2)(_opened, data=str(data), run=str(tmp_path))
    assert "open manifest.json" in first and "os.scandir data" in first and "open train-00000.arrow" in first
    assert [what for what in other if not what.endswith(".table")] == [], "no manifest, no folder, no shard"
    assert len([what for what in other if what.startswith("open train-")]) == 1
    (data / "train-00000.arrow").unlink()
    said = ranks(2)(_refused, data=str(data), run=str(tmp_path))
    assert said[0] == said[1] and "train-00000.arrow is missing (its manifest lists it)" in said[0]
