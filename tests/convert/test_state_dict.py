"""A checkpoint as one file: the same tensors, the same bytes every time."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from deconattn.checkpoint.format import open_checkpoint, write_whole
from deconattn.checkpoint.manifest import Progress, write_manifest
from deconattn.errors import UserError
from tests.convert.conftest import TOOL, MakeModel


@pytest.fixture
def run(make_model: MakeModel, tool: ModuleType, corpus: Path, tmp_path: Path) -> Path:
    """A run whose step 5 has moments."""
    folder = tmp_path / "run"
    flags = f"--data {corpus} --variant fixedseq --pattern 1:1 --seq-len 16"
    tool.main([str(make_model(tie_word_embeddings=True)), str(folder), *flags.split()])
    first, step = open_checkpoint(folder), folder / "checkpoints/step-5"
    step.mkdir()
    shutil.copy(first.folder / "config.json", step)
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        for name, tensor in first.tensors(kind):
            value = torch.randn_like(tensor) if tensor.is_floating_point() else tensor
            tensors.setdefault(name, {})[kind] = value
    write_whole(step, tensors)
    write_manifest(step, Progress(step=5, optimizer_steps=4, skipped_steps=1))
    return folder


def test_the_file_holds_the_checkpoints_tensors(run: Path, tool: ModuleType, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(run)
    assert checkpoint.step == 5
    tool.main([str(run), str(tmp_path / "plain.safetensors")])
    tool.main([str(checkpoint.folder), str(tmp_path / "full.safetensors"), "--optimizer"])
    expected = checkpoint.weights()
    plain, full = (load_file(tmp_path / f"{name}.safetensors") for name in ("plain", "full"))
    assert plain.keys() == expected.keys()
    assert "model.fixed_ids" in plain and "lm_head.weight" not in plain
    for moment in ("exp_avg", "exp_avg_sq"):
        expected |= {f"optimizer.{moment}.{name}": tensor for name, tensor in checkpoint.tensors(moment)}
    expected["optimizer.step"] = torch.tensor(4)
    assert full.keys() == expected.keys()
    assert all(torch.equal(full[name], tensor) for name, tensor in expected.items())
    assert all(torch.equal(full[name], tensor) for name, tensor in plain.items())


@pytest.mark.slow
def test_the_same_bytes_from_a_shell_and_no_training_code(run: Path, tool: ModuleType, tmp_path: Path) -> None:
    out, again = tmp_path / "out.safetensors", tmp_path / "new folder" / "again.safetensors"
    tool.main([str(run), str(out), "--optimizer"])
    program = (
        "import runpy, sys\ntry:\n    runpy.run_path(sys.argv[1], run_name='__main__')\n"
        "finally:\n    assert 'deepspeed' not in sys.modules and 'transformers' not in sys.modules"
    )
    command = [
        sys.executable,
        "-c",
        program.replace("sys.argv[1]", repr(str(TOOL))),
        str(run),
        str(again),
        "--optimizer",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("step 5 of ")
    assert out.read_bytes() == again.read_bytes()


def test_what_cannot_be_written(run: Path, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deconattn.convert import state_dict as module

    before = sorted(tmp_path.rglob("*"))
    for out, flags, message in (
        (tmp_path / "folder", [], "ends in .safetensors"),
        (run / "config.json", [], "ends in .safetensors"),
        (tmp_path / "out.safetensors", ["--steps", "3"], "--steps: a checkpoint takes no flag but --optimizer"),
    ):
        with pytest.raises(UserError, match=message):
            tool.main([str(run), str(out), *flags])

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        tool.main([str(run), str(tmp_path / "out.safetensors")])
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "taken.safetensors").write_text("mine")
    with pytest.raises(UserError, match="exists: give another name"):
        tool.main([str(run), str(tmp_path / "taken.safetensors")])
