"""A stop is heard wherever it comes, nothing is lost by it, and what it skipped is made up for, once."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deconattn.checkpoint.format import steps_in
from deconattn.checkpoint.manifest import Progress
from deconattn.errors import UserError
from deconattn.train import metrics, saving
from deconattn.train.metrics import METRICS, MetricsFile
from deconattn.train.saving import Saver
from tests.ranks import Ranks
from tests.train.conftest import MEASURED, rows
from tests.train.jobs import run_job, train

EVERY_3 = ["--save-every", "3", "--eval-every", "3"]


def told(run: Path) -> list[dict[str, Any]]:
    """The rows, without what differs from one run of a command to the next."""
    return [{key: value for key, value in row.items() if not key.startswith(MEASURED)} for row in rows(run)]


@pytest.mark.parametrize("step", [3, 6])
def test_a_stop_in_a_validation_saves_first_and_the_resume_validates(
    step: int, small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_job([*small, *EVERY_3, "--save", str(tmp_path / "whole")])
    cut = tmp_path / "cut"
    run_job([f"stop_validation={step}", *small, *EVERY_3, "--save", str(cut)])
    assert f"stopped on request at step {step}" in capfd.readouterr().err
    assert steps_in(cut)[0].name == f"step-{step}"
    assert (step, "val_loss") not in [(row["step"], "val_loss") for row in rows(cut) if "val_loss" in row]
    assert [row["step"] for row in rows(cut) if "loss" in row] == list(range(1, step + 1))
    run_job(["--save", str(cut), "--resume"])
    assert told(cut) == told(tmp_path / "whole")
    before = (cut / METRICS).read_bytes()
    run_job(["--save", str(cut), "--resume"])
    assert (cut / METRICS).read_bytes() == before, "a finished run has nothing to add"
    loss = rows(cut)[-1]["val_loss"]
    assert f"validation loss: {loss:.4f} nats" in capfd.readouterr().err


def test_a_stop_in_a_validation_without_a_checkpoint_saves(small: list[str], tmp_path: Path) -> None:
    every = ["--eval-every", "2"]
    run_job([*small, *every, "--save", str(tmp_path / "whole")])
    run_job(["stop_validation=4", *small, *every, "--save", str(tmp_path / "cut")])
    assert [folder.name for folder in steps_in(tmp_path / "cut")] == ["step-4"]
    run_job(["--save", str(tmp_path / "cut"), "--resume"])
    assert told(tmp_path / "cut") == told(tmp_path / "whole")


@pytest.mark.parametrize(
    "flags",
    ["--zero 0", *(pytest.param(flags, marks=pytest.mark.slow) for flags in ("--pp 2", "--tp 2", "--zero 3"))],
)
def test_one_ranks_stop_in_a_validation_is_everybodys(
    flags: str, small: list[str], tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    many = [*small, *EVERY_3, "--eval-sequences", "40", *flags.split()]
    assert ranks(2)(train, arguments=[*many, "--save", str(tmp_path / "whole")]) is None
    assert ranks(2)(train, arguments=["stop_validation=3", *many, "--save", str(tmp_path / "cut")]) is None
    assert [row["step"] for row in rows(tmp_path / "cut")] == [1, 2, 3]
    assert [folder.name for folder in steps_in(tmp_path / "cut")] == ["step-3"]
    assert ranks(2)(train, arguments=["--save", str(tmp_path / "cut"), "--resume"]) is None
    assert told(tmp_path / "cut") == told(tmp_path / "whole")


@pytest.mark.parametrize("step", [3, 6])
def test_a_stop_in_the_step_before_a_validation_only_delays_it(step: int, small: list[str], tmp_path: Path) -> None:
    run_job([*small, *EVERY_3, "--save", str(tmp_path / "whole")])
    run_job([f"stop={step}", *small, *EVERY_3, "--save", str(tmp_path / "cut")])
    run_job(["--save", str(tmp_path / "cut"), "--resume"])
    assert told(tmp_path / "cut") == told(tmp_path / "whole")


def test_rows_that_a_kill_took_are_made_up_and_doubled_ones_dropped(small: list[str], tmp_path: Path) -> None:
    run_job([*small, *EVERY_3, "--save", str(tmp_path)])
    expected, path = told(tmp_path), tmp_path / METRICS
    lines = path.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1]).keys() == {"step", "val_loss"}
    path.write_text("".join(lines[:-1]))  # killed between the checkpoint and the validation
    run_job(["--save", str(tmp_path), "--resume"])
    assert told(tmp_path) == expected
    path.write_text("".join([*lines, lines[-1], lines[3], '{"step": 6, "val_loss": [1]}\n', "null\n"]))
    run_job(["--save", str(tmp_path), "--resume"])
    assert told(tmp_path) == expected


def test_rows_are_on_the_disk_before_the_checkpoint_that_follows(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, begun = list[int](), list[int]()
    fsync, begin, seal = os.fsync, Saver.begin, saving.seal

    def note(descriptor: int) -> None:
        fsync(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(METRICS):
            synced.append(os.fstat(descriptor).st_size)

    def beginning(saver: Saver, progress: Progress) -> Path:
        begun.append((tmp_path / METRICS).stat().st_size)
        return begin(saver, progress)

    def check(*arguments: Any) -> None:
        assert synced[-1] >= begun[-1] > 0
        seal(*arguments)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Saver, "begin", beginning)
    monkeypatch.setattr(saving, "seal", check)
    run_job([*small, *EVERY_3, "--save", str(tmp_path)])
    assert synced[-1] == (tmp_path / METRICS).stat().st_size, "nor is the last validation left to chance"


def test_a_full_disk_is_one_line(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = MetricsFile.__init__

    def full(self: MetricsFile, *arguments: Any) -> None:
        make(self, *arguments)
        self._file.close()
        self._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115

    said = rf"{tmp_path}/\S*{METRICS} cannot be written \(No space left on device\): free space"
    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "__init__", full)
        with pytest.raises(UserError, match=said):
            run_job([*small, "--save", str(tmp_path / "run")])
    file = MetricsFile(tmp_path, 0)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(metrics.os, "fsync", refuse)
        for act in (file.sync, lambda: MetricsFile(tmp_path, 0)):
            with pytest.raises(UserError, match=said):
                act()
    file.close()


def test_what_a_full_disk_took_half_of_is_dropped(tmp_path: Path) -> None:
    class Nearly:
        """Takes 7 bytes at a time, and 20 in all."""

        taken = b""

        def write(self, content: bytes) -> int:
            if len(self.taken) >= 20:
                raise OSError(28, "No space left on device")
            self.taken += content[:7]
            return min(7, len(content))

    file = MetricsFile(tmp_path, 0)
    file.write({"step": 1, "loss": 2.5})
    file.close()
    file._file = disk = Nearly()  # type: ignore[assignment]
    with pytest.raises(UserError, match="No space left"):
        file.write({"step": 2, "loss": 2.25, "grad_norm": 1})
    with (tmp_path / METRICS).open("ab") as kept:
        kept.write(disk.taken)
    MetricsFile(tmp_path, 5).close()
    assert rows(tmp_path) == [{"step": 1, "loss": 2.5}]
