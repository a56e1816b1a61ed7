"""All that a folder holds, as the numbers that the report shows."""

import shlex
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deconattn.reproduction import paper
from deconattn.reproduction.claims import RANDOM_GUESS, claims
from deconattn.reproduction.folder import ReproductionFolder, Stored
from deconattn.reproduction.jobs import TITLES, command_of, loss_curves
from deconattn.reproduction.plans import Entry, Kind, PlannedJob, ReproductionPlan, Table
from deconattn.reproduction.radar import radii

LOG_LINES = 20
PACKAGES = ("deconattn", "torch", "deepspeed", "transformers", "lm_eval")

COLUMNS = (*paper.COLUMNS, "validation loss", *(title for title in TITLES if title not in paper.COLUMNS))
"""Columns of the tables; those for which the paper has numbers come first."""

Data = dict[str, Any]


def gather(folder: ReproductionFolder, stored: Stored) -> Data:
    """Collect the content of data.json.

    `tables` depends on the models alone; times, memory, machines, commands and logs are beside it. Accuracies of ours
    are fractions, the paper's per cent as it prints them, losses nats a token.
    """
    plan = stored.plan
    tables = {table: _table(folder, stored, table) for table in plan.tables}
    done = sum(folder.result(job) is not None for job in plan.jobs)
    indicators = {job.run.name: folder.result(job) for job in plan.jobs if job.kind == "analyze"}
    layers = {name: found["outcome"]["layers"] for name, found in indicators.items() if found is not None}
    mixing = {name: found for name, found in layers.items() if found}
    return {
        "tables": tables,
        "claims": claims(tables),
        "jobs": {"done": done, "all": len(plan.jobs)},
        "comparable": stored.request.limit is None,
        "runs": {run.name: _run(folder, stored, plan, run.name) for run in plan.runs},
        "curves": {run.name: loss_curves(folder.run(run)) for run in plan.runs},
        "radar": radii(mixing) if mixing else {},
        "failed": [found for job in plan.jobs if (found := _failure(folder, job)) is not None],
        "versions": _versions(folder, plan),
    }


def _table(folder: ReproductionFolder, stored: Stored, table: Table) -> Data:
    entries = stored.plan.tables[table]
    rows = [_row(folder, stored, table, entry) for entry in entries]
    for name, columns in _chance(folder, entries).items() if table != "4" else ():
        guess = paper.RANDOM_GUESS if name == RANDOM_GUESS and table == "1" else {}
        rows.append({"label": name, "state": "done", "ours": columns, "paper": guess})
    if table == "4":
        longest = max(stored.estimates[entry.run.name].length for entry in entries)
        lengths = [length for length in stored.request.context_lengths if length <= longest]
        return {"columns": [str(length) for length in lengths or [longest]], "rows": rows}
    seen = {title for row in rows for title in (*row["ours"], *row["paper"])}
    return {"columns": [title for title in COLUMNS if title in seen], "rows": rows}


def _row(folder: ReproductionFolder, stored: Stored, table: Table, entry: Entry) -> Data:
    run, ours = entry.run, {}
    result, trained = folder.result(PlannedJob(run, entry.kind)), folder.result(PlannedJob(run, "train"))
    if trained is not None and entry.kind != "skip" and trained["outcome"]["validation_loss"] is not None:
        ours["validation loss"] = {"value": trained["outcome"]["validation_loss"], "stderr": None}
    if result is not None and entry.kind == "contexts":
        ours |= {k: {"value": value, "stderr": None} for k, value in result["outcome"]["contexts"].items()}
    elif result is not None:
        ours |= result["outcome"]["scores"]
    return {
        "label": run.variant,
        "run": run.name,
        "size": run.size,
        "variant": run.variant,
        "pattern": run.pattern,
        "key_value_heads": run.key_value_heads,
        "skipped": entry.kind == "skip",
        "parameters": stored.estimates[run.name].parameters,
        "tokens": stored.estimates[run.name].tokens,
        "state": _state(folder, PlannedJob(run, entry.kind)),
        "ours": ours,
        "paper": paper.printed(table, entry),
    }


def _state(folder: ReproductionFolder, job: PlannedJob) -> str:
    """`done`, `failed`, or `missing`."""
    if folder.result(job) is not None:
        return "done"
    needed = (job, PlannedJob(job.run, "train"))
    return "failed" if any(folder.failure(one) is not None for one in needed) else "missing"


def _chance(folder: ReproductionFolder, entries: tuple[Entry, ...]) -> Data:
    for entry in entries:
        result = folder.result(PlannedJob(entry.run, entry.kind))
        if result is not None and result["outcome"].get("chance"):
            return result["outcome"]["chance"]
    return {}


def _run(folder: ReproductionFolder, stored: Stored, plan: ReproductionPlan, name: str) -> Data:
    jobs = {job.kind: job for job in plan.jobs if job.run.name == name}
    run = jobs["train"].run
    trained = folder.result(jobs["train"]) or {}
    commands: dict[Kind, str] = {}
    hosts, seconds = [], {}
    for kind, job in jobs.items():
        found = folder.result(job) or folder.failure(job)
        if found is not None:
            commands[kind], seconds[kind] = found["command"], found["seconds"]
            hosts.append(found["host"])
    # The last attempt may have been a resumption; this is the command that a reader would give.
    commands["train"] = shlex.join(command_of(jobs["train"], folder, stored, fresh=True))
    return {
        "size": run.size,
        "variant": run.variant,
        "pattern": run.pattern,
        "key_value_heads": run.key_value_heads,
        "parameters": stored.estimates[name].parameters,
        "planned_tokens": stored.estimates[name].tokens,
        "flops": stored.estimates[name].flops,
        "state": _state(folder, jobs["train"]),
        "training": trained.get("outcome", {}),
        "measuring_seconds": sum(seconds[kind] for kind in seconds if kind != "train"),
        "hosts": sorted(set(hosts)),
        "commands": commands,
    }


def _failure(folder: ReproductionFolder, job: PlannedJob) -> Data | None:
    failure = folder.failure(job)
    if failure is None:
        return None
    try:
        lines = folder.log(job).read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        lines = ["(its log is gone)"]
    kept = {name: failure.get(name) for name in ("reason", "command", "host", "log")}
    return {"run": job.run.name, "kind": job.kind, "lines": lines, **kept}


def _versions(folder: ReproductionFolder, plan: ReproductionPlan) -> dict[str, list[str]]:
    """Versions of each package that the runs and scores were made with; the installed one where none is recorded."""
    found: dict[str, set[str]] = {}
    for job in plan.jobs:
        outcome = (folder.result(job) or {}).get("outcome", {})
        for name, value in (outcome.get("environment", {}) | outcome.get("versions", {})).items():
            found.setdefault(name, set()).add(str(value))
    for name in PACKAGES:
        try:
            found.setdefault(name, {version(name)})
        except PackageNotFoundError:
            continue
    return {name: sorted(values) for name, values in sorted(found.items())}
