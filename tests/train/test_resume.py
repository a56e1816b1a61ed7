"""A run that is interrupted is the run that was not: same losses, same weights, to the bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from deconattn.checkpoint.format import newest_good, open_checkpoint, read_checkpoint, steps_in
from deconattn.config.command_line import parse_training_flags
from deconattn.errors import UserError
from deconattn.launch.preflight import checked_flags
from deconattn.locks import check_unused
from deconattn.train import saving
from deconattn.train.run_folder import check_run_folder
from deconattn.train.trainer import Trainer
from tests.conftest import ROOT
from tests.train.conftest import losses, rows, validation_losses
from tests.train.jobs import Stop, run_job

ALL = ("weights", "exp_avg", "exp_avg_sq")


def same_state(one: Path, other: Path) -> bool:
    """Weights and moments of two checkpoints, bit for bit."""
    for kind in ALL:
        left, right = dict(read_checkpoint(one).tensors(kind)), dict(read_checkpoint(other).tensors(kind))
        if left.keys() != right.keys() or not all(torch.equal(left[name], right[name]) for name in left):
            return False
    return True


@pytest.mark.parametrize("extra", ["", "--tie-embeddings", "--doc-mask --qk-norm --num-key-value-heads 1"])
@pytest.mark.parametrize("zero", ["0", "1", "2", "3"])
def test_a_stop_in_the_middle_changes_nothing(small: list[str], tmp_path: Path, zero: str, extra: str) -> None:
    flags = [*small, "--zero", zero, "--variant", "rndemb", "--pattern", "1:1", *extra.split()]
    run_job([*flags, "--save", str(tmp_path / "whole")])
    run_job(["stop=3", *flags, "--save", str(tmp_path / "cut")])
    assert [folder.name for folder in steps_in(tmp_path / "cut")] == ["step-3"]
    run_job(["--save", str(tmp_path / "cut"), "--resume"])
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert validation_losses(tmp_path / "cut") == validation_losses(tmp_path / "whole")
    assert same_state(tmp_path / "whole/checkpoints/step-6", tmp_path / "cut/checkpoints/step-6")
    steps = open_checkpoint(tmp_path / "cut").progress
    assert (steps.step, steps.optimizer_steps, steps.skipped_steps) == (6, 6, 0)


@pytest.mark.parametrize("name", ["zero2_offload.json", "zero3_offload.json"])
def test_offloaded_states_resume(small: list[str], tmp_path: Path, name: str) -> None:
    flags = [*small, "--deepspeed-config", str(ROOT / "ds_configs" / name)]
    run_job([*flags, "--save", str(tmp_path / "whole")])
    run_job(["stop=3", *flags, "--save", str(tmp_path / "cut")])
    run_job(["--save", str(tmp_path / "cut"), "--resume"])
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert same_state(tmp_path / "whole/checkpoints/step-6", tmp_path / "cut/checkpoints/step-6")


@pytest.mark.slow
def test_bf16_resumes_from_its_fp32_masters(small: list[str], tmp_path: Path) -> None:
    flags = [*small, "--precision", "bf16", "--variant", "fixedseq", "--pattern", "1:1"]
    run_job([*flags, "--save", str(tmp_path / "whole")])
    run_job(["stop=3", *flags, "--save", str(tmp_path / "cut")])
    run_job(["--save", str(tmp_path / "cut"), "--resume"])
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert same_state(tmp_path / "whole/checkpoints/step-6", tmp_path / "cut/checkpoints/step-6")
    weight = open_checkpoint(tmp_path / "cut").weights()["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float()), "the masters hold more than bf16"


def test_rows_written_after_the_last_checkpoint_are_not_repeated(small: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_job([*small, "--save", str(run), "--save-every", "2", "--eval-every", "2"])
    before = rows(run)
    shutil.rmtree(run / "checkpoints/step-6")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # a kill cut this line short
    run_job(["--save", str(run), "--resume"])
    untimed = [{k: v for k, v in row.items() if k not in ("memory_gib", "tokens_per_second")} for row in rows(run)]
    assert untimed == [{k: v for k, v in row.items() if k not in ("memory_gib", "tokens_per_second")} for row in before]


def test_only_the_newest_checkpoints_are_kept(small: list[str], tmp_path: Path) -> None:
    run_job([*small, "--save", str(tmp_path), "--save-every", "1", "--keep", "2"])
    assert [folder.name for folder in steps_in(tmp_path)] == ["step-6", "step-5"]
    assert not list((tmp_path / "checkpoints").glob(".*"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "unsealed", "garbled"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    small: list[str], tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run_job([*small, "--save", str(tmp_path), "--save-every", "2"])
    expected = losses(tmp_path)
    newest = tmp_path / "checkpoints/step-6"
    victim = newest / "slices-00000.safetensors"
    content = bytearray(victim.read_bytes())
    match damage:
        case "flip":
            content[len(content) // 2] ^= 1
            victim.write_bytes(content)
        case "truncate":
            victim.write_bytes(content[:-1])
        case "missing":
            victim.unlink()
        case "unsealed":
            victim = newest / "checkpoint.json"
            victim.unlink()
        case "garbled":
            victim = newest / "checkpoint.json"
            victim.write_text("{")
    with pytest.raises(UserError, match=victim.name):
        read_checkpoint(newest, ALL)
    checkpoint = newest_good(tmp_path, ALL)
    assert checkpoint is not None
    assert checkpoint.step == 4
    assert "step-6" in capfd.readouterr().err
    run_job(["--save", str(tmp_path), "--resume"])
    assert losses(tmp_path) == expected
    assert open_checkpoint(tmp_path).step == 6


def test_flags_that_contradict_the_run_are_refused_with_both_values(small: list[str], tmp_path: Path) -> None:
    run_job([*small, "--save", str(tmp_path), "--variant", "mlp"])
    for flag, value, old in (
        ("--variant", "standard", "mlp"),
        ("--seq-len", "64", "32"),
        ("--seed", "7", "1234"),
        ("--global-batch-size", "8", "4"),
        ("--hidden-size", "64", "32"),
        ("--precision", "bf16", "fp32"),
    ):
        with pytest.raises(UserError, match=rf"{flag} {old} .* {value}"):
            run_job(["--save", str(tmp_path), "--resume", flag, value])


def test_other_data_is_refused_and_moved_data_is_not(small: list[str], corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_job(["stop=2", *small, "--save", str(run)])
    with pytest.raises(UserError, match="weight"):
        run_job(["--save", str(run), "--resume", "--data", f"{corpus}:2"])
    moved = tmp_path / "moved"
    shutil.copytree(corpus, moved)
    run_job(["--save", str(run), "--resume", "--data", str(moved)])
    assert open_checkpoint(run).step == 6


def test_steps_can_be_added_to_a_finished_run(small: list[str], tmp_path: Path) -> None:
    run_job([*small, "--save", str(tmp_path)])
    run_job(["--save", str(tmp_path), "--resume", "--steps", "8"])
    assert sorted(losses(tmp_path)) == list(range(1, 9))


def test_a_full_disk_leaves_the_checkpoints_before_it(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(["stop=2", *small, "--save", str(tmp_path)])

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_slices", full)
        patch.setattr(saving, "PAUSES", (0.01,))
        with pytest.raises(UserError, match="No space left"):
            run_job(["--save", str(tmp_path), "--resume"])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]
    run_job(["--save", str(tmp_path), "--resume"])
    assert open_checkpoint(tmp_path).step == 6


def test_too_little_space_is_said_before_the_first_step(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="GiB free"):
        run_job([*small, "--save", str(tmp_path)])


def test_the_resolved_configuration_is_beside_every_checkpoint(small: list[str], tmp_path: Path) -> None:
    run_job([*small, "--save", str(tmp_path), "--pattern", "1:1", "--variant", "mlp"])
    inside = json.loads((tmp_path / "checkpoints/step-6/config.json").read_text())
    assert inside == json.loads((tmp_path / "config.json").read_text())
    assert inside["model"]["layer_variants"] == ["mlp", "standard"]
    assert open_checkpoint(tmp_path).model_config.layer_variants == ("mlp", "standard")


def test_an_earlier_checkpoint_can_be_chosen(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_job([*small, "--save", str(run), "--save-every", "2"])
    before, expected = (run / "metrics.jsonl").read_bytes(), losses(run)
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    for name, said in (
        ("step-3", "--resume-from step-3: .* has step-6, step-4, step-2: give one of its own"),
        ("../checkpoints/step-2", "give one of its own"),
    ):
        with pytest.raises(UserError, match=said):
            run_job(["--save", str(run), "--resume-from", name])
    with pytest.raises(UserError, match="--max-restarts would begin there again"):
        run_job(["--save", str(run), "--resume-from", "step-2", "--max-restarts", "1"])
    (run / "checkpoints/step-4/config.json").write_text("{}")
    with pytest.raises(UserError, match="step-4/config.json is damaged"):
        run_job(["--save", str(run), "--resume-from", "step-4"])
    assert (run / "metrics.jsonl").read_bytes() == before and len(steps_in(run)) == 3, "nothing was touched"

    checked_flags(["--save", str(run), "--resume-from", "step-2", "--steps", "4"])
    with pytest.raises(UserError, match="it has reached step 6"):
        checked_flags(["--save", str(run), "--resume", "--steps", "4"])

    capfd.readouterr()
    run_job(["stop=3", "--save", str(run), "--resume-from", "step-2"])
    aside = run / "set-aside-1"
    assert f"note: step-6, step-4 moved to {aside}, with a copy of metrics.jsonl" in capfd.readouterr().err
    assert [folder.name for folder in steps_in(run)] == ["step-3", "step-2"]
    assert (aside / "metrics.jsonl").read_bytes() == before and sorted(losses(run)) == [1, 2, 3]
    assert same_state(aside / "step-6", tmp_path / "checkpoints/step-6")
    run_job(["--save", str(run), "--resume"])
    assert losses(run) == expected and same_state(run / "checkpoints/step-6", aside / "step-6")
    assert open_checkpoint(run).flags.run.resume_from is None


def test_a_run_config_that_is_not_the_checkpoints_is_refused(small: list[str], tmp_path: Path) -> None:
    run_job(["stop=2", *small, "--save", str(tmp_path)])
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"seed": 1234', '"seed": 7'))
    with pytest.raises(UserError, match=f"the run has --seed 1234 but {path} says 7"):
        run_job(["--save", str(tmp_path), "--resume"])


def test_a_new_run_does_not_begin_over_one_that_has_just_ended(small: list[str], tmp_path: Path) -> None:
    flags = parse_training_flags([*small, "--save", str(tmp_path)])
    check_run_folder(flags)  # as the second of two commands, before it waits for its ranks to start
    run_job([*small, "--save", str(tmp_path)])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        Trainer(flags, Stop())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    check_unused(tmp_path)


def test_what_killed_trainings_left_is_removed(small: list[str], tmp_path: Path) -> None:
    run_job(["stop=2", *small, "--save", str(tmp_path)])
    leftovers = [".seen-0a1b2c3d", ".config.json.partial", "checkpoints/.step-5.partial/weights", ".lock"]
    kept = ["checkpoints/.notes.partial", "checkpoints/.step-x.partial", "seen-mine"]
    for name in [*leftovers, *kept]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    run_job(["--save", str(tmp_path), "--resume"])
    assert not [name for name in leftovers if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in kept)
