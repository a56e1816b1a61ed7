"""A checkpoint is one verified thing, and a run folder has one owner."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deconattn.checkpoint.format import newest_good, read_checkpoint, steps_in
from deconattn.checkpoint.manifest import MANIFEST, is_whole
from deconattn.config.command_line import parse_training_flags
from deconattn.errors import UserError
from deconattn.locks import FolderLock, check_unused, lock_holder
from deconattn.train.metrics import METRICS
from deconattn.train.run_folder import check_run_folder
from deconattn.train.saving import outdated
from tests.train.jobs import run_job


@pytest.fixture
def run(process_group: None, small: list[str], tmp_path: Path) -> Path:
    """Steps 2, 4 and 6 of a training."""
    run_job([*small, "--save-every", "2", "--keep", "9", "--save", str(tmp_path / "run")])
    return tmp_path / "run"


def edited(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def unsealed(manifest: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """As format 1 was, which had no checksum of its own."""
    return {**manifest, **changes, "sha256": None, "format_version": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m | {"progress": m["progress"] | {"step": 500}}, "was changed after it was written"),
        (
            lambda m: {**m, "progress": m["progress"] | {"step": 500}, "sha256": None, "format_version": 1},
            "says step 500",
        ),
        (
            lambda m: {**m, "progress": m["progress"] | {"step": -6}, "sha256": None, "format_version": 1},
            "says step -6",
        ),
        (
            lambda m: {**m, "progress": m["progress"] | {"step": "6"}, "sha256": None, "format_version": 1},
            "cannot be read",
        ),
        (lambda m: {**m, "files": []}, "cannot be read"),
        (lambda m: {**m, "sha256": None}, "lacks its own checksum"),
        (lambda m: {**m, "surplus": 1}, "cannot be read"),
        (lambda m: unsealed(m, files={}), "lists no config.json"),
        (lambda m: {**m, "format_version": 99}, "newer version"),
        (lambda m: [m], "cannot be read"),
    ],
)
def test_an_edited_manifest_is_refused(run: Path, change: Callable[[Any], Any], said: str) -> None:
    folder = run / "checkpoints" / "step-6"
    edited(folder, change)
    with pytest.raises(UserError, match=said):
        read_checkpoint(folder)
    assert not is_whole(folder)


def test_what_is_no_file_is_refused_without_waiting(run: Path) -> None:
    folder = run / "checkpoints" / "step-6"
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with pytest.raises(UserError, match="no regular file"):
        read_checkpoint(folder)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(folder)


def test_tensors_are_those_of_the_manifest(run: Path) -> None:
    checkpoint = read_checkpoint(run / "checkpoints" / "step-6")
    names = checkpoint.weights().keys()
    other = run / "checkpoints" / "step-2" / "slices-00000.safetensors"
    shutil.copy(other, checkpoint.folder / "slices-00001.safetensors")
    checkpoint.check("weights")
    assert [name for name, _ in checkpoint.tensors("weights")] == list(names)


def test_a_checkpoint_without_a_moment_does_not_resume(run: Path) -> None:
    folder = run / "checkpoints" / "step-6"
    content = json.loads((folder / MANIFEST).read_text())
    for tensor in content["tensors"].values():
        tensor["kinds"] = [kind for kind in tensor["kinds"] if kind != "exp_avg_sq"]
    content |= {"sha256": None, "format_version": 1}
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not fit the model \(exp_avg_sq of"):
        run_job(["--save", str(run), "--resume"])


def test_nothing_is_begun_anew_over_checkpoints_that_are_all_damaged(run: Path) -> None:
    rows = (run / METRICS).read_bytes()
    for folder in steps_in(run):
        (folder / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"has no checkpoint that can be read: step-6: .*step-4: .*step-2: "):
        run_job(["--save", str(run), "--resume"])
    assert (run / METRICS).read_bytes() == rows and len(steps_in(run)) == 3


def test_a_damaged_newest_one_is_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step-6" / "config.json").unlink()
    found = newest_good(run)
    assert found is not None and found.step == 4
    assert "passing over step-6" in capsys.readouterr().err


def test_retention_counts_whole_checkpoints(run: Path) -> None:
    def old(step: int, keep: int, keep_every: int = 0) -> list[str]:
        return [folder.name for folder in outdated(run, step, keep, keep_every)]

    assert old(6, 3) == [] and old(6, 2) == ["step-2"] and old(6, 1) == ["step-4", "step-2"]
    assert old(6, 1, keep_every=4) == ["step-2"]
    (run / "checkpoints" / "step-4" / "config.json").unlink()
    assert old(6, 2) == [], "step 4 is no checkpoint to fall back on"
    assert old(4, 1) == ["step-2"], "what is newer than the one just saved is left alone"


def test_files_are_as_readable_as_the_umask_says(run: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in (run / "checkpoints" / "step-6").rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044 & ~umask, path


def test_a_run_folder_has_one_owner(run: Path) -> None:
    lock = FolderLock(run, "training")
    for again in (lambda: FolderLock(run, "training"), lambda: check_unused(run)):
        with pytest.raises(UserError, match=f"{run} is in use by pid {os.getpid()} on .*: wait for it"):
            again()
    with pytest.raises(UserError, match="is in use"):
        run_job(["--save", str(run), "--resume"])
    script = (
        "import sys; from pathlib import Path; from deconattn.locks import FolderLock; "
        "FolderLock(Path(sys.argv[1]), 'training')"
    )
    done = subprocess.run([sys.executable, "-c", script, run], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "is in use by pid" in done.stderr
    lock.release()
    check_unused(run)
    assert run_job(["--save", str(run), "--resume"]).progress.step == 6
    FolderLock(run, "training").release()


def test_a_run_folder_that_vanishes_is_not_made_again(small: list[str], process_group: None, tmp_path: Path) -> None:
    from deconattn.train.trainer import Trainer

    step = Trainer._validate

    def vanish(trainer: Trainer) -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        step(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_validate", vanish)
        with pytest.raises(UserError, match="could not be written .*the run folder has vanished"):
            run_job([*small, "--eval-every", "3", "--save", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_released_folder_holds_no_trace_of_its_owner(tmp_path: Path) -> None:
    for _ in range(3):
        lock = FolderLock(tmp_path, "training")
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        lock.release()
        assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "nowhere", "training")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
def test_a_run_folder_with_what_is_no_file_is_refused(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    flags = parse_training_flags(["--save", str(tmp_path)])
    check_run_folder(flags)
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is no regular file"):
        check_run_folder(flags)


def test_a_run_folder_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name in ("loop", "file"):
        with pytest.raises(UserError, match=f"{name} is not a folder|{name}/checkpoints cannot be read"):
            check_run_folder(parse_training_flags(["--save", str(tmp_path / name)]))


def test_a_note_of_an_owner_is_read_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    check_unused(tmp_path)
    assert lock_holder(tmp_path / ".lock") == "another process"
    (tmp_path / "note").write_text("[" * 50_000)
    assert lock_holder(tmp_path / "note") == "another process"
