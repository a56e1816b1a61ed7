"""Which layers of a trained model need attention, and the hybrid that keeps K of them, or fits a budget.

The table layer x variant, of any model that `analyze` reads:

    search MODEL --data PACKED --out surgery

A hybrid with fifteen layers as they are, or one with half the cache, beside the paper's patterns and random ones:

    search MODEL --data PACKED --out surgery --keep 15
    search MODEL --data PACKED --out surgery --budget cache=0.5

The same command goes on where it was stopped or killed. On several machines that share --out:

    search MODEL --data PACKED --out surgery --shard 2/4
"""

import dataclasses
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from deconattn.cli import handled, parse, show
from deconattn.durable import disk_errors
from deconattn.errors import UserError
from deconattn.extras import require
from deconattn.locks import hold_lock, lock_holder
from deconattn.program import command
from deconattn.reproduction.estimate import read_shard
from deconattn.surgery.request import Goal, Request

if TYPE_CHECKING:
    from deconattn.checkpoint.stored_model import StoredModel
    from deconattn.surgery.assignments import Table
    from deconattn.surgery.folder import SearchFolder
    from deconattn.surgery.progress import ProgressView
    from deconattn.surgery.results import Findings
    from deconattn.surgery.subject import Subject


@dataclass(frozen=True)
class Arguments:
    """Replace each layer of a trained model by each variant, and search a hybrid that keeps some.

    Writes results.json, results.parquet and a page; with --keep or --budget also the found hybrid's weights. The same
    command goes on where it was stopped.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder (its newest good checkpoint), a step-N folder, an export, or a Hugging Face model."""
    out: Path
    """The folder for everything."""
    request: Request = field(default_factory=Request)
    goal: Goal = field(default_factory=Goal)
    shard: str = "1/1"
    """I/N: measure the I-th of N shares of the layers; who finishes last searches."""
    retry_failed: bool = False
    """Measure again what failed."""
    trust_plugins: bool = False
    """Run the plugins that a run names, which are somebody's code, without being given them."""


def main(words: Sequence[str]) -> int:
    """Measure this shard's cells, and search where all are there."""
    arguments = parse(Arguments, words, program=command("search"))
    again = f"{command('search')} {shlex.join(word for word in words if word != '--retry-failed')}"
    with disk_errors(arguments.out):
        return _search(arguments, again)


def _search(arguments: Arguments, again: str) -> int:
    request, goal = arguments.request, arguments.goal
    request.check()
    goal.check()
    number, count = read_shard(arguments.shard)
    require("plot", "the page")
    from deconattn.analysis.models import open_models
    from deconattn.surgery.budget import read_budget
    from deconattn.surgery.folder import SearchFolder

    if goal.budget is not None:
        read_budget(goal.budget, goal.budget_length, goal.budget_rows, goal.budget_gpu)
    plugins = tuple(file.resolve() for file in request.plugin)
    [stored] = open_models([arguments.model], plugins=plugins, trust_plugins=arguments.trust_plugins)
    depth = stored.model_config.num_hidden_layers
    if goal.keep is not None and not 0 <= goal.keep < depth:
        raise UserError(f"--keep {goal.keep}: the model has {depth} layers, give 0 to {depth - 1}")
    absolute = request.data.resolve() if request.data else None
    request = dataclasses.replace(request, plugin=plugins, data=absolute)
    folder = SearchFolder(arguments.out.resolve())
    lock = folder.lock(arguments.shard)
    with hold_lock(lock) as held:
        if held is None:
            raise UserError(
                f"--shard {arguments.shard} of {arguments.out} is being worked on by {lock_holder(lock)}: wait for it, "
                "or give another --shard or --out"
            )
        return _work(arguments, request, folder, stored, (number, count), again)


