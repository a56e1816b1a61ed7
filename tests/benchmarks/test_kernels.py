"""`kernels/operations.py` at toy dimensions: that it finds what is wrong and reports all, not how fast anything is."""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.kernels import clock as kernel_clock
from benchmarks.kernels import contestants as kernel_contestants
from benchmarks.kernels import measure as kernel_measure
from benchmarks.kernels import operations
from benchmarks.kernels.cases import BESIDE_FLA, CASES, Problem, bytes_moved
from benchmarks.kernels.clock import race, ratio
from benchmarks.kernels.contestants import Contestant, contestants, pytorch_attention
from benchmarks.kernels.measure import check, time_case
from benchmarks.kernels.options import DTYPES, Options, Precision, filled
from benchmarks.kernels.report import add_shares, line, measurements, tunings
from benchmarks.kernels.tuning import MODULES, tune
from benchmarks.kernels.worker import Worker
from tests.conftest import ROOT
from tests.train.conftest import environment

SMALL = {"heads": 2, "head_dim": 8, "vocab_size": 50, "check_rows": 2, "check_length": 37, "lengths": (24,)}
TOY = filled(Options(device="cpu", rows=2, repeats=2, copy_mib=1, matmul_size=16, **SMALL))  # type: ignore[arg-type]


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations by Triton's kernels, interpreted."""
    pytest.importorskip("triton")
    monkeypatch.setenv("DECONATTN_BACKEND", "triton")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_operations_are_checked_against_the_formulas(name: str, precision: Precision):
    found = check(TOY, name, precision)
    assert found["passed"]
    errors = found["contestants"]["ours"]["errors"]
    assert len(errors) == 1 + len(CASES[name].build(TOY.shape(1, 4), torch.float32, "cpu").inputs)
    assert max(errors.values()) <= found["tolerance"]


@pytest.mark.parametrize("wrong", [lambda output: output * 1.1, lambda output: output * torch.nan])
def test_a_wrong_operation_fails(monkeypatch: pytest.MonkeyPatch, wrong):
    case = CASES["taylor"]
    monkeypatch.setitem(CASES, "taylor", replace(case, ours=lambda problem: wrong(case.ours(problem))))
    found = check(TOY, "taylor", "fp32")
    assert not found["passed"]
    assert line({"kind": "check", "case": "taylor", "precision": "fp32", **found}).endswith("FAILED")


def test_a_gradient_that_is_no_number_is_the_largest_error():
    assert math.isnan(kernel_measure.largest({"output": 1.0, "gradient 0": math.nan, "gradient 1": 2.0}))
    assert kernel_measure.largest({"output": 1.0, "gradient 0": 2.0}) == 2


def test_the_same_numbers_every_time():
    first, again = (CASES["prefix"].build(TOY.shape(2, 8), torch.bfloat16, "cpu") for _ in range(2))
    assert all(map(torch.equal, first.inputs, again.inputs))


def test_packed_cases_count_their_own_pairs():
    case = CASES["softmax, documents"]
    shape = TOY.shape(2, 37)
    problem = case.build(shape, torch.float32, "cpu")
    assert problem.documents is not None
    mask = problem.documents.causal_mask
    assert case.products(shape) == 2 * int(mask.sum()) * shape.heads * shape.head_dim
    assert problem.documents.position_ids[:, 0].eq(0).all()
    assert (problem.documents.position_ids.diff() == 1).eq(problem.documents.ids.diff() == 0).all()


def test_traffic_and_flops_of_a_training_pass():
    shape, case = TOY.shape(2, 24), CASES["fixed map"]
    problem = case.build(shape, torch.bfloat16, "cpu")
    one_row = 2 * 24 * 8 * 2
    assert bytes_moved(problem, shape, training=False) == (1 + 1 + 2 + 2) * one_row
    assert bytes_moved(problem, shape, training=True) == 3 * (1 + 1 + 2 + 2) * one_row
    assert case.flops(shape, training=True) == 3 * case.flops(shape, training=False)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.timed])
def test_times_of_every_contestant(name: str):
    found = time_case(TOY, name, "fp32", 24)
    baseline = found["training"]["baseline"]
    assert found["passed"] and found["contestants"][baseline]["training"]["ratio"] == 1
    for entry in found["contestants"].values():
        if "failure" not in entry:  # peers that need a GPU
            assert len(entry["forward"]["samples"]) == len(entry["training"]["samples"]) == TOY.repeats


def fails(problem: Problem) -> Tensor:
    raise ValueError("not for such tensors")


def fails_backward(problem: Problem) -> Tensor:
    return problem.inputs[-1].detach()


