"""Commands on a run that is being trained: each opens one checkpoint, once, and its training lets it be."""

import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deconattn.checkpoint import format as module
from deconattn.checkpoint.format import newest_good, open_checkpoint, read_checkpoint, steps_in
from deconattn.checkpoint.in_use import Hold, delete
from deconattn.checkpoint.manifest import MANIFEST
from deconattn.checkpoint.stored_model import open_model
from deconattn.commands import convert, evaluate, export, generate
from deconattn.errors import UserError
from tests.generation.conftest import write_run
from tests.hf.models import small_config, trained
from tests.train.jobs import run_job


@pytest.fixture
def run(byte_level: Path, tmp_path: Path) -> Path:
    """Steps 3 and 7 of a run."""
    model = trained(small_config("rndemb", "standard"))
    write_run(model, byte_level, tmp_path / "run", number=3)
    with torch.no_grad():
        model.model.norm.weight += 1
    return write_run(model, byte_level, tmp_path / "run", number=7)


COMMANDS: dict[str, Callable[[Path, Path], object]] = {
    "evaluate": lambda run, out: evaluate._open(evaluate.Arguments(models=(run,)), [])[0].load(),
    "generate": lambda run, out: generate.main([str(run), "--prompt", "I", "--max-new-tokens", "1"]),
    "export": lambda run, out: export.main([str(run), str(out)]),
    "convert": lambda run, out: convert.main([str(run), f"{out}.safetensors"]),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_opens_a_checkpoint_once(
    command: Callable[[Path, Path], object], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def noting(folder: Path, *kinds: Any) -> module.Checkpoint:
        opened.append(folder.name)
        return read_checkpoint(folder, *kinds)

    monkeypatch.setattr(module, "read_checkpoint", noting)
    command(run, tmp_path / "out")
    assert opened == ["step-7"]


def test_weights_and_step_are_one_checkpoints_whatever_comes_after(run: Path) -> None:
    expected = read_checkpoint(run / "checkpoints/step-3").weights()["model.norm.weight"]
    (run / "checkpoints/step-7").rename(run / "later")
    stored = open_model(run)
    (run / "later").rename(run / "checkpoints/step-7")
    assert evaluate._origin(stored)["step"] == 3
    assert torch.equal(stored.load("fp32").state_dict()["model.norm.weight"].cpu(), expected)


def test_a_checkpoint_that_is_read_is_not_deleted(run: Path) -> None:
    folder = run / "checkpoints/step-3"
    checkpoint, again = read_checkpoint(folder), read_checkpoint(folder)
    assert not delete(folder) and checkpoint.weights().keys() == again.weights().keys()
    other = pickle.loads(pickle.dumps(again))
    assert other.hold is None and other == again, "ranks get it from rank 0"
    del again
    gc.collect()
    assert not delete(folder)
    del checkpoint
    gc.collect()
    assert delete(folder)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-7"]


def test_one_that_is_being_deleted_is_not_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opening(folder: Path) -> None:
        with pytest.raises(UserError, match="step-3 is missing"):
            read_checkpoint(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda path, target: opening(path) or path.replace(target))
        assert delete(run / "checkpoints/step-3")
    assert [folder.name for folder in steps_in(run)] == ["step-7"]


def test_what_has_no_manifest_is_deleted_too(run: Path) -> None:
    (run / "checkpoints/step-3" / MANIFEST).unlink()
    assert delete(run / "checkpoints/step-3")
    with pytest.raises(FileNotFoundError):
        Hold(run / "checkpoints/step-3")


def test_a_run_that_loses_checkpoints_while_it_is_opened_gives_a_newer_one(
    run: Path, byte_level: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def training_goes_on(folder: Path, *kinds: Any) -> module.Checkpoint:
        if folder.name == "step-7":
            write_run(trained(small_config("mlp")), byte_level, run, number=9)
            assert delete(folder)
        return read_checkpoint(folder, *kinds)

    monkeypatch.setattr(module, "read_checkpoint", training_goes_on)
    checkpoint = newest_good(run)
    assert checkpoint is not None and checkpoint.step == 9 and not capsys.readouterr().err


def test_a_training_deletes_after_its_next_save_what_was_read(
    small: list[str], process_group: None, tmp_path: Path
) -> None:
    flags = [*small, "--save", str(tmp_path), "--save-every", "1", "--keep", "1"]
    run_job(["stop=2", *flags])
    reading = open_checkpoint(tmp_path)
    run_job(["stop=4", *flags, "--resume"])
    assert [folder.name for folder in steps_in(tmp_path)] == ["step-4", "step-2"] and reading.weights()
    del reading
    gc.collect()
    run_job([*flags, "--resume"])
    assert [folder.name for folder in steps_in(tmp_path)] == ["step-6"]


@pytest.mark.parametrize("name", ["step-03", "step-٣", "step-", "step-3.old", "step-" + 200 * "9"])
def test_only_plain_numbers_are_steps(name: str, run: Path) -> None:
    (run / "checkpoints" / name).mkdir()
    assert [folder.name for folder in steps_in(run)] == ["step-7", "step-3"]


def test_a_folder_of_checkpoints_that_cannot_be_read_is_not_an_empty_one(run: Path) -> None:
    (run / "checkpoints").rename(run / "elsewhere")
    assert steps_in(run) == []
    (run / "checkpoints").symlink_to("checkpoints")
    with pytest.raises(UserError, match="checkpoints cannot be read"):
        newest_good(run)
