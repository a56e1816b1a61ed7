"""A run goes on wherever it is taken: other ranks, other ZeRO stages, stages and cuts, and back."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from deconattn.checkpoint.format import open_checkpoint
from deconattn.config.command_line import parse_training_flags
from deconattn.hf.export import export
from deconattn.hf.model_card import Provenance
from deconattn.model.causal_lm import CausalLM
from deconattn.train.saving import Saver
from deconattn.train.trainer import Trainer
from tests.conftest import SMALL
from tests.ranks import Ranks
from tests.train.conftest import losses, rows
from tests.train.jobs import Stop, run_job, train
from tests.train.test_ranks import assert_same_run
from tests.train.test_resume import same_state

MODEL = "--pattern fixedseq,staticemb --tie-embeddings --doc-mask".split()
CHAIN = (
    (4, "--tp 2 --pp 2 --zero 1"),
    (2, "--tp 1 --pp 1 --zero 3"),
    (2, "--tp 1 --pp 2 --zero 1"),
    (2, "--tp 1 --pp 1 --zero 0 --cp 2"),
    (2, "--tp 2 --pp 1 --zero 2 --cp 1 --sequence-parallel"),
)
THROUGH_ALL = (
    (4, "--tp 2 --pp 2 --zero 1"),
    (3, "--tp 1 --pp 1 --zero 3"),
    (2, "--tp 1 --pp 2 --zero 1"),
    (4, "--tp 1 --pp 1 --zero 2 --cp 2"),
    (1, "--tp 1 --pp 1 --zero 0 --cp 1"),
)
HOME = "--tp 1 --pp 1 --zero 1 --no-sequence-parallel".split()
AtRanks = Callable[[int], Ranks]


def rewrite(run: str, out: str, flags: str, mode: str = "sync") -> None:
    """Open a run's checkpoint on this topology and write it again, without training."""
    trainer = Trainer(parse_training_flags(["--save", run, "--resume", *flags.split()]), Stop())
    tokenizer = trainer.data.write_tokenizer
    saver = Saver(trainer.engine, Path(out), trainer.config, tokenizer, keep=1, background=mode == "async")
    saver.begin(trainer.progress)
    assert saver.wait() is None
    trainer._release()
    trainer.engine.destroy()