@pytest.mark.parametrize(("call", "ours"), [(fails, False), (fails, True), (fails_backward, False)])
def test_a_failing_contestant_is_reported_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, call, ours: bool):
    def entered(case, problem):
        return [*contestants(case, problem), Contestant("broken", call, ours=ours)]

    monkeypatch.setattr(kernel_measure, "contestants", entered)
    for found in (check(TOY, "prefix", "fp32"), time_case(TOY, "prefix", "fp32", 24)):
        assert found["passed"] is not ours
        assert "failure" in found["contestants"]["broken"]
        assert "failure" not in found["contestants"]["ours"]
    row = {"kind": "time", "case": "prefix", "precision": "fp32", "length": 24, **found}
    assert "broken failed" in line(row)
    assert "| broken |" in measurements([row], ["fp32"], [24])


def test_contestants_take_turns():
    log: list[str] = []

    def clock(call) -> float:
        call()
        return 2.0 if log[-1] == "b" else 1.0

    def sometimes() -> None:
        log.append("c")
        if log.count("c") > 3:
            raise ValueError

    found = race({"a": lambda: log.append("a"), "b": lambda: log.append("b"), "c": sometimes}, clock, 4, seconds=0)
    assert found.samples == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert list(found.failures) == ["c"]
    assert log[:6] == ["a", "b", "c"] * 2
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2


def test_the_clock_of_a_gpu(monkeypatch: pytest.MonkeyPatch):
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("synchronize")

        def elapsed_time(self, other: "Event") -> float:
            assert other is not self
            return 1500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(kernel_clock, "FLUSHED_BYTES", 16)
    assert kernel_clock.EventClock("cpu")(lambda: log.append("call")) == 1.5
    assert log == ["record", "call", "record", "synchronize"]


def test_pytorch_attention_by_kernel():
    flash, cudnn = pytorch_attention(on_gpu=True)
    problem = CASES["softmax, grouped heads"].build(TOY.shape(1, 20), torch.float32, "cpu")
    torch.testing.assert_close(flash.call(problem), CASES["softmax"].formula(problem))
    assert flash.baseline and cudnn.baseline and cudnn.name == "SDPA, cuDNN"


def test_attention_of_every_row_where_the_map_is_shared():
    case = CASES["fixed map"]
    problem = case.build(TOY.shape(3, 20), torch.float32, "cpu")
    (sdpa,) = pytorch_attention(on_gpu=False)
    torch.testing.assert_close(sdpa.call(sdpa.prepare(problem)), case.formula(problem))


@pytest.mark.usefixtures("triton")
def test_kernels_race_with_the_torch_backend():
    problem = CASES["taylor"].build(TOY.shape(1, 20), torch.float32, "cpu")
    names = [contestant.name for contestant in contestants(CASES["taylor"], problem)]
    assert names == ["ours", "ours, torch", "ours, taylor_tiles", "ours, taylor_states", "SDPA"]
    found = check(replace(TOY, check_length=20, check_rows=1), "taylor", "fp32")
    assert found["passed"] and found["contestants"]["ours"]["note"].startswith("triton: ")
    assert os.environ["DECONATTN_BACKEND"] == "triton"


def test_flash_linear_attention_takes_its_own_layout(monkeypatch: pytest.MonkeyPatch):
    shapes = []

    def stand_in(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, None]:
        shapes.append((queries.shape, values.shape))
        assert queries.is_contiguous()
        return values + 0 * (queries.sum() + keys.sum()), None

    module = type("Module", (), dict.fromkeys(("parallel_based", "fused_chunk_based", "chunk_simple_gla"), stand_in))
    monkeypatch.setattr(kernel_contestants.importlib, "import_module", lambda name: module)
    wide = replace(TOY, head_dim=24)
    found = time_case(wide, BESIDE_FLA, "fp32", 20)
    assert found["passed"] and not any("failure" in entry for entry in found["contestants"].values())
    assert found["contestants"]["fla fused_chunk_based"]["note"].startswith("keys of 16")
    assert {queries[-1] for queries, _ in shapes} == {16, 24}
    assert {values for _, values in shapes} == {(2, 20, 2, 24)}


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("name", MODULES)
def test_candidates_are_timed_beside_the_default(name: str, kind, monkeypatch: pytest.MonkeyPatch):
    module = importlib.import_module(f"deconattn.ops.kernels.{name}")
    monkeypatch.setattr(module, "CANDIDATES", (*module.CANDIDATES[:1], "not a launch"))
    found = tune(replace(TOY, repeats=1, rows=1, heads=1), name, "fp32", 20, kind)
    assert found["passed"] and set(found["seconds"]) == {"default", "candidate 0"}
    assert set(found["failures"]) == {"candidate 1"}
    row = {"kind": "tune", "module": name, "pass": kind, "precision": "fp32", "length": 20, **found}
    assert f"| {name} | {kind} |" in tunings([row])
    assert "default" in line(row)


