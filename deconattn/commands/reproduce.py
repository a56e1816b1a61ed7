"""The paper's tables and figures by one command: train what is missing, measure it, and write a page that shows it.

    reproduce --table 1 --data data/web --datasets data/eval --out table1

The same command goes on where it was stopped or killed. On several machines that share --out:

    reproduce --table 1 --data data/web --datasets data/eval --out table1 --shard 2/4
"""

import dataclasses
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from deconattn.cli import handled, parse, show
from deconattn.durable import disk_errors, hold_lock
from deconattn.errors import UserError
from deconattn.extras import require
from deconattn.program import command
from deconattn.reproduction import estimate
from deconattn.reproduction.estimate import deal, read_shard
from deconattn.reproduction.folder import ReproductionFolder, Stored, check_same, load_plan, save_plan
from deconattn.reproduction.plans import PlannedJob, Request, make_plan
from deconattn.reproduction.progress_view import ProgressView
from deconattn.reproduction.runner import Runner, Stop

INTERRUPTED = 130
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
    folder = ReproductionFolder(arguments.out.resolve())
    stored = _stored(folder, _absolute(arguments.request))
    runs = stored.plan.runs
    shards = deal([stored.estimates[run.name].flops for run in runs], count)
    if arguments.dry_run:
        show_plan(stored, shards, count)
        return 0
    ours = {run for run, shard in zip(runs, shards, strict=True) if shard == number}
    jobs = [job for job in stored.plan.jobs if job.run in ours]
    if not arguments.render and any(job.kind in _NEEDS_HARNESS and folder.result(job) is None for job in jobs):
        require("eval", "evaluation")
    if load_plan(folder) is None:
        if arguments.render:
            raise UserError(f"--render: {folder.out} holds no reproduction; check --out")
        save_plan(folder, stored)
    if arguments.render:
        _write_report(folder, stored)
        return 0
    if arguments.retry_failed:
        for job in jobs:
            folder.forget_failure(job)
    return _work(folder, stored, jobs, again)


def _work(folder: ReproductionFolder, stored: Stored, jobs: list[PlannedJob], again: str) -> int:
    stop = Stop()
    with (
        handled(stop.ask, signal.SIGINT, signal.SIGTERM),
        _ReportingProgress(folder, stored, jobs) as view,
    ):
        Runner(folder, stored, jobs, view, stop).run()
    page = _write_report(folder, stored)
    if stop.signal is not None:
        name = signal.Signals(stop.signal).name
        print(f"stopped by {name}; to go on: {again}", file=sys.stderr)
        return 128 + stop.signal
    failed = [job for job in jobs if folder.result(job) is None]
    print(f"report: {page}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(jobs)} jobs failed; to try them again: --retry-failed", file=sys.stderr)
    return 1 if failed else 0


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
        return write_pages(gather(folder, stored), folder.out)


def _stored(folder: ReproductionFolder, request: Request) -> Stored:
    stored = load_plan(folder)
    if stored is not None:
        check_same(folder, stored.request, request)
        return stored
    return Stored(request, estimate.estimate_runs(request, make_plan(request).runs))


def _absolute(request: Request) -> Request:
    """Paths that mean the same in whatever directory the command is given next."""
    data = []
    for argument in request.data:
        folder, colon, weight = argument.rpartition(":")
        whole = not colon or Path(argument).is_dir()
        data.append(str(Path(argument).resolve()) if whole else f"{Path(folder).resolve()}:{weight}")
    return dataclasses.replace(request, data=tuple(data), datasets=request.datasets and request.datasets.resolve())


def show_plan(stored: Stored, shards: list[int], count: int) -> None:
    """Print each run, what is measured of it, and its share of the whole."""
    total = sum(found.flops for found in stored.estimates.values())
    table = Table(title=f"{len(stored.plan.runs)} runs, {total:.2e} FLOPs of training")
    for heading in ("run", "parameters", "tokens", "FLOPs", "share", "measured", *(["shard"] if count > 1 else [])):
        table.add_column(heading, justify="left" if heading in ("run", "measured") else "right", overflow="fold")
    for planned, shard in zip(stored.plan.runs, shards, strict=True):
        found = stored.estimates[planned.name]
        kinds = [job.kind for job in stored.plan.jobs if job.run == planned and job.kind != "train"]
        cells = [planned.name, f"{found.parameters:,}", f"{found.tokens:,}", f"{found.flops:.2e}"]
        cells += [f"{found.flops / total:.1%}", ", ".join(kinds)]
        table.add_row(*cells, *([f"{shard}/{count}"] if count > 1 else []))
    show(table)
