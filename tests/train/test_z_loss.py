"""Training with a z-loss: told apart from the cross-entropy, and the same on every topology."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from deconattn.config.command_line import parse_training_flags
from deconattn.errors import UserError
from tests.ranks import Ranks
from tests.train.conftest import rows
from tests.train.jobs import run_job, train

FLAGS = ["--z-loss", "1e-2", "--steps", "3"]


def column(run: Path, name: str) -> list[float]:
    return [row[name] for row in rows(run) if "loss" in row]


def test_metrics_tell_the_two_apart(small: list[str], tmp_path: Path) -> None:
    run_job([*small, *FLAGS, "--steps", "2", "--save", str(tmp_path / "with")])
    run_job([*small, "--steps", "2", "--save", str(tmp_path / "without")])
    loss, without = column(tmp_path / "with", "loss"), column(tmp_path / "without", "loss")
    assert loss[0] == without[0], "the cross-entropy of the initial weights"
    assert loss[1] != without[1]
    # Initial logits are near 0, so that Z is about the number of words.
    assert column(tmp_path / "with", "z_loss")[0] == pytest.approx(1e-2 * math.log(512) ** 2, rel=0.01)
    assert not any("z_loss" in row for row in rows(tmp_path / "without"))


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--tp 2", "--pp 2", "--zero 3"])
def test_two_ranks_have_the_same(small: list[str], tmp_path: Path, ranks: Callable[[int], Ranks], flags: str) -> None:
    run_job([*small, *FLAGS, "--save", str(tmp_path / "one")])
    ranks(2)(train, arguments=[*small, *FLAGS, *flags.split(), "--save", str(tmp_path / "two")])
    for name in ("loss", "z_loss", "grad_norm"):
        assert column(tmp_path / "two", name) == pytest.approx(column(tmp_path / "one", name), rel=1e-5), name


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_no_coefficient(value: str) -> None:
    with pytest.raises(UserError, match="--z-loss is"):
        parse_training_flags(["--z-loss", value])
