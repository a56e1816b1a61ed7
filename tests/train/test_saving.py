"""Training goes on beside a slow disk, and a disk that refuses costs a checkpoint, not the run."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deconattn.checkpoint.format import open_checkpoint, read_checkpoint, steps_in
from deconattn.checkpoint.manifest import MANIFEST, Progress, _digest, _sha256
from deconattn.checkpoint.slice_file import Slice
from deconattn.errors import UserError
from deconattn.train import saving
from deconattn.train.checkpoints import Checkpoints
from deconattn.train.saving import LEAST, own_share
from deconattn.train.trainer import Trainer
from tests.ranks import Ranks
from tests.train.conftest import losses, rows
from tests.train.jobs import run_job, train
from tests.train.test_resume import ALL, same_state

EIO = OSError(5, "Input/output error", "the disk")


def refusing(times: int, of: str, error: Exception = EIO) -> Callable[[Path, Sequence[Slice]], dict[str, Any]]:
    """Writer that fails so many times for the checkpoint `of`."""
    write, left = saving.write_slices, iter(range(times))

    def writer(path: Path, slices: Sequence[Slice]) -> dict[str, Any]:
        if of in str(path) and next(left, None) is not None:
            raise error
        return write(path, slices)

    return writer


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "PAUSES", (0.01, 0.02))


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_an_error_that_passes_costs_nothing(
    mode: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "write_slices", refusing(2, "step-2"))
    run_job([*small, "--save", str(tmp_path), "--save-every", "2", "--save-mode", mode])
    assert names(tmp_path) == ["step-2", "step-4", "step-6"]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    assert said[0] == "warning: rank 0: the disk: Input/output error; trying again in 0.01 s" and len(said) == 2
    assert not [row for row in rows(tmp_path) if "save_failed" in row]


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_save_that_fails_is_given_up_and_training_goes_on(
    mode: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "write_slices", refusing(99, "step-4"))
    run_job([*small, "--save", str(tmp_path), "--save-every", "2", "--save-mode", mode])
    assert names(tmp_path) == ["step-2", "step-6"], "nothing is left of it"
    said = [line for line in capfd.readouterr().err.splitlines() if "no checkpoint" in line]
    assert said == ["step 4: no checkpoint (the disk: Input/output error); the next save will be another attempt"]
    assert [row for row in rows(tmp_path) if "save_failed" in row] == [
        {"step": 4, "save_failed": "the disk: Input/output error"}
    ]
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5, 6]


def test_a_stop_saves_again_what_was_given_up(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "write_slices", refusing(3, "step-4"))
    often = ["--save-every", "2", "--eval-every", "2"]
    run_job(["stop_validation=4", *small, *often, "--save", str(tmp_path)])
    assert names(tmp_path) == ["step-2", "step-4"]


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_the_last_save_must_succeed(
    mode: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "write_slices", refusing(99, "step-6"))
    with pytest.raises(
        UserError, match=r"step-6 could not be written \(.*Input/output error\); the last good one is step-4:"
    ):
        run_job([*small, "--save", str(tmp_path), "--save-every", "2", "--save-mode", mode])
    assert names(tmp_path) == ["step-2", "step-4"]


def test_an_error_that_stays_is_not_tried_again(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "write_slices", refusing(1, "step-2", PermissionError(13, "Permission denied", "x")))
    run_job([*small, "--save", str(tmp_path), "--save-every", "2"])
    assert names(tmp_path) == ["step-4", "step-6"]
    assert "trying again" not in capfd.readouterr().err


def test_metrics_that_cannot_be_flushed_cost_the_checkpoint_that_would_go_on_from_them(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = Trainer._sync_metrics

    def failing(trainer: Trainer) -> None:
        if trainer._checkpoints._saver._step == 2:
            raise EIO
        sync(trainer)

    monkeypatch.setattr(Trainer, "_sync_metrics", failing)
    run_job([*small, "--save", str(tmp_path), "--save-every", "2"])
    assert names(tmp_path) == ["step-4", "step-6"]


@pytest.mark.parametrize(
    "flags",
    [
        "--zero 0",
        pytest.param("--zero 3", marks=pytest.mark.slow),
        pytest.param("--precision bf16", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_while_a_checkpoint_is_written(
    flags: str, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = [*small, *flags.split(), "--save-every", "2", "--steps", "3", "--variant", "rndemb"]
    run_job([*everywhere, "--save", str(tmp_path / "sync"), "--save-mode", "sync"])
    write, gone_on = saving.write_slices, threading.Event()

    def slow(path: Path, slices: Sequence[Slice]) -> dict[str, Any]:
        assert gone_on.wait(30) or "step-3" in str(path)
        return write(path, slices)

    save = Checkpoints.save

    def noting(checkpoints: Checkpoints, progress: Progress) -> None:
        if progress.step == 3:
            assert not (tmp_path / "async/checkpoints/step-2").exists()
            gone_on.set()
        save(checkpoints, progress)

    monkeypatch.setattr(saving, "write_slices", slow)
    monkeypatch.setattr(Checkpoints, "save", noting)
    run_job([*everywhere, "--save", str(tmp_path / "async")])
    assert names(tmp_path / "async") == ["step-2", "step-3"]
    for step in names(tmp_path / "async"):
        assert same_state(tmp_path / "async/checkpoints" / step, tmp_path / "sync/checkpoints" / step), step


def test_shares_are_each_written_once() -> None:
    for elements in (1, 5, LEAST, LEAST + 1, 7 * LEAST + 3):
        for copies in (1, 2, 3, 8, 64):
            shares = [own_share(elements, copies, copy, "w") for copy in range(copies)]
            kept = sorted(share for share in shares if share[0] < share[1])
            assert kept[0][0] == 0 and kept[-1][1] == elements
            assert all(one[1] == other[0] for one, other in pairwise(kept))
            assert len(kept) == min(copies, -(-elements // LEAST))
    owners = {[own_share(5, 8, copy, name)[1] for copy in range(8)].index(5) for name in map(str, range(99))}
    assert len(owners) == 8, "small tensors fall to all"


def bytes_read(flags: list[str]) -> list[int]:
    """What each rank reads of the checkpoint when it resumes; rank 0's list of all ranks."""
    from deconattn.config.command_line import parse_training_flags
    from deconattn.train import trainer as module
    from tests.train.jobs import Stop

    opened = []
    load = module.load_checkpoint
    module.load_checkpoint = lambda engine, checkpoint: (opened.append(checkpoint), load(engine, checkpoint))[1]  # type: ignore[func-returns-value]
    try:
        trainer = Trainer(parse_training_flags(flags), Stop())
    finally:
        module.load_checkpoint = load
    trainer._release()
    read: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(read, opened[0].reader.bytes_read)
    trainer.engine.destroy()
    return read


