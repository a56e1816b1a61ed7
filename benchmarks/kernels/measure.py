"""Errors of a case's contestants against the formula in float64, and their times side by side."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from benchmarks.kernels.cases import CASES, Problem, bytes_moved
from benchmarks.kernels.clock import Call, Race, clock_of, described, race, ratio, release
from benchmarks.kernels.contestants import Contestant, contestants
from benchmarks.kernels.options import DTYPES, Options, Precision

TOLERANCES: dict[Precision, float] = {"fp32": 2e-3, "bf16": 3e-2, "fp16": 1e-2}
"""Largest relative Euclidean error of the output and of each gradient. fp32 leaves room for TF32."""
Result = dict[str, Any]


def check(options: Options, name: str, precision: Precision) -> Result:
    """Relative errors of every contestant with the case's formula; `passed` tells of ours."""
    case = CASES[name]
    shape = options.shape(options.check_rows, options.check_length)
    problem = case.build(shape, DTYPES[precision], options.device)
    expected = differentiated(case.formula, problem.to(torch.float64))
    tolerance, found = TOLERANCES[precision], {}
    for contestant in contestants(case, problem):
        if not contestant.same_formula:
            continue
        entry: Result = {"note": contestant.note, "ours": contestant.ours}
        try:
            entry["errors"] = relative_errors(differentiated(contestant.call, problem), expected)
            entry["worst"] = largest(entry["errors"])
            entry["passed"] = entry["worst"] <= tolerance  # a NaN does not pass
        except Exception as error:  # the others go on
            entry |= {"passed": False, "failure": described(error)}
            release()
        found[contestant.name] = entry
    return {"tolerance": tolerance, "contestants": found, "passed": _ours_passed(found)}


def time_case(options: Options, name: str, precision: Precision, length: int) -> Result:
    """Seconds of every contestant, `forward` and `training` (forward and backward), and ratios to the baseline."""
    case = CASES[name]
    shape = options.shape(options.rows_at(length), length)
    problem = case.build(shape, DTYPES[precision], options.device)
    entered = contestants(case, problem)
    found: dict[str, Result] = {
        contestant.name: {
            "note": contestant.note,
            "ours": contestant.ours,
            "same_formula": contestant.same_formula,
        }
        for contestant in entered
    }
    result: Result = {"rows": shape.rows, "contestants": found}
    clock = clock_of(options.device)
    for kind in ("forward", "training"):
        training = kind == "training"
        calls = {}
        for contestant in entered:
            if "failure" in found[contestant.name]:
                continue
            try:
                calls[contestant.name] = _call(contestant, problem, training)
            except Exception as error:  # the others go on
                found[contestant.name]["failure"] = described(error)
                release()
        times = race(calls, clock, options.repeats, options.race_seconds)
        baselines = [contestant.name for contestant in entered if contestant.baseline]
        result[kind] = {
            "flops": case.flops(shape, training),
            "bytes": bytes_moved(problem, shape, training),
            "baseline": _enter(found, times, kind, baselines),
        }
    for entry in found.values():
        entry["passed"] = "failure" not in entry
    return result | {"passed": _ours_passed(found)}


def differentiated(call: Any, problem: Problem) -> list[Tensor]:
    """Output and gradients of the inputs, for an upstream gradient that is the same in every precision."""
    leaves = problem.leaves()
    output = call(leaves)
    generator = torch.Generator(output.device).manual_seed(crc32(b"gradient"))
    # Rounded to bf16 so that every precision can hold it.
    gradient = torch.randn(output.shape, generator=generator, device=output.device).bfloat16().to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves.inputs, gradient)]


def relative_errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """|found - expected| / |expected| in the Euclidean norm, of the output and of the gradient of each input."""
    names = ["output", *(f"gradient {number}" for number in range(len(found) - 1))]
    return {name: _relative(ours, theirs) for name, ours, theirs in zip(names, found, expected, strict=True)}


def largest(errors: dict[str, float]) -> float:
    """NaN where there is one."""
    return max(errors.values(), key=lambda error: math.inf if math.isnan(error) else error)


def _call(contestant: Contestant, problem: Problem, training: bool) -> Call:
    """What the clock times."""
    prepared = contestant.prepare(problem)
    if not training:

        def forward() -> None:
            with torch.no_grad():
                contestant.call(prepared)

        return forward
    leaves = prepared.leaves()
    # In the output's own layout; the gradient of a scalar is one.
    output = contestant.call(leaves).detach()
    gradient = torch.randn_like(output) if output.ndim else torch.ones_like(output)
    if output.is_cuda:
        torch.cuda.synchronize()  # so that a kernel's fault is not another contestant's

    def forward_and_backward() -> None:
        torch.autograd.grad(contestant.call(leaves), leaves.inputs, gradient)

    return forward_and_backward


def _enter(found: dict[str, Result], times: Race, kind: str, baselines: list[str]) -> str | None:
    """Note each contestant's samples, median and ratio to the fastest baseline, whose name is returned."""
    running = [name for name in baselines if name in times.samples]
    fastest = min(running, key=lambda name: median(times.samples[name]), default=None)
    for name, failure in times.failures.items():
        found[name]["failure"] = failure
    for name, samples in times.samples.items():
        entry: Result = {"seconds": median(samples), "samples": samples}
        if fastest:
            entry["ratio"] = ratio(samples, times.samples[fastest])
        found[name][kind] = entry
    return fastest


def _ours_passed(found: dict[str, Result]) -> bool:
    return all(entry["passed"] for entry in found.values() if entry["ours"])


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm()) / (float(expected.norm()) or math.inf)
