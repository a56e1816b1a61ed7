"""Every mixing operation, forward and backward: against its formula in float64, its peers and the device's ceilings.

    python benchmarks/kernels/operations.py                    # a GPU; --device cpu where there is none
    python benchmarks/kernels/operations.py --tune             # the Triton kernels' candidate launch parameters

Inputs are rounded to the precision under test before the formula reads them, so an error is the operation's own.
Contestants take turns; a ratio is the median over rounds of one's time over the other's. All is measured in a process
of its own and written as it comes: what fails, hangs or breaks the GPU's context is reported and the rest goes on.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.kernels.cases import BESIDE_FLA, CASES
from benchmarks.kernels.clock import ceilings
from benchmarks.kernels.contestants import fla_runs
from benchmarks.kernels.measure import Result, check, time_case
from benchmarks.kernels.options import DTYPES, Options, Precision, filled
from benchmarks.kernels.report import Row, add_shares, line, measurements, tunings
from benchmarks.kernels.tuning import MODULES, PASSES, tune
from benchmarks.kernels.worker import Worker
from benchmarks.machine import write_result
from deconattn.cli import parse, run
from deconattn.errors import UserError

PEERS = ("flash-attn", "flash-attn-3", "flash-attn-4", "fla-core", "flash-linear-attention")


@dataclass(frozen=True)
class Job:
    """One measurement: what it is of, and the function, with its arguments, that makes it in the worker."""

    of: Mapping[str, object]
    measure: Callable[[], Result]


def plan(options: Options) -> Iterator[Job]:
    """All jobs, the most important first: every case checked and raced at the first length, raced at the second,
    checked in the other precisions, raced at the other lengths."""
    first, *others = options.lengths
    checked = options.check_dtypes if options.check else ()
    yield _ceilings(options)
    for name, precision in product(options.cases, options.dtypes):
        if precision in checked:
            yield _check(options, name, precision)
        if CASES[name].timed:
            yield _race(options, name, precision, first)
    yield from _races(options, others[:1])
    for precision, name in product(checked, options.cases):
        if precision not in options.dtypes:
            yield _check(options, name, precision)
    yield from _races(options, others[1:])


def tuning_plan(options: Options) -> Iterator[Job]:
    """Every kernel module at the two lengths that matter most."""
    for length in options.lengths[:2]:
        for module, case in MODULES.items():
            if case in options.cases:
                for precision, kind in product(options.dtypes, PASSES):
                    of = {"kind": "tune", "module": module, "pass": kind, "precision": precision, "length": length}
                    yield Job(of, partial(tune, options, module, precision, length, kind))


def perform(job: Job, worker: Callable[[Callable[[], Result], float], Result], left: float, longest: float) -> Row:
    """The job's row; where it cannot be finished in the `left` seconds, why it is skipped."""
    row: Row = dict(job.of)
    if left <= 0:
        return row | {"skipped": "not begun: out of time"}
    try:
        return row | worker(job.measure, min(left, longest))
    except TimeoutError as error:
        if left < longest:
            return row | {"skipped": "not finished: out of time"}
        return row | {"failure": str(error), "passed": False}
    except RuntimeError as error:
        return row | {"failure": str(error), "passed": False}


def main() -> int:
    """Run the plan; 1 if anything of ours failed or is less exact than its tolerance."""
    options = _checked(filled(parse(Options)))
    jobs = tuning_plan(options) if options.tune else plan(options)
    worker, rows, rates = Worker(), [], None
    start = time.monotonic()
    try:
        for job in jobs:
            row = perform(job, worker, options.seconds - (time.monotonic() - start), options.job_seconds)
            if row["kind"] == "ceilings" and "flops_per_second" in row:
                rates = row
            if row["kind"] == "time" and "contestants" in row and rates:
                add_shares(row, rates)
            rows.append(row)
            print(line(row), flush=True)
            _write(options, rows)
    finally:
        worker.close()
    return 0 if all(row.get("passed", True) for row in rows) else 1


def _ceilings(options: Options) -> Job:
    dtypes: dict[str, torch.dtype] = {precision: DTYPES[precision] for precision in options.dtypes}
    measure = partial(ceilings, options.device, dtypes, options.copy_mib, options.matmul_size)
    return Job({"kind": "ceilings"}, measure)


def _check(options: Options, name: str, precision: Precision) -> Job:
    of = {"kind": "check", "case": name, "precision": precision, "length": options.check_length}
    return Job(of, partial(check, options, name, precision))


def _race(options: Options, name: str, precision: Precision, length: int) -> Job:
    of = {"kind": "time", "case": name, "precision": precision, "length": length}
    return Job(of, partial(time_case, options, name, precision, length))


def _races(options: Options, lengths: Sequence[int]) -> Iterator[Job]:
    """Of all cases but the cross-entropy, which does not care how its tokens are cut into sequences."""
    for length, precision, name in product(lengths, options.dtypes, options.cases):
        if CASES[name].timed and name != "cross-entropy":
            yield _race(options, name, precision, length)


def _checked(options: Options) -> Options:
    """What can be run here."""
    for name in options.cases:
        if name not in CASES:
            raise UserError(f"--cases {name}: choose of {', '.join(CASES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here; give --device cpu")
    if fla_runs(options.device):
        return options
    return replace(options, cases=tuple(name for name in options.cases if name != BESIDE_FLA))


def _write(options: Options, rows: list[Row]) -> None:
    name = f"{'kernel_tuning' if options.tune else 'kernels'}-{_device_name(options.device)}"
    found = {"options": options.shown(), "peers": _installed_peers(), "results": rows}
    write_result(options.out / f"{name}.json", found)
    text = tunings(rows) if options.tune else measurements(rows, options.dtypes, options.lengths)
    (options.out / f"{name}.md").write_text(text, encoding="utf-8")


def _device_name(device: str) -> str:
    """For a file's name, such as nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()) if device == "cuda" else device


def _installed_peers() -> dict[str, str]:
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    run(main)