@pytest.mark.parametrize(
    "zero", ["1", pytest.param("0", marks=pytest.mark.slow), pytest.param("3", marks=pytest.mark.slow)]
)
def test_each_rank_reads_and_writes_its_share(
    zero: str, small: list[str], tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    wide = [*small, "--hidden-size", "256", "--intermediate-size", "1024", "--steps", "1"]
    assert ranks(2)(train, arguments=[*wide, "--zero", zero, "--save", str(tmp_path)]) is None
    written = [path.stat().st_size for path in sorted((tmp_path / "checkpoints/step-1").glob("slices-*"))]
    whole = sum(written)
    assert len(written) == 2 and max(written) < 0.55 * whole
    again = ["--save", str(tmp_path), "--resume"]
    # Once to verify and once to load.
    assert max(ranks(2)(bytes_read, flags=again)) < 0.6 * 2 * whole
    [alone] = bytes_read(again)
    assert whole < alone < 1.1 * 2 * whole


def old_format(folder: Path, version: int) -> None:
    """Make a step folder what formats 1 and 2 were: whole tensors, a file a kind."""
    checkpoint = read_checkpoint(folder)
    tensors = {kind: {name: t.clone() for name, t in checkpoint.tensors(kind)} for kind in ALL}
    content = json.loads((folder / MANIFEST).read_text())
    for name in content.pop("slice_files"):
        (folder / name).unlink()
    del content["tensors"], content["sha256"]
    for kind, of in tensors.items():
        save_file(of, folder / f"{kind}-00-00001.safetensors")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    content["files"] = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }
    content["format_version"] = version
    if version == 2:
        content["sha256"] = _digest(content)
    (folder / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize("version", [1, 2])
def test_checkpoints_of_older_formats_are_read(version: int, small: list[str], tmp_path: Path) -> None:
    run_job(["stop=3", *small, "--pattern", "fixedseq,standard", "--save", str(tmp_path / "run")])
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    old_format(tmp_path / "old/checkpoints/step-3", version)
    assert same_state(tmp_path / "run/checkpoints/step-3", tmp_path / "old/checkpoints/step-3")
    for name in ("run", "old"):
        run_job(["--save", str(tmp_path / name), "--resume"])
    assert same_state(tmp_path / "run/checkpoints/step-6", tmp_path / "old/checkpoints/step-6")
    folder = tmp_path / "old/checkpoints/step-3"
    path = folder / "exp_avg-00-00001.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        read_checkpoint(folder)
    assert open_checkpoint(tmp_path / "old").step == 6 and len(steps_in(tmp_path / "old")) == 2


def failing_on_rank_1() -> str:
    from deconattn.parallel.agreement import everywhere

    def work() -> None:
        if torch.distributed.get_rank() == 1:
            raise UserError("rank 1's disk")

    said = []
    for _ in range(2):
        try:
            everywhere(work)
        except UserError as error:
            said.append(str(error))
    everywhere(lambda: None)
    return " and ".join(said)


def test_what_fails_on_one_rank_is_raised_on_all(ranks: Callable[[int], Ranks]) -> None:
    assert ranks(2)(failing_on_rank_1) == "rank 1's disk and rank 1's disk"


def damaged_on_rank_1(run: str) -> str:
    """Resume on two ranks after a moment in rank 1's share was damaged."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        train(["--save", run, "--resume"])
    return said.getvalue()


def test_damage_that_another_rank_finds_is_passed_over_by_all(
    small: list[str], tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    assert ranks(2)(train, arguments=[*small, "--save", str(tmp_path), "--save-every", "3"]) is None
    expected = losses(tmp_path)
    path = tmp_path / "checkpoints/step-6/slices-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = ranks(2)(damaged_on_rank_1, run=str(tmp_path))
    assert "warning: passing over step-6: " in said and f"{path} is damaged (" in said
    assert losses(tmp_path) == expected and open_checkpoint(tmp_path).step == 6
