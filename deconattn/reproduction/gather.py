"""All that a folder holds, as the numbers that the report shows."""

import shlex
from importlib.metadata import PackageNotFoundError, version
from statistics import fmean
from typing import Any

from deconattn.config.pattern import STANDARD
from deconattn.reproduction import paper
from deconattn.reproduction.cells import LOSS, cell_of, difference_of
from deconattn.reproduction.claims import RANDOM_GUESS, claims
from deconattn.reproduction.folder import ReproductionFolder, Stored
from deconattn.reproduction.jobs import INDICATORS, TITLES, LayerMeans, command_of, loss_curves
from deconattn.reproduction.plans import Entry, Kind, PlannedJob, ReproductionPlan, Run, Table, runs_of
from deconattn.reproduction.radar import radii
from deconattn.reproduction.scaling import fits_of
from deconattn.statistics import family_level

LOG_LINES = 20
PACKAGES = ("deconattn", "torch", "deepspeed", "transformers", "lm_eval")

COLUMNS = (*paper.COLUMNS, LOSS, *(title for title in TITLES if title not in paper.COLUMNS))
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
    layers = {name: found for name, found in _layers(folder, plan).items() if found}
    return {
        "tables": tables,
        "claims": claims(tables),
        "jobs": {"done": done, "all": len(plan.jobs)},
        "seeds": list(plan.seeds),
        "comparable": not stored.request.limit,
        "runs": {run.name: _run(folder, stored, plan, run) for run in plan.runs},
        "sweeps": _sweeps(folder, stored),
        "fits": {name: fits for name, table in tables.items() if name != "4" and (fits := fits_of(table))},
        "curves": {run.name: loss_curves(folder.run(run)) for run in plan.runs},
        "radar": radii(layers) if layers else {},
        "failed": [found for job in plan.jobs if (found := _failure(folder, job)) is not None],
        "versions": _versions(folder, plan),
    }


def _layers(folder: ReproductionFolder, plan: ReproductionPlan) -> dict[str, list[LayerMeans]]:
    """Indicators of each model's layers, means over the seeds that are there, by the name of one of its runs."""
    found: dict[Run, list[list[LayerMeans]]] = {}
    names: dict[Run, str] = {}
    for job in plan.jobs:
        if job.kind == "analyze" and (result := folder.result(job)) is not None:
            found.setdefault(job.run.model, []).append(result["outcome"]["layers"])
            names.setdefault(job.run.model, (folder.trained(job.run) or job.run).name)
    return {
        names[model]: [
            {"layer": same[0]["layer"], "variant": same[0]["variant"]}
            | {name: fmean(layer[name] for layer in same) for name in INDICATORS}
            for same in zip(*seeds, strict=True)
        ]
        for model, seeds in found.items()
    }


def _sweeps(folder: ReproductionFolder, stored: Stored) -> list[Data]:
    """Validation loss by rate of each sweep's trials, and which it chose."""
    found = []
    for run in runs_of(stored.plan):
        if run.swept and run.first_seed is None:
            losses = {}
            for trial in stored.trials(run):
                result = folder.result(trial)
                losses[str(trial.run.lr)] = None if result is None else result["outcome"]["validation_loss"]
            found.append(_model(run) | {"losses": losses, "chosen": folder.rate(run)})
    return found


def _table(folder: ReproductionFolder, stored: Stored, table: Table) -> Data:
    entries = stored.plan.tables[table]
    rows = [_row(folder, stored, table, entry) for entry in entries]
    _compare(rows)
    chance = _chance(folder, stored.plan, entries)
    if table == "4":
        longest = max(stored.estimates[entry.run.name].length for entry in entries)
        columns = [str(length) for length in stored.request.context_lengths if length <= longest] or [str(longest)]
        # A guess is as good at every length.
        guess = chance.get(RANDOM_GUESS, {}).get("Wiki ppl")
        chance = {RANDOM_GUESS: dict.fromkeys(columns, guess)} if guess else {}
    for name, numbers in chance.items():
        printed = paper.RANDOM_GUESS if name == RANDOM_GUESS and table == "1" else {}
        rows.append({"label": name, "state": "done", "ours": numbers, "paper": printed})
    if table == "4":
        return {"columns": columns, "rows": rows}
    seen = {title for row in rows for title in (*row["ours"], *row["paper"])}
    return {"columns": [title for title in COLUMNS if title in seen], "rows": rows}


