"""The same training whatever the ranks, the ZeRO stage and the micro-batch."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deconattn.checkpoint.format import open_checkpoint
from deconattn.mixers import variant_names
from tests.ranks import Ranks
from tests.train.conftest import losses, rows, validation_losses
from tests.train.jobs import run_job, train

VARIANTS = ["--variant", "fixedseq", "--pattern", "1:1"]


@pytest.fixture(scope="module")
def single(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, without ZeRO."""
    from tests.conftest import SMALL

    run = tmp_path_factory.mktemp("single")
    run_job(["--data", str(corpus), *SMALL, *VARIANTS, "--zero", "0", "--save", str(run)])
    return run


def assert_same_run(run: Path, other: Path, tolerance: float) -> None:
    for series in (losses, validation_losses):
        assert series(run) == pytest.approx(series(other), rel=tolerance)
    norms, others = ([row["grad_norm"] for row in rows(path) if "loss" in row] for path in (run, other))
    assert norms == pytest.approx(others, rel=10 * tolerance)
    weights, expected = open_checkpoint(run).weights(), open_checkpoint(other).weights()
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=20 * tolerance)


def test_zero_stages_agree_in_one_process(small: list[str], single: Path, tmp_path: Path) -> None:
    for zero in ("1", "2", "3"):
        run = tmp_path / zero
        run_job([*small, *VARIANTS, "--zero", zero, "--save", str(run)])
        assert_same_run(run, single, 1e-5)


@pytest.mark.parametrize("variant", variant_names())
def test_every_variant_trains_alike_under_zero_3_with_tied_embeddings(
    small: list[str], tmp_path: Path, variant: str
) -> None:
    for zero in ("0", "3"):
        flags = [*small, "--variant", variant, "--tie-embeddings", "--zero", zero, "--steps", "3"]
        run_job([*flags, "--save", str(tmp_path / zero)])
    assert_same_run(tmp_path / "3", tmp_path / "0", 1e-5)


def test_micro_batches_do_not_matter(small: list[str], single: Path, tmp_path: Path) -> None:
    for micro in ("1", "4"):
        run = tmp_path / micro
        run_job([*small, *VARIANTS, "--micro-batch-size", micro, "--save", str(run)])
        assert_same_run(run, single, 1e-5)


def test_document_masks_keep_the_loss_independent_of_micro_batches(small: list[str], tmp_path: Path) -> None:
    for micro in ("1", "4"):
        run_job([*small, *VARIANTS, "--doc-mask", "--micro-batch-size", micro, "--save", str(tmp_path / micro)])
    assert_same_run(tmp_path / "1", tmp_path / "4", 1e-5)


@pytest.mark.parametrize("pattern", ["fixedseq,nonapproximate", pytest.param("gla,standard", marks=pytest.mark.slow)])
def test_shared_sequences_of_documents_packed_by_best_fit(
    small: list[str], tmp_path: Path, ranks: Callable[[int], Ranks], pattern: str
) -> None:
    flags = [*small, "--pattern", pattern, "--doc-mask", "--packing", "best-fit"]
    run_job([*flags, "--save", str(tmp_path / "alone")])
    ranks(2)(train, arguments=[*flags, "--cp", "2", "--zero", "2", "--save", str(tmp_path / "shared")])
    assert_same_run(tmp_path / "shared", tmp_path / "alone", 1e-5)


@pytest.mark.slow
def test_accumulated_bf16_gradients_keep_every_micro_batch(small: list[str], single: Path, tmp_path: Path) -> None:
    for zero in ("1", "2", "3"):
        run = tmp_path / zero
        bf16 = ["--precision", "bf16", "--zero", zero, "--micro-batch-size", "1"]
        run_job([*small, *VARIANTS, *bf16, "--save", str(run)])
        # bf16 has 8 bits of mantissa: single losses agree to a few parts in a thousand, gradient norms to percents
        assert losses(run) == pytest.approx(losses(single), rel=4e-3)
        norms, expected = ([row["grad_norm"] for row in rows(path) if "loss" in row] for path in (run, single))
        assert norms == pytest.approx(expected, rel=0.04)


@pytest.mark.slow
def test_two_ranks_train_as_one(small: list[str], single: Path, tmp_path: Path, ranks: Callable[[int], Ranks]) -> None:
    runs = {zero: tmp_path / f"zero{zero}" for zero in ("0", "1", "2", "3")}
    jobs = [[*small, *VARIANTS, "--zero", zero, "--save", str(run)] for zero, run in runs.items()]
    bf16 = tmp_path / "bf16"
    jobs.append([*small, *VARIANTS, "--precision", "bf16", "--save", str(bf16)])
    cut = tmp_path / "cut"
    jobs.append(["stop=3", *small, *VARIANTS, "--zero", "2", "--save", str(cut)])
    poisoned = tmp_path / "poisoned"
    jobs.append(["poison=2", "until=3", *small, *VARIANTS, "--zero", "3", "--save", str(poisoned)])
    contradiction = [*small, *VARIANTS, "--global-batch-size", "2", "--save", str(tmp_path / "batch")]
    for arguments in jobs:
        assert ranks(2)(train, arguments=arguments) is None
    message = ranks(2)(train, arguments=contradiction)
    for run in runs.values():
        assert_same_run(run, single, 1e-5)
    assert losses(bf16) == pytest.approx(losses(single), rel=4e-3)
    assert message.startswith("--global-batch-size 2 is not a multiple of --micro-batch-size 2 x 2")

    # A run of two ranks goes on in one process, on another ZeRO stage, with the same data order.
    run_job(["--save", str(cut), "--resume", "--zero", "1"])
    assert_same_run(cut, single, 1e-5)
    assert open_checkpoint(poisoned).progress.skipped_steps == 1


def test_a_run_of_one_process_goes_on_in_two(
    small: list[str], single: Path, tmp_path: Path, ranks: Callable[[int], Ranks]
) -> None:
    run = tmp_path / "run"
    run_job(["stop=3", *small, *VARIANTS, "--save", str(run)])
    assert ranks(2)(train, arguments=["--save", str(run), "--resume", "--zero", "3"]) is None
    assert_same_run(run, single, 1e-5)


@pytest.mark.parametrize("recompute", [pytest.param("layer", marks=pytest.mark.slow), "mixer"])
def test_recomputation_changes_nothing(small: list[str], single: Path, tmp_path: Path, recompute: str) -> None:
    run_job([*small, *VARIANTS, "--zero", "0", "--recompute", recompute, "--save", str(tmp_path)])
    assert_same_run(tmp_path, single, 1e-6)


def test_the_first_loss_is_that_of_a_uniform_guess(single: Path) -> None:
    assert losses(single)[1] == pytest.approx(math.log(512), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("variant", variant_names())
def test_compiled_layers_train_alike(small: list[str], tmp_path: Path, variant: str) -> None:
    """With recomputed layers and mixers and without, and document masks."""
    flags = [*small, "--variant", variant, "--pattern", "1:1"]
    run_job([*flags, "--save", str(tmp_path / "eager")])
    for name, extra in (("plain", []), ("checkpointed", ["--recompute", "layer"]), ("mixer", ["--recompute", "mixer"])):
        run_job([*flags, "--compile", *extra, "--save", str(tmp_path / name)])
        assert_same_run(tmp_path / name, tmp_path / "eager", 1e-5)
    run_job([*flags, "--doc-mask", "--save", str(tmp_path / "masked")])
    run_job([*flags, "--doc-mask", "--compile", "--save", str(tmp_path / "masked-compiled")])
    assert_same_run(tmp_path / "masked-compiled", tmp_path / "masked", 1e-5)
