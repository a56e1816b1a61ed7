"""The command of each job, and readers of what `train`, `evaluate` and `analyze` leave behind.

Commands are run as a user would: what one of them breaks, breaks one cell.
"""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from deconattn.errors import UserError
from deconattn.metric_rows import METRICS, MetricRow, valid_lines
from deconattn.program import process
from deconattn.reproduction.folder import ReproductionFolder, Stored
from deconattn.reproduction.plans import PlannedJob, Run, first_corpus, training_flags

TRAIN, EVALUATE, ANALYZE = process("train"), process("evaluate"), process("analyze")
CONFIG, CHECKPOINTS, MANIFEST = "config.json", "checkpoints", "checkpoint.json"

SCORES_FILE = "results.json"
TITLES = ("ARC-E", "BoolQ", "COPA", "PIQA", "SciQ", "RTE", "HellaSwag", "Avg", "Wiki ppl", "LAMBADA ppl", "LAMBADA acc")
"""Columns of table 1, in its order."""
PERPLEXITIES = ("Wiki ppl", "LAMBADA ppl")
STDERR = " stderr"
INDICATORS = ("entropy", "concentration", "head diversity", "sink", *(f"local focus {n}" for n in range(4)))
ANALYSIS_FILE, INDICATORS_FILE = "analysis.json", "indicators.json"

LayerMeans = dict[str, Any]


def training_begun(run: Path) -> bool:
    """Whether there is something to resume."""
    return (run / CONFIG).is_file()


