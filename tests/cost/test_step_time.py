"""Step times against those that traced steps give, and against sums made by hand."""

import json
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.machine import RESULTS
from deconattn.config.flags import model_config
from deconattn.config.presets import size_defaults
from deconattn.cost.cluster import Cluster
from deconattn.cost.job import Job
from deconattn.cost.step_time import step_time, tokens_per_second, utilisation
from deconattn.errors import UserError
from tests.cost.test_memory import SMALL, build_job

ROOFLINE = json.loads((RESULTS / "roofline.json").read_text(encoding="utf-8"))
H100 = Cluster.of("h100", 8, None, 5)


@pytest.mark.parametrize(
    "row",
    [row for row in ROOFLINE["results"] if (row["side"], row["mode"]) == ("after", "eager")],
    ids=lambda row: f"{row['size']}-{row['variant']}",
)
def test_a_step_is_near_that_of_its_traced_operations(row: dict[str, Any]):
    options = ROOFLINE["options"]
    flags = replace(size_defaults(row["size"]).model, variant=row["variant"])
    model = model_config(flags, options["vocab_size"], options["seq_len"])
    job = Job(
        model=model,
        length=options["seq_len"],
        micro_batch=options["micro_batch_size"],
        accumulation=options["micro_batches"],
        bytes_per_element=2,
        zero=1,
    )
    for gpu, traced in row["predicted"].items():
        found = step_time(job, Cluster.of(gpu, 8, None, 5)).total
        assert 1e3 * found == pytest.approx(traced["expected"], rel=0.12), gpu


def test_a_pipeline_of_equal_stages_has_the_bubble_of_the_formula():
    even = replace(SMALL, num_hidden_layers=8, layer_variants=("standard",) * 8)
    job = build_job(gpu=True, bytes_per_element=2, zero=1, model=even, pp=4, accumulation=9)
    time = step_time(job, H100)
    passes = time.compute + time.tensor + time.hops + time.bubble
    assert time.bubble / passes == pytest.approx(job.bubble, abs=0.08)  # the last stage has the head, too
    assert step_time(replace(job, pp=1), H100).bubble == 0


def test_what_is_recomputed_takes_a_forward_pass_more():
    job = build_job(gpu=True, bytes_per_element=2, zero=1, length=4096, model=replace(SMALL, hidden_size=2048))
    plain, again = (step_time(replace(job, recompute=part), H100).compute for part in ("none", "layer"))
    assert 1.15 < again / plain < 1.4


def test_links():
    inside, across = H100.seconds(1e9, 0, 8, 1), H100.seconds(1e9, 0, 16, 1)
    assert inside == pytest.approx(1e9 / (0.8 * 450e9))
    assert across == pytest.approx(1e9 / (8 * 0.8 * 50e9))  # through eight ports
    assert H100.seconds(1e9, 0, 2, 8) == pytest.approx(1e9 / (0.8 * 50e9))  # through one
    assert H100.seconds(1e9, 5, 1, 1) == 0
    assert H100.seconds(1e9, 0, 16, 1, ring=False) == pytest.approx(1e9 / (0.8 * 50e9))  # each through its own
    assert H100.seconds(1e9, 0, 8, 1, ring=False) == inside


def test_zero_3_is_covered_and_zero_1_is_not():
    base = build_job(gpu=True, bytes_per_element=2, length=4096, dp=64, model=replace(SMALL, hidden_size=2048))
    one, three = (step_time(replace(base, zero=zero), H100).data for zero in (1, 3))
    assert three < one


def test_rates():
    job = build_job(gpu=True, bytes_per_element=2, zero=1, dp=4, accumulation=5)
    assert tokens_per_second(job, 2.0) == 4 * 5 * 2 * 128 / 2
    assert utilisation(job, H100, 1.0) == pytest.approx(2 * utilisation(job, H100, 2.0))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("h101", 8, None, 5), "--gpu h101: no such GPU here, choose one of a100, h100"),
        (("h100", 0, None, 5), "--gpus-per-node is 0: it must be above zero"),
        (("h100", 8, -1.0, 5), "--network-gbps is -1"),
        (("h100", 8, None, 0), "--storage is 0"),
    ],
)
def test_a_cluster_that_cannot_be(arguments: tuple[str, int, float | None, float], told: str):
    with pytest.raises(UserError, match=told):
        Cluster.of(*arguments)