def _row(folder: ReproductionFolder, stored: Stored, table: Table, entry: Entry) -> Data:
    run, numbers, states = entry.run, dict[str, dict[int, Data]](), []
    for seed, seeded in stored.plan.seeded(run).items():
        states.append(_state(folder, PlannedJob(seeded, entry.kind)))
        for title, number in _measured(folder, PlannedJob(seeded, entry.kind)).items():
            numbers.setdefault(title, {})[seed] = number
    return {
        "label": run.variant,
        "run": run.name,
        **_model(run),
        "skipped": entry.kind == "skip",
        "parameters": stored.estimates[run.name].parameters,
        "tokens": stored.estimates[run.name].tokens,
        "state": next((state for state in ("failed", "missing") if state in states), "done"),
        "seeds_done": states.count("done"),
        "ours": {title: cell_of(title, found) for title, found in numbers.items()},
        "differences": {},
        "paper": paper.printed(table, entry),
    }


def _model(run: Run) -> Data:
    """What a model is; `told_tokens` where the same is there with other numbers of tokens."""
    described = {name: getattr(run, name) for name in ("size", "variant", "pattern", "key_value_heads")}
    return described | {"told_tokens": run.tokens if run.several_tokens else None}


def _measured(folder: ReproductionFolder, job: PlannedJob) -> dict[str, Data]:
    """What is there of one seed, by column."""
    found: dict[str, Data] = {}
    model, result = folder.trained(job.run), folder.result(job)
    trained = None if model is None else folder.result(PlannedJob(model, "train"))
    if trained is not None and job.kind != "skip" and trained["outcome"]["validation_loss"] is not None:
        found[LOSS] = {"value": trained["outcome"]["validation_loss"], "stderr": None}
    if result is not None and job.kind == "contexts":
        found |= {k: {"value": value, "stderr": None} for k, value in result["outcome"]["contexts"].items()}
    elif result is not None:
        found |= result["outcome"]["scores"]
    return found


def _compare(rows: list[Data]) -> None:
    """Give each model's row its differences from standard attention of its size and tokens.

    Their level is such that all of a column hold together.
    """
    level = family_level(sum(row["variant"] != STANDARD and not row["skipped"] for row in rows))
    for kind in dict.fromkeys((row["size"], row["told_tokens"]) for row in rows):
        here = [row for row in rows if (row["size"], row["told_tokens"]) == kind and not row["skipped"]]
        (baseline,) = [row for row in here if row["variant"] == STANDARD]
        for row in (row for row in here if row is not baseline):
            for title, cell in row["ours"].items():
                found = difference_of(title, cell, baseline["ours"].get(title, {}), level)
                if found is not None:
                    row["differences"][title] = found


def _state(folder: ReproductionFolder, job: PlannedJob) -> str:
    """`done`, `failed`, or `missing`."""
    if folder.result(job) is not None:
        return "done"
    return "failed" if folder.failure(job) is not None or not folder.possible(job) else "missing"


def _chance(folder: ReproductionFolder, plan: ReproductionPlan, entries: tuple[Entry, ...]) -> Data:
    for entry in entries:
        for run in plan.seeded(entry.run).values():
            result = folder.result(PlannedJob(run, entry.kind))
            if result is not None and result["outcome"].get("chance"):
                return result["outcome"]["chance"]
    return {}


def _run(folder: ReproductionFolder, stored: Stored, plan: ReproductionPlan, run: Run) -> Data:
    jobs = {job.kind: job for job in plan.jobs if job.kind != "choose" and _is_of(folder, job, run)}
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
        **_model(run),
        "seed": run.seed,
        "lr": run.lr if run.lr is not None else folder.rate(run),
        "trial": run.lr is not None and run.lr != folder.rate(run.best),
        "parameters": stored.estimates[run.name].parameters,
        "planned_tokens": stored.estimates[run.name].tokens,
        "flops": stored.estimates[run.name].flops,
        "state": _state(folder, jobs["train"]),
        "training": trained.get("outcome", {}),
        "measuring_seconds": sum(seconds[kind] for kind in seconds if kind != "train"),
        "hosts": sorted(set(hosts)),
        "commands": commands,
    }


def _is_of(folder: ReproductionFolder, job: PlannedJob, run: Run) -> bool:
    """Tell whether a job trains a run or measures it."""
    return job.run == run or (job.run.swept and folder.trained(job.run) == run)


def _failure(folder: ReproductionFolder, job: PlannedJob) -> Data | None:
    failure = folder.failure(job)
    if failure is None:
        return None
    try:
        lines = (
            []
            if job.kind == "choose"
            else folder.log(job).read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        )
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
