"""All that a folder holds, as the numbers that the report shows."""

import shlex
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deconattn.reproduction import paper, scores, training
from deconattn.reproduction.commands import command_of
from deconattn.reproduction.indicators import radii
from deconattn.reproduction.layout import Layout, Stored
from deconattn.reproduction.plans import Entry, Job, Kind, Plan, Table
from deconattn.reproduction.words import RANDOM_GUESS, claims

LOG_LINES = 20
PACKAGES = ("deconattn", "torch", "deepspeed", "transformers", "lm_eval")

COLUMNS = (*paper.COLUMNS, "validation loss", *(title for title in scores.TITLES if title not in paper.COLUMNS))
"""What the paper has numbers of comes first."""

Data = dict[str, Any]


def gather(layout: Layout, stored: Stored) -> Data:
    """What data.json holds.

    `tables` depends on the models alone; times, memory, machines, commands and logs are beside it. Accuracies of ours
    are fractions, the paper's per cent as it prints them, losses nats a token.
    """
    plan = stored.plan
    tables = {table: _table(layout, stored, table) for table in plan.tables}
    done = sum(layout.result(job) is not None for job in plan.jobs)
    indicators = {job.run.name: layout.result(job) for job in plan.jobs if job.kind == "analyze"}
    layers = {name: found["outcome"]["layers"] for name, found in indicators.items() if found is not None}
    mixing = {name: found for name, found in layers.items() if found}
    return {
        "tables": tables,
        "claims": claims(tables),
        "jobs": {"done": done, "all": len(plan.jobs)},
        "comparable": stored.request.limit is None,
        "runs": {run.name: _run(layout, stored, plan, run.name) for run in plan.runs},
        "curves": {run.name: training.curves(layout.run(run)) for run in plan.runs},
        "radar": radii(mixing) if mixing else {},
        "failed": [found for job in plan.jobs if (found := _failure(layout, job)) is not None],
        "versions": _versions(layout, plan),
    }


def _table(layout: Layout, stored: Stored, table: Table) -> Data:
    entries = stored.plan.tables[table]
    rows = [_row(layout, stored, table, entry) for entry in entries]
    for name, columns in _chance(layout, entries).items() if table != "4" else ():
        guess = paper.RANDOM_GUESS if name == RANDOM_GUESS and table == "1" else {}
        rows.append({"label": name, "state": "done", "ours": columns, "paper": guess})
    if table == "4":
        longest = max(stored.estimates[entry.run.name].length for entry in entries)
        lengths = [length for length in stored.request.context_lengths if length <= longest]
        return {"columns": [str(length) for length in lengths or [longest]], "rows": rows}
    seen = {title for row in rows for title in (*row["ours"], *row["paper"])}
    return {"columns": [title for title in COLUMNS if title in seen], "rows": rows}


def _row(layout: Layout, stored: Stored, table: Table, entry: Entry) -> Data:
    run, ours = entry.run, {}
    result, trained = layout.result(Job(run, entry.kind)), layout.result(Job(run, "train"))
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
        "state": _state(layout, Job(run, entry.kind)),
        "ours": ours,
        "paper": paper.printed(table, entry),
    }


def _state(layout: Layout, job: Job) -> str:
    """`done`, `failed`, or `missing`."""
    if layout.result(job) is not None:
        return "done"
    needed = (job, Job(job.run, "train"))
    return "failed" if any(layout.failure(one) is not None for one in needed) else "missing"


def _chance(layout: Layout, entries: tuple[Entry, ...]) -> Data:
    for entry in entries:
        result = layout.result(Job(entry.run, entry.kind))
        if result is not None and result["outcome"].get("chance"):
            return result["outcome"]["chance"]
    return {}


def _run(layout: Layout, stored: Stored, plan: Plan, name: str) -> Data:
    jobs = {job.kind: job for job in plan.jobs if job.run.name == name}
    run = jobs["train"].run
    trained = layout.result(jobs["train"]) or {}
    commands: dict[Kind, str] = {}
    hosts, seconds = [], {}
    for kind, job in jobs.items():
        found = layout.result(job) or layout.failure(job)
        if found is not None:
            commands[kind], seconds[kind] = found["command"], found["seconds"]
            hosts.append(found["host"])
    # The last attempt may have been a resumption; this is the command that a reader would give.
    commands["train"] = shlex.join(command_of(jobs["train"], layout, stored, fresh=True))
    return {
        "size": run.size,
        "variant": run.variant,
        "pattern": run.pattern,
        "key_value_heads": run.key_value_heads,
        "parameters": stored.estimates[name].parameters,
        "planned_tokens": stored.estimates[name].tokens,
        "flops": stored.estimates[name].flops,
        "state": _state(layout, jobs["train"]),
        "training": trained.get("outcome", {}),
        "measuring_seconds": sum(seconds[kind] for kind in seconds if kind != "train"),
        "hosts": sorted(set(hosts)),
        "commands": commands,
    }


def _failure(layout: Layout, job: Job) -> Data | None:
    failure = layout.failure(job)
    if failure is None:
        return None
    try:
        lines = layout.log(job).read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    except OSError:
        lines = ["(its log is gone)"]
    kept = {name: failure.get(name) for name in ("reason", "command", "host", "log")}
    return {"run": job.run.name, "kind": job.kind, "lines": lines, **kept}


def _versions(layout: Layout, plan: Plan) -> dict[str, list[str]]:
    """Of each package, those that the runs and scores were made with; here's where there are none."""
    found: dict[str, set[str]] = {}
    for job in plan.jobs:
        outcome = (layout.result(job) or {}).get("outcome", {})
        for name, value in (outcome.get("environment", {}) | outcome.get("versions", {})).items():
            found.setdefault(name, set()).add(str(value))
    for name in PACKAGES:
        try:
            found.setdefault(name, {version(name)})
        except PackageNotFoundError:
            continue
    return {name: sorted(values) for name, values in sorted(found.items())}
