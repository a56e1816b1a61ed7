"""How batches are loaded: by worker processes, and with documents packed whole."""

from pathlib import Path

import pytest

from deconattn.errors import UserError
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
