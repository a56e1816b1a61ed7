"""Dry runs of thousands of ranks, against what the cost model says of the same jobs."""

from dataclasses import replace

import pytest

from deconattn.config.command_line import parse_training_flags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.cost.communication import stage_traffic
from deconattn.cost.job import Job
from deconattn.cost.memory import stage_peak
from deconattn.dry_run.one_rank import RankReport
from deconattn.dry_run.ranks import distinct_ranks, dry_run
from deconattn.dry_run.report import verdict
from deconattn.layers.config import ModelConfig
from deconattn.mixers import variant_names
from tests.cost.test_memory import SMALL, build_job

WIDTHS = "--hidden-size 512 --intermediate-size 1536 --num-attention-heads 8 --vocab-size 32768 --seq-len 1024"
PIPELINE = "--tp 8 --pp 4 --sequence-parallel --num-hidden-layers 8"


def described(words: str, ranks: int) -> tuple[ModelConfig, TrainingFlags, Job]:
    flags = parse_training_flags(f"{WIDTHS} --precision bf16 {words}".split())
    model = model_config(flags.model, 1, flags.data.seq_len)
    return model, flags, Job.of(model, flags, ranks)


def check(words: str, ranks: int, only_ends: bool = True) -> None:
    """Dry-run a job, and compare memory within 5 % and bytes sent within 1 %."""
    model, flags, job = described(words, ranks)
    chosen = list(distinct_ranks(job))
    chosen = [chosen[0], chosen[-1]] if only_ends and len(chosen) > 1 else chosen
    for report in dry_run(model, flags, ranks, 80.0, chosen):
        assert report.refusal is None, report.refusal
        stage = report.coordinates[0]
        predicted, sent = stage_peak(job, stage), stage_traffic(job, stage)
        assert predicted.memory.total == pytest.approx(max(report.peak, report.built), rel=0.05), predicted
        for kind in ("tensor", "data", "pipeline", "tied"):
            assert report.sent(kind) == pytest.approx(getattr(sent, kind), rel=0.01, abs=2**17), kind
        assert report.sent("context") == sent.context


def test_4096_ranks_of_a_pipeline():
    check(f"{PIPELINE} --micro-batch-size 1 --global-batch-size 1024", 4096)


@pytest.mark.parametrize("masks", ["--doc-mask", pytest.param("", marks=pytest.mark.slow)])
def test_three_ranks_of_eight_heads(masks: str):
    """A rank sends keys and values, and what is mixed of queries, in bf16, with log-sum-exps in fp32; and backward."""
    words = f"--cp 3 --num-hidden-layers 2 --seq-len 1536 --micro-batch-size 1 --global-batch-size 1 {masks}"
    model, flags, _ = described(words, 3)
    first, last = dry_run(model, flags, 3, 80.0, [0, 2])
    assert first.refusal is last.refusal is None, (first.refusal, last.refusal)
    for report in (first, last):
        traffic = [one.sent for kind in report.traffic.values() for one in kind if one.name == "send"]
        assert sum(traffic) == 2 * 512 * (2 * 6 * 512 + 4 * 8)


def test_512_ranks_of_which_eight_share_a_sequence():
    """With fixed streams that a step of eight micro-batches holds, which the first and the last run."""
    words = "--variant fixedseq --pattern 1:1 --cp 8 --zero 1 --num-hidden-layers 4 --seq-len 8192"
    check(f"{words} --micro-batch-size 1 --global-batch-size 512", 512)


HELD = "--tp 4 --zero 1 --num-hidden-layers 4 --micro-batch-size 1 --global-batch-size 6"


@pytest.mark.parametrize(
    "words",
    [
        "--variant fixedseq --sequence-parallel",
        pytest.param("--variant fixedseq --recompute layer", marks=pytest.mark.slow),
        pytest.param("--variant rndemb --pattern 1:1", marks=pytest.mark.slow),
        pytest.param("--variant rndemb --pattern 1:1 --sequence-parallel --recompute mixer", marks=pytest.mark.slow),
    ],
)
def test_cut_layers_with_streams_that_a_step_holds(words: str):
    """Of three micro-batches, in each of which the streams' rows would be a second sequence's."""
    model, flags, job = described(f"{HELD} {words}", 8)
    (report,) = dry_run(model, flags, 8, 80.0, [0])
    assert report.refusal is None, report.refusal
    assert report.sent("tensor") == pytest.approx(stage_traffic(job, 0).tensor, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("more", ["--zero 1", "--zero 2 --recompute mixer", "--zero 3"])
@pytest.mark.parametrize("variant", variant_names())
def test_every_variant_of_a_long_sequence(variant: str, more: str):
    words = f"--variant {variant} --pattern 1:1 --num-hidden-layers 4 --seq-len 16384 --cp 4 {more}"
    check(f"{words} --micro-batch-size 1 --global-batch-size 8", 16)


@pytest.mark.slow
def test_a_pipeline_of_long_sequences():
    words = "--tp 2 --sequence-parallel --pp 4 --cp 4 --num-hidden-layers 8 --seq-len 8192"
    check(f"{words} --micro-batch-size 1 --global-batch-size 64", 512)


@pytest.mark.slow
def test_4096_ranks_of_zero_3():
    check("--zero 3 --num-hidden-layers 4 --micro-batch-size 1 --global-batch-size 8192", 4096)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [64, 512])
@pytest.mark.parametrize("variant", variant_names())
def test_every_variant(variant: str, ranks: int):
    words = f"{PIPELINE} --variant {variant} --pattern 1:1 --micro-batch-size 2 --global-batch-size {2 * ranks}"
    check(words, ranks)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("more", ["", "--recompute layer", "--tp 2", "--tie-embeddings"])
def test_every_stage_of_zero(zero: int, more: str):
    check(f"--zero {zero} --num-hidden-layers 4 --micro-batch-size 2 --global-batch-size 256 {more}", 64)


def test_ranks_that_differ():
    job = build_job(pp=3, tp=2, dp=4)
    assert distinct_ranks(job) == {0: "stage 0", 8: "stage 1", 16: "stage 2"}
    deep = replace(SMALL, num_hidden_layers=8, layer_variants=("standard",) * 8)
    assert list(distinct_ranks(build_job(model=deep, pp=4))) == [0, 1, 3]  # stages 1 and 2 are alike
    uneven = replace(SMALL, vocab_size=257)
    assert list(distinct_ranks(build_job(model=uneven, tp=2))) == [0, 1]


def test_a_rank_that_cannot_train_is_told():
    reports = [RankReport(0, peak=2**30), RankReport(8, refusal="TypeError: no (build.py:1)")]
    assert list(verdict(build_job(), reports, 80)) == ["refused on rank 8: TypeError: no (build.py:1)"]
    assert next(verdict(build_job(), reports[:1], 1)).startswith("the dry run does not fit: 1.00 of 1 GiB")
