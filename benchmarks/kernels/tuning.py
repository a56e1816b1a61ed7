"""The candidate launch parameters of each Triton kernel module, timed beside those that it chooses."""

import importlib
from collections.abc import Mapping
from functools import partial
from statistics import median
from typing import Literal, get_args

import torch
from torch import Tensor

from benchmarks.kernels.cases import CASES
from benchmarks.kernels.clock import Call, clock_of, described, race, ratio, release
from benchmarks.kernels.measure import TOLERANCES, Result, largest, relative_errors
from benchmarks.kernels.options import DTYPES, Options, Precision

Pass = Literal["forward", "backward"]
PASSES: tuple[Pass, ...] = get_args(Pass)
DEFAULT = "default"
MODULES = {
    "fixed_map": "fixed map",
    "prefix_attention": "prefix",
    "taylor_tiles": "taylor",
    "taylor_states": "taylor",
}
"""Module of `deconattn.ops.kernels` -> the case whose inputs it takes.

A module has CANDIDATES, `forward(*inputs, launch=)` returning the output and what the backward pass keeps, and
`backward(gradient, *inputs, *returned, launch=)`.
"""


def tune(options: Options, name: str, precision: Precision, length: int, kind: Pass) -> Result:
    """Seconds of one pass alone, for every candidate.

    A candidate whose results are not the default's has failed, however fast it is. `passed` is false only where the
    default itself fails.
    """
    module, case = importlib.import_module(f"deconattn.ops.kernels.{name}"), CASES[MODULES[name]]
    shape = options.shape(options.rows_at(length), length)
    inputs = case.build(shape, DTYPES[precision], options.device).inputs
    returned = module.forward(*inputs)
    if kind == "forward":
        function, outputs = partial(module.forward, *inputs), 1  # the others are as the launch has them
    else:
        function, outputs = partial(module.backward, torch.randn_like(returned[0]), *inputs, *returned), len(inputs)
    launches = {DEFAULT: None, **{f"candidate {number}": one for number, one in enumerate(module.CANDIDATES)}}
    calls = {launch: partial(function, launch=parameters) for launch, parameters in launches.items()}
    failures = _disagreeing(calls, TOLERANCES[precision], outputs)
    calls = {launch: call for launch, call in calls.items() if launch not in failures}
    times = race(calls, clock_of(options.device), options.repeats, options.race_seconds)
    seconds = {launch: median(samples) for launch, samples in times.samples.items()}
    result: Result = {
        "rows": shape.rows,
        "launches": {launch: repr(parameters) for launch, parameters in launches.items()},
        "seconds": seconds,
        "samples": times.samples,
        "failures": failures | times.failures,
        "passed": DEFAULT in seconds,
    }
    if result["passed"]:
        fastest = min(seconds, key=lambda launch: seconds[launch])
        result |= {"fastest": fastest, "ratio": ratio(times.samples[fastest], times.samples[DEFAULT])}
    return result


def _disagreeing(calls: Mapping[str, Call], tolerance: float, outputs: int) -> dict[str, str]:
    """Why some candidates cannot be used: they raise, or their first `outputs` results are not the default's."""
    expected: tuple[Tensor, ...] = calls[DEFAULT]()[:outputs]
    failures = {}
    for launch, call in calls.items():
        try:
            worst = largest(relative_errors(call()[:outputs], [tensor.double() for tensor in expected]))
            if not worst <= tolerance:
                failures[launch] = f"differs from the default by {worst:.1e}"
        except Exception as error:  # the others go on
            failures[launch] = described(error)
            release()
    return failures