def test_every_kernel_module_is_tuned():
    assert set(MODULES) == {name for case in CASES.values() for name in case.kernels}


def test_the_most_important_comes_first():
    options = filled(Options())
    assert options.lengths[:2] == (2048, 16384)
    assert [options.rows_at(length) for length in (512, 2048, 32768)] == [64, 16, 1]
    jobs = [(job.of["kind"], job.of.get("precision"), job.of.get("length")) for job in operations.plan(options)]
    order = list(dict.fromkeys(jobs))
    assert order[:4] == [
        ("ceilings", None, None),
        ("check", "bf16", 2100),
        ("time", "bf16", 2048),
        ("time", "bf16", 16384),
    ]
    assert order[4] == ("check", "fp32", 2100)
    assert len(order) == 10
    losses = [job for job in operations.plan(options) if job.of.get("case") == "cross-entropy"]
    assert len(losses) == 3  # two checks and one race
    assert not any(job.of["kind"] == "check" for job in operations.plan(replace(options, check=False)))


def test_what_is_not_done_in_time_is_skipped_and_what_hangs_has_failed():
    job = operations.Job({"kind": "check", "case": "softmax"}, dict)

    def hangs(function, seconds):
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    assert "skipped" in operations.perform(job, hangs, left=0, longest=10)
    assert "skipped" in operations.perform(job, hangs, left=5, longest=10)
    failed = operations.perform(job, hangs, left=50, longest=10)
    assert failed["passed"] is False
    assert "stopped after 10 s" in line(failed)
    assert "stopped after 10 s" in measurements([failed], ["fp32"], [24])


def test_shares_of_the_ceilings():
    row = {"precision": "fp32", **time_case(TOY, "softmax", "fp32", 24)}
    row["contestants"]["ours"]["training"]["seconds"] = 2.0
    add_shares(row, {"bytes_per_second": row["training"]["bytes"], "flops_per_second": {"fp32": 1e12}})
    assert row["contestants"]["ours"]["training"]["bandwidth_share"] == 0.5


def test_a_worker_that_is_lost_is_replaced():
    worker = Worker()
    try:
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            worker(partial(divmod, 1, 0), 60)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="exit code 3"):
            worker(partial(os._exit, 3), 60)
        assert worker(partial(dict, a=1), 60) == {"a": 1}
        os.kill(worker._process.pid, signal.SIGKILL)  # between two calls
        with pytest.raises(RuntimeError, match="exit code -9"):
            worker(partial(dict, a=1), 60)
        with pytest.raises(TimeoutError, match="stopped after"):
            worker(partial(time.sleep, 60), 0.1)  # type: ignore[arg-type]
    finally:
        worker.close()


@pytest.mark.slow
def test_end_to_end(tmp_path: Path):
    script = [sys.executable, str(ROOT / "benchmarks" / "kernels" / "operations.py"), "--out", str(tmp_path)]
    script += "--cases softmax prefix --rows 1 --lengths 24 --heads 2 --head-dim 8 --check-length 20".split()
    script += "--device cpu --repeats 1 --copy-mib 1 --matmul-size 16 --dtypes fp32".split()
    subprocess.run(script, env=environment(), check=True, timeout=300)
    found = json.loads((tmp_path / "kernels-cpu.json").read_text())
    kinds = [(row["kind"], row.get("case"), row.get("precision")) for row in found["results"]]
    assert kinds == [
        ("ceilings", None, None),
        ("check", "softmax", "fp32"),
        ("time", "softmax", "fp32"),
        ("check", "prefix", "fp32"),
        ("time", "prefix", "fp32"),
        ("check", "softmax", "bf16"),
        ("check", "prefix", "bf16"),
    ]
    assert found["results"][2]["contestants"]["ours"]["training"]["compute_share"] > 0
    assert "## fp32" in (tmp_path / "kernels-cpu.md").read_text()


@pytest.mark.parametrize("flags", [["--cases", "nosuch"], ["--device", "cuda"]])
def test_what_cannot_be_run_is_named(flags: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["operations.py", "--device", "cpu", *flags])
    with pytest.raises(operations.UserError, match="nosuch|no GPU"):
        operations.main()


def test_every_precision_has_a_tolerance():
    assert set(kernel_measure.TOLERANCES) == set(DTYPES)
