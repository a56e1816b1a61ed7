"""Bytes that a rank sends in a step, on cases made by hand."""

from dataclasses import replace

import pytest

from deconattn.config.flag_groups import Recompute
from deconattn.cost.communication import stage_traffic
from deconattn.cost.job import Job
from deconattn.cost.parameters import rank_parameters
from tests.cost.test_memory import SMALL, build_job

HIDDEN = 4 * 2 * 128 * 64
"""Bytes of one micro-batch's hidden states."""


def parameters(job: Job) -> int:
    return rank_parameters(job.model, range(3)).total


def test_one_rank_sends_nothing():
    assert stage_traffic(build_job(accumulation=3), 0).total == 0


@pytest.mark.parametrize(
    ("zero", "size", "reduced", "times_the_weights"),
    [
        (0, 4, 4, 2.0),
        (1, 4, 4, 3.0),
        (2, 4, 4, 2 * 5 + 1),
        (3, 4, 4, 2 * 5),
        (1, 2, 4, 5.0),
        (1, 2, 2, 3.0),
        (2, 2, 4, 4 * 5 + 1),
        (3, 2, 4, 3 * 5),
    ],
)
def test_data_parallel_ranks(zero: int, size: int, reduced: int, times_the_weights: float):
    job = build_job(zero=zero, bytes_per_element=size, reduced_bytes=reduced, dp=2, accumulation=5)
    weights = size * parameters(job)
    assert stage_traffic(job, 0).data == pytest.approx(times_the_weights * weights / 2, rel=1e-6)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_tensor_parallel_ranks(sequence_parallel: bool):
    job = build_job(tp=2, accumulation=5, sequence_parallel=sequence_parallel)
    # Two modules a layer sum their outputs and their input's gradients; the embedding and the head once each.
    exchanges = 3 * 4 + 2
    norms = 4 * 7 * 64 if sequence_parallel else 0
    again = 3 * HIDDEN if sequence_parallel else 0  # two gatherings a layer, each half an all-reduce
    assert stage_traffic(job, 0).tensor == 5 * (exchanges * HIDDEN + again + norms)
    for part, more in (("mixer", 0), ("mlp", 0), ("layer", 3 * HIDDEN // (1 + sequence_parallel))):
        assert stage_traffic(replace(job, recompute=part), 0).tensor - stage_traffic(job, 0).tensor == 5 * more


@pytest.mark.parametrize(("part", "halves"), [("none", 0), ("mixer", 1), ("mlp", 1), ("layer", 3)])
def test_zero_3_gathers_again_what_it_recomputes(part: Recompute, halves: int):
    job = build_job(tp=2, zero=3, sequence_parallel=True)
    more = stage_traffic(replace(job, recompute=part), 0).tensor - stage_traffic(job, 0).tensor
    assert more == 3 * halves * HIDDEN // 2


def test_static_embeddings_have_a_gradient_of_their_own():
    plain, static = (
        stage_traffic(build_job(tp=2, model=replace(SMALL, layer_variants=variants)), 0).tensor
        for variants in (("standard",) * 3, ("standard", "staticemb", "standard"))
    )
    assert static - plain == HIDDEN


def test_a_random_stream_is_not_embedded():
    text, random = (
        stage_traffic(build_job(tp=2, model=replace(SMALL, layer_variants=(variant,) * 3)), 0).tensor
        for variant in ("fixedseq", "rndemb")
    )
    assert text - random == HIDDEN / 2  # a row of two


def test_pipeline_stages():
    job = build_job(pp=3, accumulation=5)
    labels = 5 * 8 * 2 * 128  # int64, and only onwards
    sent = [5 * HIDDEN + labels, 10 * HIDDEN + labels, 5 * HIDDEN]
    assert [stage_traffic(job, stage).pipeline for stage in range(3)] == sent
    tied = replace(job, model=replace(SMALL, tie_word_embeddings=True))
    assert [stage_traffic(tied, stage).tied for stage in range(3)] == [4 * 256 * 64, 0, 4 * 256 * 64]