def _work(
    arguments: Arguments,
    request: Request,
    folder: "SearchFolder",
    stored: "StoredModel",
    shard: tuple[int, int],
    again: str,
) -> int:
    from deconattn.analysis.report import printed
    from deconattn.reproduction.runner import Stop
    from deconattn.surgery.comparison import table_of
    from deconattn.surgery.folder import merge_request
    from deconattn.surgery.page import failures, summary
    from deconattn.surgery.progress import ProgressView
    from deconattn.surgery.results import read_findings
    from deconattn.surgery.sensitivity import Sensitivity, Stopped, measure_own, share_of
    from deconattn.surgery.subject import open_subject

    subject, stop = open_subject(stored, request), Stop()
    variants, layers = subject.config.layer_variants, share_of(subject.depth, *shard)
    asked = merge_request(folder, arguments.model.resolve(), subject.label, request, subject.fingerprint(), variants)
    if arguments.retry_failed:
        for layer in layers:
            for variant in request.variants:
                folder.forget(layer, variant)
    commands: list[str] = []
    with handled(stop.ask, signal.SIGINT, signal.SIGTERM), ProgressView() as view:
        try:
            view.began("measuring the model itself")
            own = measure_own(subject, folder)
            sensitivity = Sensitivity(subject, request, folder, own, layers, view, lambda: bool(stop))
            view.expect("cells", sensitivity.count(), sum(len(sensitivity.missing(layer)) for layer in layers))
            sensitivity.run()
            table, missing = table_of(subject, asked.request, folder, own)
            findings = read_findings(folder, asked, own)
            page = _write(folder, findings, [])  # whatever a search has to say, the table is there
            if not missing:
                with hold_lock(folder.common_lock, wait=True):
                    findings, commands = _go_on(arguments, folder, subject, findings, table, view, lambda: bool(stop))
                page = _write(folder, findings, commands)
        except Stopped:
            assert stop.signal is not None
            _write(folder, read_findings(folder, asked, own), [])
            print(f"stopped by {signal.Signals(stop.signal).name}; to go on: {again}", file=sys.stderr)
            return 128 + stop.signal
    for title, cells in summary(findings):
        show(printed(title, cells))
    if missing:
        print(f"{len(missing)} cells are still to be measured by other shards, {missing[0]} the first of them")
    for line in commands:
        print(line)
    print(f"page: {page}", file=sys.stderr)
    failed = failures(findings)
    for what, why in failed:
        print(f"failed: {what}: {why}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} cells failed; to try again: --retry-failed", file=sys.stderr)
    return 1 if failed else 0


def _write(folder: "SearchFolder", findings: "Findings", commands: Sequence[str]) -> Path:
    """Write the results and the page, which is returned."""
    from deconattn.surgery.page import write_page
    from deconattn.surgery.results import write_results

    with hold_lock(folder.common_lock, wait=True):
        write_results(folder.out, findings)
        return write_page(findings, commands, folder.out)


def _go_on(
    arguments: Arguments,
    folder: "SearchFolder",
    subject: "Subject",
    findings: "Findings",
    table: "Table",
    view: "ProgressView",
    stop: Callable[[], bool],
) -> "tuple[Findings, list[str]]":
    """Measure pairs and search, as far as the flags ask; return all that is known, and the commands that go on."""
    from deconattn.surgery.comparison import Hybrids, measure_pairs, search
    from deconattn.surgery.folder import FOUND
    from deconattn.surgery.found import next_commands, write_fitted

    goal, own = arguments.goal, findings.own
    hybrids = Hybrids(subject, findings.asked.request, folder, view.measured, stop)
    view.expect("hybrids", None, None)
    pairs = measure_pairs(hybrids, table, goal.pairs, own)
    if goal.keep is None and goal.budget is None:
        return dataclasses.replace(findings, pairs=pairs), []
    comparison = search(hybrids, table, goal, own)
    weights = folder.out / FOUND
    write_fitted(folder, subject, comparison.choice.found, weights)
    commands = next_commands(arguments.model, weights, comparison.choice.found, arguments.request)
    return dataclasses.replace(findings, pairs=pairs, comparison=comparison), commands
