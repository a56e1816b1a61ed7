"""The paper's tables and figures by one command: train what is missing, measure it, and write a page that shows it.

    reproduce --table 1 --data data/web --datasets data/eval --out table1

The same command goes on where it was stopped or killed. On several machines that share --out:

    reproduce --table 1 --data data/web --datasets data/eval --out table1 --shard 2/4
"""

import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.table import Table

from deconattn.cli import handled, parse, show
from deconattn.durable import disk_errors
from deconattn.errors import UserError
from deconattn.extras import require
from deconattn.locks import hold_lock
from deconattn.program import command
from deconattn.reproduction import estimate
from deconattn.reproduction.estimate import read_shard
from deconattn.reproduction.folder import ReproductionFolder, Stored, check_same, load_plan, save_plan, with_seeds
from deconattn.reproduction.plans import PlannedJob, Request, Run, make_plan, runs_of, with_limit
from deconattn.reproduction.progress_view import ProgressView
from deconattn.reproduction.runner import Runner, Stop

INTERRUPTED = 130
SMALL, BYTES_A_JOB = 10_000_000, 2 * 1024**3
"""Parameters of models that do not need all cores, and memory that one of them takes to train or to evaluate."""
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""NVIDIA, AMD, and either under Windows: told without loading PyTorch."""
_NEEDS_HARNESS = {"evaluate", "contexts", "skip"}


@dataclass(frozen=True)
class Arguments:
    """Reproduce tables and figures of the paper.

    Plans the runs, trains what is missing, evaluates and analyses, and writes report.html, report.md and data.json.
    The same command goes on where it was stopped.
    """

    out: Path = Path("reproduction")
    """The folder for everything."""
    request: Request = field(default_factory=Request)
    shard: str = "1/1"
    """I/N: do the I-th of N shares of the runs; the report shows what is there of all."""
    jobs: int | None = None
    """Jobs at a time. By default one a core for models of up to 10 million parameters on a machine without GPUs, if it
    has 2 GiB of memory for each; else one."""
    retry_failed: bool = False
    """Try again what failed."""
    dry_run: bool = False
    """Print the plan and what it costs, and do nothing."""
    render: bool = False
    """Write the report from what is there, and do nothing else."""


def main(words: Sequence[str]) -> int:
    """Plan or find the plan, do this shard's jobs, and write the report after each."""
    arguments = parse(Arguments, words, program=command("reproduce"))
    again = f"{command('reproduce')} {shlex.join(word for word in words if word != '--retry-failed')}"
    try:
        with disk_errors(arguments.out):
            return _reproduce(arguments, again)
    except KeyboardInterrupt:  # while it planned; later a stop is waited for
        return INTERRUPTED


def _reproduce(arguments: Arguments, again: str) -> int:
    if not arguments.dry_run:
        require("plot", "the report")
    number, count = read_shard(arguments.shard)
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs}: give 1 or more")
    folder = ReproductionFolder(arguments.out.resolve())
    stored = _stored(folder, _absolute(arguments.request))
    shards = estimate.shards_of(stored.plan, stored.estimates, count)
    if arguments.dry_run:
        show_plan(stored, shards, count)
        return 0
    jobs = [job for job in stored.plan.jobs if shards[job.run] == number]
    if not arguments.render and any(job.kind in _NEEDS_HARNESS and folder.result(job) is None for job in jobs):
        require("eval", "evaluation")
    begun = load_plan(folder)
    if begun is None and arguments.render:
        raise UserError(f"--render: {folder.out} holds no reproduction; check --out")
    if not arguments.render and (begun is None or begun.request != stored.request):
        save_plan(folder, stored)
    if arguments.render:
        _write_report(folder, stored)
        return 0
    if arguments.retry_failed:
        for job in jobs:
            if not given_up(folder, job):
                folder.forget_failure(job)
    return _work(folder, stored, jobs, again, arguments.jobs or jobs_at_once(stored))