def run_config(run: Path) -> dict[str, Any]:
    """The run's resolved configuration; empty where it cannot be read."""
    try:
        content = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def metric_rows(run: Path) -> list[MetricRow]:
    """Read the rows of metrics.jsonl that count; what is not finite is a word, as in the file."""
    try:
        text = (run / METRICS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [row for _, row in valid_lines(text)]


def training_progress(run: Path) -> str:
    """Step of a training and its last, in words; empty where nothing is known."""
    found, total = metric_rows(run), run_config(run).get("total_steps")
    return f"step {found[-1]['step']} of {total}" if found and total else ""


def training_summary(run: Path) -> dict[str, Any]:
    """Summary of a finished training.

    `seconds` is the time that its steps took, whatever kills and pauses there were between them; validations and
    checkpoints are not in it. Losses are nats a token.

    Raises:
        UserError: the last checkpoint is not there.
    """
    total = run_config(run).get("total_steps")
    if not (run / CHECKPOINTS / f"step-{total}" / MANIFEST).is_file():
        raise UserError(f"the training ended without its last checkpoint, step {total}")
    found = metric_rows(run)
    steps = [row for row in found if "loss" in row]
    validations = [row["val_loss"] for row in found if _is_number(row.get("val_loss")) and row["step"] == total]
    seconds = _seconds(steps)
    tokens = steps[-1]["tokens"] if steps else 0
    return {
        "steps": total,
        "tokens": tokens,
        "loss": steps[-1]["loss"] if steps and _is_number(steps[-1]["loss"]) else None,
        "validation_loss": validations[-1] if validations else None,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
        "memory_gib": max((row.get("memory_gib", 0.0) for row in steps), default=None),
        "environment": run_config(run).get("environment", {}),
    }


def loss_curves(run: Path) -> dict[str, list[list[float]]]:
    """Losses over tokens: `training` and `validation`, each [[tokens, nats], ...]; what is not finite is left out."""
    found = metric_rows(run)
    tokens = {row["step"]: row["tokens"] for row in found if "tokens" in row}
    a_step = max((count / step for step, count in tokens.items() if step), default=0.0)
    pairs: dict[str, list[list[float]]] = {"training": [], "validation": []}
    for name, key in (("training", "loss"), ("validation", "val_loss")):
        for row in found:
            if _is_number(row.get(key)):
                pairs[name].append([tokens.get(row["step"], row["step"] * a_step), row[key]])
    return pairs


def _is_number(value: Any) -> bool:
    """Tell numbers from what is not there and from words, such as "nan"."""
    return isinstance(value, float | int) and math.isfinite(value)


def _seconds(steps: list[MetricRow]) -> float:
    """A row's rate holds since the row before; where a start left it out, the others' median stands in."""
    rates = [row["tokens_per_second"] for row in steps if row.get("tokens_per_second")]
    if not rates:
        return 0.0
    usual, seconds, before = statistics.median(rates), 0.0, 0
    for row in steps:
        seconds += (row["tokens"] - before) / (row.get("tokens_per_second") or usual)
        before = row["tokens"]
    return seconds


def read_scores(folder: Path) -> dict[str, Any]:
    """The scores of the one model that was evaluated.

    Returns:
        `scores` and `chance` (by row, then) by column {"value", "stderr"}, accuracies as fractions; `contexts`,
        WikiText perplexity by context length; `comparable`, false for a part of the documents; `versions`; `device`.

    Raises:
        UserError: there are none, or they are not as they should be.
    """
    path = folder / SCORES_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        (model,) = content["models"]
        return {
            "scores": _columns(model["scores"]),
            "contexts": {str(length): _number(value) for length, value in model["context_perplexities"].items()},
            "chance": {row: _columns(numbers) for row, numbers in content.get("chance", {}).items()},
            "comparable": bool(content["comparable"]),
            "versions": content.get("versions", {}),
            "device": model["model"].get("device"),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def _columns(numbers: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    return {
        title: {"value": _number(numbers[title]), "stderr": _number(numbers.get(title + STDERR))}
        for title in TITLES
        if title in numbers
    }


def _number(value: Any) -> float | None:
    """None for what is missing and for NaN; infinities are as they are written, words."""
    number = None if value is None else float(value)
    return None if number is None or number != number else min(number, 1e300)


def read_indicators(folder: Path) -> dict[str, Any]:
    """Indicators of the analysed model: {"layers": [{"layer", "variant", and each indicator's mean over heads}]}.

    Layers that mix nothing are left out.

    Raises:
        UserError: there is nothing, or it is not as it should be.
    """
    try:
        json.loads((folder / ANALYSIS_FILE).read_text(encoding="utf-8"))
        if not (folder / INDICATORS_FILE).is_file():  # no layer mixes
            return {"layers": []}
        columns = json.loads((folder / INDICATORS_FILE).read_text(encoding="utf-8"))
        found: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        wanted = (columns[name] for name in ("layer", "variant", "indicator", "value"))
        for layer, variant, indicator, value in zip(*wanted, strict=True):
            found[layer, variant][indicator].append(value)
        layers = [
            {"layer": layer, "variant": variant} | {name: fmean(heads[name]) for name in INDICATORS}
            for (layer, variant), heads in sorted(found.items())
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDICATORS_FILE} cannot be read ({type(error).__name__}: {error})") from error
    return {"layers": layers}


def choose_rate(folder: ReproductionFolder, stored: Stored, run: Run) -> dict[str, Any]:
    """Choose the trial of a sweep with the lowest validation loss.

    Returns:
        `lr` of the best, and `losses` by rate, in nats a token, None where a trial failed or diverged.

    Raises:
        UserError: none has a loss.
    """
    losses: dict[str, float | None] = {}
    for lr in stored.request.lr_sweep:
        trained = folder.result(PlannedJob(run.at(lr), "train"))
        losses[str(lr)] = None if trained is None else trained["outcome"]["validation_loss"]
    found = {lr: loss for lr, loss in losses.items() if loss is not None}
    if not found:
        raise UserError("no rate of the sweep has a validation loss")
    return {"lr": float(min(found, key=lambda lr: found[lr])), "losses": losses}


def outcome_of(job: PlannedJob, folder: ReproductionFolder) -> dict[str, Any]:
    """Read what a job's command left behind.

    Raises:
        UserError: not what it should have.
    """
    if job.kind == "train":
        return training_summary(folder.output(job))
    if job.kind == "analyze":
        return read_indicators(folder.output(job))
    return read_scores(folder.output(job))


def command_of(job: PlannedJob, folder: ReproductionFolder, stored: Stored, fresh: bool = False) -> list[str]:
    """Command line of a job, given what is on the disk: a training that has begun is resumed, unless `fresh`."""
    run, request = str(folder.run(folder.trained(job.run) or job.run)), stored.request
    if job.kind == "train":
        if not fresh and training_begun(Path(run)):
            return [*TRAIN, "--save", run, "--resume"]
        rate = folder.rate(job.run)
        trained = job.run if rate is None else job.run.at(rate)
        return [*TRAIN, *training_flags(request, trained), "--save", run]
    out = ["--out", str(folder.output(job))]
    if job.kind == "analyze":
        corpus = first_corpus(request)
        return [*ANALYZE, run, "--measure", "indicators", *([] if corpus is None else ["--data", corpus]), *out]
    command = [*EVALUATE, run, *out]
    if request.datasets is not None:
        command += ["--datasets", str(request.datasets)]
    if request.limit:
        command += ["--limit", str(request.limit)]
    if job.kind == "contexts":
        longest = stored.estimates[job.run.name].length
        lengths = [str(length) for length in request.context_lengths if length <= longest]
        return [*command, "--tasks", "wikitext", "--context-lengths", ",".join(lengths or [str(longest)])]
    if request.tasks:
        command += ["--tasks", request.tasks]
    return [*command, "--skip-variant-layers"] if job.kind == "skip" else command