def exported(run: Path, out: Path) -> dict[str, bytes]:
    checkpoint = open_checkpoint(run)
    export(
        checkpoint.weights(),
        checkpoint.model_config,
        out,
        dtype=torch.float32,
        tokenizer_folder=checkpoint.tokenizer_folder,
        provenance=Provenance(checkpoint.step),
    )
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def single(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that stays in one process."""
    run = tmp_path_factory.mktemp("single")
    run_job(["--data", str(corpus), *SMALL, *MODEL, "--save", str(run)])
    return run


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_weights_and_moments_go_round_bit_for_bit(
    small: list[str],
    tmp_path: Path,
    ranks: AtRanks,
    precision: str,
) -> None:
    first = tmp_path / "run-0"
    run_job(["stop=3", *small, *MODEL, "--precision", precision, "--save", str(first)])
    before, expected = first, exported(first, tmp_path / "export-0")
    chain = [(size, flags) for size, flags in CHAIN if precision == "fp32" or "--zero 0" not in flags]
    for number, (world_size, flags) in enumerate(chain, start=1):
        run = tmp_path / f"run-{number}"
        shutil.copytree(first, run, ignore=shutil.ignore_patterns("checkpoints"))
        ranks(world_size)(rewrite, run=str(before), out=str(run), flags=flags)
        assert same_state(first / "checkpoints/step-3", run / "checkpoints/step-3"), flags
        assert exported(run, tmp_path / f"export-{number}") == expected, flags
        before = run
    run_job(["--save", str(before), "--resume", *HOME])
    assert open_checkpoint(before).step == 6


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_through_checkpoints_of_every_kind(small: list[str], tmp_path: Path, ranks: AtRanks, mode: str) -> None:
    # 3 divides no power of two
    flags = [*small, *MODEL, "--global-batch-size", "12", "--micro-batch-size", "1", "--save-mode", mode]
    first = tmp_path / "run-0"
    run_job(["stop=3", *flags, "--save", str(first)])
    before = first
    for number, (world_size, topology) in enumerate(THROUGH_ALL, start=1):
        run = tmp_path / f"run-{number}"
        shutil.copytree(first, run, ignore=shutil.ignore_patterns("checkpoints"))
        ranks(world_size)(rewrite, run=str(before), out=str(run), flags=topology, mode=mode)
        assert len(list((run / "checkpoints/step-3").glob("slices-*"))) == world_size
        assert same_state(first / "checkpoints/step-3", run / "checkpoints/step-3"), topology
        before = run
    run_job(["--save", str(before), "--resume", *HOME])
    assert open_checkpoint(before).step == 6


@pytest.mark.slow  # how a tensor is cut among five: tests/layers/test_shards.py
@pytest.mark.parametrize(
    ("world_size", "precision"),
    [(3, "fp32"), (3, "bf16"), (5, "fp32")],
)
def test_zero_3_where_the_ranks_divide_no_tensor(
    small: list[str], tmp_path: Path, ranks: AtRanks, world_size: int, precision: str
) -> None:
    # 3 divides no power of two; of a norm's 32 elements the fifth rank of five holds 4, and 3 of padding.
    everywhere = [*small, *MODEL, "--global-batch-size", "15", "--micro-batch-size", "1", "--precision", precision]
    stays, goes, again = tmp_path / "stays", tmp_path / "goes", tmp_path / "again"
    run_job(["stop=1", *everywhere, "--save", str(stays)])
    shutil.copytree(stays, goes)
    shutil.copytree(stays, again, ignore=shutil.ignore_patterns("checkpoints"))
    ranks(world_size)(rewrite, run=str(stays), out=str(again), flags="--zero 3")
    assert same_state(goes / "checkpoints/step-1", again / "checkpoints/step-1")
    arguments = ["stop=2", "--save", str(goes), "--resume", "--zero", "3"]
    assert ranks(world_size)(train, arguments=arguments) is None
    run_job(["stop=2", "--save", str(again), "--resume"])
    assert losses(goes)[2] == pytest.approx(losses(again)[2], rel=1e-5 if precision == "fp32" else 4e-3)


def test_the_loss_curve_does_not_notice(
    small: list[str],
    single: Path,
    tmp_path: Path,
    ranks: AtRanks,
) -> None:
    run_job(["stop=1", *small, *MODEL, "--save", str(tmp_path)])
    for stop, (world_size, flags) in enumerate(CHAIN, start=2):
        arguments = [f"stop={stop}", "--save", str(tmp_path), "--resume", *flags.split()]
        assert ranks(world_size)(train, arguments=arguments) is None
    run_job(["--save", str(tmp_path), "--resume", *HOME])
    assert_same_run(tmp_path, single, 1e-5)


def test_an_export_from_tensor_and_pipeline_ranks_is_the_single_process_model(
    small: list[str],
    single: Path,
    tmp_path: Path,
    ranks: AtRanks,
) -> None:
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    assert ranks(4)(train, arguments=[*small, *MODEL, "--tp", "2", "--pp", "2", "--save", str(run)]) is None
    assert_same_run(run, single, 1e-5)
    exported(run, tmp_path / "exported")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", trust_remote_code=True)
    tokens = torch.randint(512, (2, 32), generator=torch.Generator().manual_seed(0))
    for source, tolerance in ((run, 1e-5), (single, 1e-3)):
        checkpoint = open_checkpoint(source)
        ours = CausalLM(checkpoint.model_config)
        ours.load_state_dict(checkpoint.weights(), strict=False)
        ours.tie_weights()
        with torch.no_grad():
            assert_close(theirs(tokens).logits, ours.logits(tokens), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("precision", "flags"),
    [
        ("fp32", "--pp 2 --zero 0"),
        ("fp32", "--pp 2 --zero 1"),
        ("fp32", "--tp 2 --zero 0"),
        ("fp32", "--tp 2 --zero 3"),
        ("bf16", "--pp 2 --zero 1"),
        ("bf16", "--tp 2 --zero 3"),
    ],
)
def test_a_step_without_a_finite_gradient_is_skipped_by_all(
    small: list[str],
    tmp_path: Path,
    ranks: AtRanks,
    flags: str,
    precision: str,
) -> None:
    arguments = ["poison=2", "until=3", *small, *flags.split(), "--precision", precision, "--save", str(tmp_path)]
    assert ranks(2)(train, arguments=arguments) is None
    progress = open_checkpoint(tmp_path).progress
    assert (progress.step, progress.optimizer_steps, progress.skipped_steps) == (6, 5, 1)
    assert all(abs(row["loss"]) < 10 for row in rows(tmp_path) if "loss" in row)


def test_ranks_that_do_not_divide(small: list[str], tmp_path: Path, ranks: AtRanks) -> None:
    message = ranks(2)(train, arguments=[*small, "--tp", "2", "--pp", "2", "--save", str(tmp_path)])
    assert message.startswith("2 ranks are not a multiple of --tp 2 x --pp 2 = 4")
