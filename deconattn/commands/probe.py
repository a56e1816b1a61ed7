"""A grid of small models trained on synthetic tasks, and a page that shows what each can do.

    probe --tasks mqar induction --variants standard approximate --out probes

The same command goes on where it was stopped or killed, and more tasks, variants, patterns, sizes or seeds are added to
what is there. On several machines that share --out:

    probe --out probes --shard 2/4
"""

import dataclasses
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deconattn.cli import handled, parse
from deconattn.durable import disk_errors
from deconattn.errors import UserError
from deconattn.extras import require
from deconattn.locks import hold_lock, lock_holder
from deconattn.probing.request import Device, Request
from deconattn.program import command
from deconattn.reproduction.estimate import deal, read_shard

if TYPE_CHECKING:
    from deconattn.probing.folder import GridFolder
    from deconattn.probing.grid import Grid, Group


@dataclass(frozen=True)
class Arguments:
    """Train small models on synthetic tasks, and show what each mechanism can do.

    Writes results.json, results.parquet and a page. The same command goes on where it was stopped.
    """

    out: Path = Path("probes")
    """The folder for everything."""
    request: Request = field(default_factory=Request)
    shard: str = "1/1"
    """I/N: train the I-th of N shares; the results are of what is there of all."""
    workers: int | None = None
    """Processes that train; by default one a GPU, or one a core where there is none."""
    device: Device = "auto"
    """Where to train; auto is the GPUs where there are any."""
    retry_failed: bool = False
    """Train again what failed."""
    render: bool = False
    """Write the results and the page from what is there, and do nothing else."""


def main(words: Sequence[str]) -> int:
    """Train this shard's models, and write the results now and then and at the end."""
    arguments = parse(Arguments, words, program=command("probe"))
    again = f"{command('probe')} {shlex.join(word for word in words if word != '--retry-failed')}"
    with disk_errors(arguments.out):
        return _probe(arguments, again)


def _probe(arguments: Arguments, again: str) -> int:
    from deconattn.mixers.plugins import load_plugins  # with PyTorch, as what follows
    from deconattn.probing.folder import GridFolder, merge_request, stored_request, write_all
    from deconattn.probing.grid import costs, make_grid, spelt_out
    from deconattn.probing.runner import devices

    require("plot", "the page")
    number, count = read_shard(arguments.shard)
    given = dataclasses.replace(arguments.request, plugin=tuple(file.resolve() for file in arguments.request.plugin))
    load_plugins(given.plugin)
    folder = GridFolder(arguments.out.resolve())
    if arguments.render:
        stored_request(folder)  # before a lock is made in a folder that is none of ours
        print(f"page: {write_all(folder)}", file=sys.stderr)
        return 0
    request = spelt_out(given)
    grid = make_grid(request)
    on = devices(arguments.device, arguments.workers)
    merge_request(folder, request)
    groups = [group for group, shard in zip(grid.groups, deal(costs(grid), count), strict=True) if shard == number]
    lock = folder.lock(arguments.shard)
    with hold_lock(lock) as held:
        if held is None:
            raise UserError(
                f"--shard {arguments.shard} of {arguments.out} is being trained by {lock_holder(lock)}: wait for it, "
                "or give another --shard or --out"
            )
        return _work(folder, request, grid, groups, on, again, arguments.retry_failed)


def _work(
    folder: "GridFolder",
    request: Request,
    grid: "Grid",
    groups: "list[Group]",
    on: list[str],
    again: str,
    retry_failed: bool,
) -> int:
    from deconattn.probing.folder import Ledger, write_all
    from deconattn.probing.progress import ProgressView
    from deconattn.probing.runner import Runner, Setting
    from deconattn.reproduction.runner import Stop

    ledger, stop = Ledger(folder, grid), Stop()
    if retry_failed:
        ledger.retry(groups)
    done = sum(ledger.outcome(cell) is not None for cell in ledger.cells(groups))
    with (
        handled(stop.ask, signal.SIGINT, signal.SIGTERM),
        ProgressView(grid.models(groups), done, lambda: write_all(folder)) as view,
    ):
        Runner(ledger, groups, Setting.of(request), on, view, lambda: bool(stop)).run()
    page = write_all(folder)
    if stop.signal is not None:
        print(f"stopped by {signal.Signals(stop.signal).name}; to go on: {again}", file=sys.stderr)
        return 128 + stop.signal
    failed = ledger.failed(groups)
    for cell, reason in failed:
        print(f"failed: {cell.name}: {reason}", file=sys.stderr)
    print(f"page: {page}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {grid.models(groups)} models failed; to try again: --retry-failed", file=sys.stderr)
    return 1 if failed else 0