def _work(folder: ReproductionFolder, stored: Stored, jobs: list[PlannedJob], again: str, at_once: int) -> int:
    stop = Stop()
    environment = {}
    if at_once > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // at_once))
    if at_once > 1:
        threads = environment.get("OMP_NUM_THREADS") or os.environ["OMP_NUM_THREADS"]
        print(f"{at_once} jobs at a time, OMP_NUM_THREADS={threads} each (--jobs)", file=sys.stderr)
    with (
        handled(stop.ask, signal.SIGINT, signal.SIGTERM),
        _ReportingProgress(folder, stored, jobs) as view,
    ):
        Runner(folder, stored, jobs, view, stop, at_once, environment).run()
    page = _write_report(folder, stored)
    if stop.signal is not None:
        name = signal.Signals(stop.signal).name
        print(f"stopped by {name}; to go on: {again}", file=sys.stderr)
        return 128 + stop.signal
    failed = [job for job in jobs if folder.result(job) is None and not given_up(folder, job)]
    print(f"report: {page}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(jobs)} jobs failed; to try them again: --retry-failed", file=sys.stderr)
    return 1 if failed else 0


def given_up(folder: ReproductionFolder, job: PlannedJob) -> bool:
    """Tell whether it is a trial that failed, and its sweep has chosen among the others, on which later seeds rest."""
    failed = job.run.lr is not None and folder.failure(job) is not None
    return failed and folder.result(PlannedJob(job.run.best, "choose")) is not None


def jobs_at_once(stored: Stored) -> int:
    """Return how many jobs to do at a time where --jobs does not say."""
    small = all(found.parameters <= SMALL for found in stored.estimates.values())
    if not small or any(Path(device).exists() for device in GPU_DEVICES):
        return 1
    memory = psutil.virtual_memory().available // BYTES_A_JOB
    return max(1, min(len(os.sched_getaffinity(0)), memory))


class _ReportingProgress(ProgressView):
    """Writes the report whenever there is something new in it."""

    def __init__(self, folder: ReproductionFolder, stored: Stored, jobs: list[PlannedJob]) -> None:
        super().__init__(folder, jobs)
        self._stored = stored

    def ended(self, job: PlannedJob) -> None:
        super().ended(job)
        _write_report(self.folder, self._stored)


def _write_report(folder: ReproductionFolder, stored: Stored) -> Path:
    from deconattn.reproduction.gather import gather
    from deconattn.reproduction.pages import write_pages

    with hold_lock(folder.common_lock, wait=True):
        return write_pages(gather(folder, load_plan(folder) or stored), folder.out)  # another may have added seeds


def _stored(folder: ReproductionFolder, request: Request) -> Stored:
    stored = load_plan(folder)
    asked, request = request, with_limit(request, None if stored is None else stored.request)
    if stored is None:
        stored = Stored(request, estimate.estimate_runs(request, runs_of(make_plan(request))))
    else:
        check_same(folder, stored.request, request)
        stored = stored if request.seeds == stored.request.seeds else with_seeds(stored, request.seeds)
    if request.limit != asked.limit:
        print(
            f"--limit {request.limit}: tiny models are scored on the first {request.limit} documents of a benchmark; "
            "--limit 0 scores all",
            file=sys.stderr,
        )
    return stored


def _absolute(request: Request) -> Request:
    """Paths that mean the same in whatever directory the command is given next."""
    data = []
    for argument in request.data:
        folder, colon, weight = argument.rpartition(":")
        whole = not colon or Path(argument).is_dir()
        data.append(str(Path(argument).resolve()) if whole else f"{Path(folder).resolve()}:{weight}")
    return dataclasses.replace(request, data=tuple(data), datasets=request.datasets and request.datasets.resolve())


def show_plan(stored: Stored, shards: dict[Run, int], count: int) -> None:
    """Print each run, what is measured of it, and its share of the whole."""
    runs = stored.plan.runs
    total = sum(stored.estimates[run.name].flops for run in runs)
    table = Table(title=f"{len(runs)} runs, {total:.2e} FLOPs of training")
    for heading in ("run", "parameters", "tokens", "FLOPs", "share", "measured", *(["shard"] if count > 1 else [])):
        table.add_column(heading, justify="left" if heading in ("run", "measured") else "right", overflow="fold")
    for planned in runs:
        found = stored.estimates[planned.name]
        base = planned if planned.lr is None else planned.best
        kinds = ", ".join(
            job.kind for job in stored.plan.jobs if job.run == base and job.kind not in ("train", "choose")
        )
        measured = kinds if base == planned else f"of the best rate: {kinds}"
        cells = [planned.name, f"{found.parameters:,}", f"{found.tokens:,}", f"{found.flops:.2e}"]
        cells += [f"{found.flops / total:.1%}", measured]
        table.add_row(*cells, *([f"{shards[planned]}/{count}"] if count > 1 else []))
    show(table)
