"""What is told of a run."""

import math
import shutil
from pathlib import Path

import pytest

from deconattn.checkpoint.format import open_checkpoint
from deconattn.cost.hardware import peak_flops
from deconattn.errors import UserError
from deconattn.model.flops import training_flops
from tests.train.conftest import rows
from tests.train.jobs import run_job


def test_every_step_has_its_row(small: list[str], tmp_path: Path) -> None:
    trainer = run_job([*small, "--save", str(tmp_path), "--eval-every", "3"])
    steps = [row for row in rows(tmp_path) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in steps] == [4 * 32 * step for step in range(1, 7)]
    for row in steps:
        assert {"loss", "grad_norm", "learning_rate", "memory_gib", "skipped_steps"} <= row.keys()
        assert row["memory_gib"] > 0
        assert row["loss"] < math.log(512) + 0.5
    assert all(row["tokens_per_second"] > 0 for row in steps[1:]), "the first step's time is start-up"
    assert [row["step"] for row in rows(tmp_path) if "val_loss" in row] == [3, 6]
    assert "mfu" not in steps[-1], "the peak of this CPU is not known"
    assert training_flops(trainer.model_config, 1, 32) > 0


def test_the_first_line_says_what_is_computed_in(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for precision, stage in (("fp32", 0), ("bf16", 1)):
        run_job([*small, "--steps", "1", "--precision", precision, "--save", str(tmp_path / precision)])
        told = [line for line in capfd.readouterr().err.splitlines() if line.startswith((precision, "step "))]
        assert told[0] == f"{precision} on 1 x CPU, ZeRO stage {stage}"


def test_log_every_thins_the_rows_but_keeps_the_last(small: list[str], tmp_path: Path) -> None:
    run_job([*small, "--save", str(tmp_path), "--log-every", "4"])
    assert [row["step"] for row in rows(tmp_path) if "loss" in row] == [4, 6]


def test_wandb_is_offline_without_a_key_and_continues_its_run(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    run = tmp_path / "run"
    run_job(["stop=3", *small, "--save", str(run), "--wandb-project", "test"])
    run_job(["--save", str(run), "--resume"])
    identity = (run / "wandb-id").read_text()
    offline = list((run / "wandb").glob("offline-run-*"))
    assert offline
    assert all(identity in folder.name for folder in offline)  # wandb appends -1 to a second one in the same second


def test_tensorboard_has_what_the_file_has_and_a_resumed_run_goes_on_in_it(small: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = [*small, "--save", str(tmp_path), "--tensorboard", "--eval-every", "3", "--save-every", "2"]
    run_job(["stop=5", *words])
    shutil.rmtree(tmp_path / "checkpoints/step-5")  # as if it had been killed in step 5: it goes on from step 4
    run_job(["--save", str(tmp_path), "--resume"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name, steps in (("loss", [1, 2, 3, 4, 5, 6]), ("val_loss", [3, 6])):
        told = {row["step"]: row[name] for row in rows(tmp_path) if name in row}
        found = {scalar.step: scalar.value for scalar in events.Scalars(name)}
        assert list(found) == [scalar.step for scalar in events.Scalars(name)] == steps, "no step twice"
        assert found == pytest.approx(told)
    assert {"grad_norm", "learning_rate", "tokens", "tokens_per_second"} <= set(events.Tags()["scalars"])


def test_fixed_text_becomes_the_stream(small: list[str], corpus: Path, tmp_path: Path) -> None:
    from deconattn.data import TokenCorpus, load_tokenizer

    text = "Shall I compare thee to a summer's day? " * 20
    file = tmp_path / "sonnet.txt"
    file.write_text(text)
    run_job([*small, "--variant", "fixedseq", "--fixed-text", str(file), "--save", str(tmp_path / "given")])
    run_job([*small, "--variant", "fixedseq", "--save", str(tmp_path / "default")])
    given = open_checkpoint(tmp_path / "given").weights()["model.fixed_ids"]
    default = open_checkpoint(tmp_path / "default").weights()["model.fixed_ids"]
    assert given.tolist() == load_tokenizer(corpus).encode_batch([text])[0][:32].tolist()
    assert default.tolist() == TokenCorpus(corpus).read(0, 32).tolist()


def test_a_fixed_text_may_move_but_not_change(small: list[str], tmp_path: Path) -> None:
    """The checkpoint has its ids."""
    file, moved = tmp_path / "sonnet.txt", tmp_path / "moved.txt"
    file.write_text("Shall I compare thee to a summer's day? " * 20)
    run = ["--save", str(tmp_path / "run"), "--resume"]
    run_job(["stop=1", *small, "--variant", "fixedseq", "--fixed-text", str(file), *run[:2]])
    before = open_checkpoint(tmp_path / "run").weights()["model.fixed_ids"]
    file.rename(moved)
    with pytest.raises(UserError, match=r"no such file: .*other.txt"):
        run_job([*run, "--fixed-text", str(tmp_path / "other.txt")])
    run_job(["stop=2", *run])
    run_job(["stop=3", *run, "--fixed-text", str(moved)])
    moved.write_text("Thou art more lovely and more temperate. " * 20)
    with pytest.raises(UserError, match=r"--fixed-text .*moved.txt is not the text that the run was started with"):
        run_job(run)
    assert open_checkpoint(tmp_path / "run").weights()["model.fixed_ids"].equal(before)
    assert open_checkpoint(tmp_path / "run").step == 3


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("AMD Instinct MI300X", 1307e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_by_device_name(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak
