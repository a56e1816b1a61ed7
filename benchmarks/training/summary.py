"""What the turns of `step.py` say: rates, ratios to the reference, utilisation, and the table."""

import re
import statistics
from typing import Any

import torch

from benchmarks.machine import markdown_table
from benchmarks.training.contestants import Contestant, Workload
from deconattn.cost.hardware import peak_flops
from deconattn.model.flops import training_flops


def device_slug() -> str:
    """The GPU's name, or `cpu`, as a part of a file name."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def summarize(runs: dict[str, list[dict[str, Any]]], reference: str, workload: Workload) -> dict[str, Any]:
    """By contestant: its figures over all its turns, or its `failure`; `drift` of the reference's last to first turn.

    Args:
        runs: by contestant's name, its turns.
        workload: of the runs, but for the micro-batch, which each turn has.
    """
    rates = {name: _rates(turns, workload.seq_len) for name, turns in runs.items()}
    base = statistics.median(rates[reference]) if rates.get(reference) else None
    summary: dict[str, Any] = {}
    for name, turns in runs.items():
        good = [turn for turn in turns if "failure" not in turn]
        if not good:
            summary[name] = {"failure": turns[-1]["failure"]}
            continue
        rate = statistics.median(rates[name])
        summary[name] = {
            "library": good[0]["library"],
            "compile": good[0]["compile"],
            "tokens_per_second": rate,
            "slowest": min(rates[name]),
            "fastest": max(rates[name]),
            "ratio": rate / base if base else None,
            "mfu": _mfu(good[0], workload, rate),
            "memory_gib": max(turn["memory_gib"] for turn in good),
            "micro_batch_size": good[0]["micro_batch_size"],
            "first_loss": good[0]["losses"][0],
            "last_loss": good[0]["losses"][-1],
            "skipped_steps": sum(turn["skipped_steps"] for turn in good),
            "backend": good[0]["backend"]["backend"] if good[0]["library"] == "deconattn" else None,
        }
    turns_of_reference = [turn for turn in runs.get(reference, []) if "failure" not in turn]
    if len(turns_of_reference) > 1:
        first, last = (
            statistics.median(_rates([turn], workload.seq_len))
            for turn in (turns_of_reference[0], turns_of_reference[-1])
        )
        summary[reference]["drift"] = last / first
    return summary


def markdown(summary: dict[str, Any], reference: str) -> str:
    """A table a size, the fastest first."""
    columns = [
        "contestant", "tokens/s", f"over {reference}", "MFU", "peak GiB", "micro-batch", "first loss", "last loss",
        "skipped",
    ]  # fmt: skip
    parts = []
    for size, contestants in summary.items():
        rows = []
        for name, row in sorted(contestants.items(), key=lambda item: -item[1].get("tokens_per_second", 0.0)):
            if "failure" in row:
                rows.append([name, _last_line(row["failure"]), *[""] * (len(columns) - 2)])
                continue
            rows.append([
                name, f"{row['tokens_per_second']:,.0f}", f"{row['ratio']:.2f}" if row["ratio"] else "",
                f"{row['mfu']:.1%}" if row["mfu"] else "unknown", f"{row['memory_gib']:.1f}",
                str(row["micro_batch_size"]), f"{row['first_loss']:.3f}", f"{row['last_loss']:.3f}",
                str(row["skipped_steps"]),
            ])  # fmt: skip
        drift = contestants.get(reference, {}).get("drift")
        note = f"\n{reference}, last turn over first: {drift:.3f}\n" if drift else ""
        parts.append(f"**{size}**\n\n{markdown_table(columns, rows)}{note}")
    return "\n".join(parts)


def _rates(turns: list[dict[str, Any]], seq_len: int) -> list[float]:
    """Tokens/s, a sample each."""
    return [
        turn["micro_batch_size"] * seq_len / seconds
        for turn in turns
        for seconds in turn.get("seconds_a_step", [])
        if "failure" not in turn
    ]


def _mfu(turn: dict[str, Any], workload: Workload, rate: float) -> float | None:
    """Model FLOP/s over the device's peak; a peer is counted as `standard`, whose formulas are its own."""
    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if peak is None:
        return None
    rows = turn["micro_batch_size"]
    config = workload.model_config(Contestant(variant=turn["variant"], pattern=turn["pattern"]))
    return training_flops(config, rows, workload.seq_len) / (rows * workload.seq_len) * rate / peak


def _last_line(text: str) -> str:
    """What a table shows of a failure."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["failed"])[-1][:80].replace("|", "/")
