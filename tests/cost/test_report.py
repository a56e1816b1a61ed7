"""What a plan says in words."""

from deconattn.cost.report import summary
from tests.cost.test_memory import build_job


def test_whether_it_fits():
    job = build_job(gpu=True)
    assert list(summary(job, 80))[-1].startswith("fits: 0.0")
    assert list(summary(job, 0.001))[-1].startswith("does not fit: 0.0")


def test_the_pipeline_and_its_exchange():
    lines = list(summary(build_job(gpu=True, pp=3, tp=2, sequence_parallel=True, accumulation=8), 80))
    assert lines[0] == "a step: 8 x 2 sequences of 128 tokens on each of 1 replicas, 2,048 tokens"
    assert lines[1] == "tensor parallelism communicates by gathers and reduce-scatters"
    assert "(stage 0, " in lines[2]
