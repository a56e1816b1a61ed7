"""What `plot.py` shows, read from the files in `results/`: throughputs of training, and times of mixing operations."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deconattn.mixers import variant_names

OPERATIONS = {"softmax": "standard", "taylor": "approximate", "prefix": "nonapproximate", "fixed map": "fixedseq"}
"""The cases that are shown, each with the variant whose colour it has."""


@dataclass(frozen=True)
class Origin:
    """Where a result came from."""

    device: str
    date: str
    versions: str
    command: str


@dataclass(frozen=True)
class Bar:
    """A contestant's training throughput.

    Attributes:
        variant: None for a peer.
        ratio: over the run's reference.
        memory_gib: peak.
    """

    name: str
    variant: str | None
    tokens_per_second: float
    ratio: float | None
    mfu: float | None
    memory_gib: float


@dataclass(frozen=True)
class Throughput:
    """One size in one run, the fastest first."""

    key: str
    """Part of a file name."""
    title: str
    reference: str
    bars: list[Bar]
    origin: Origin


@dataclass(frozen=True)
class Operations:
    """Our mixing operations in one precision of one run.

    Attributes:
        baseline: what a time is divided by: the fastest of PyTorch's attention kernels in the same rounds.
        ratios: by `forward` and `training`, by operation, by sequence length.
    """

    key: str
    title: str
    baseline: str
    ratios: dict[str, dict[str, dict[int, float]]]
    origin: Origin

    @property
    def lengths(self) -> list[int]:
        found = {length for cases in self.ratios.values() for points in cases.values() for length in points}
        return sorted(found)


def throughputs(results: Path) -> list[Throughput]:
    """Of `train_step-*.json` and `train_cpu-*.json`, in the order of their names, GPUs first."""
    found = []
    for path in sorted(results.glob("train_step-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for size, summary in result["summary"].items():
            rows = {name: row for name, row in summary.items() if "failure" not in row}
            bars = [_bar(name, row, ours=row["library"] == "deconattn") for name, row in rows.items()]
            tokens = f"{result['options']['seq_len']} tokens a sequence, bf16"
            found.append(_throughput(path, size, tokens, result["reference"], bars, result))
    for path in sorted(results.glob("train_cpu-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        options, peer = result["options"], result["peer"]
        rows = {name: row | {"memory_gib": row["peak_gib"]} for name, row in result["summary"].items()}
        bars = [_bar(name, row, ours=name != peer) for name, row in rows.items()]
        tokens = f"{options['batch_size']} x {options['seq_len']} tokens, {options['precision']}"
        found.append(_throughput(path, options["size"], tokens, peer, bars, result))
    found = [throughput for throughput in found if throughput.bars]
    return sorted(found, key=lambda throughput: throughput.key.startswith("train_cpu"))


def operations(results: Path) -> list[Operations]:
    """Of `kernels-*.json`, those that have a baseline; a file and precision each."""
    found = []
    for path in sorted(results.glob("kernels-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        timed = [row for row in result["results"] if row["kind"] == "time" and "contestants" in row]
        for precision in dict.fromkeys(row["precision"] for row in timed):
            rows = [row for row in timed if row["precision"] == precision and row["case"] in OPERATIONS]
            ratios = {kind: _ratios(rows, kind) for kind in ("forward", "training")}
            if any(ratios.values()):
                origin, baselines = _origin(result), {row["training"]["baseline"] for row in rows}
                baseline = "fastest of " + ", ".join(sorted(name for name in baselines if name))
                found.append(
                    Operations(f"{path.stem}-{precision}", f"{origin.device}, {precision}", baseline, ratios, origin)
                )
    return found


def _ratios(rows: list[dict[str, Any]], kind: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        ratio = row["contestants"].get("ours", {}).get(kind, {}).get("ratio")
        if ratio is not None:
            found.setdefault(row["case"], {})[row["length"]] = ratio
    return found


def _bar(name: str, row: dict[str, Any], ours: bool) -> Bar:
    return Bar(
        name,
        _variant(name) if ours else None,
        row["tokens_per_second"],
        row["ratio"],
        row.get("mfu"),
        row["memory_gib"],
    )


def _variant(name: str) -> str:
    """The variant in a contestant's name, such as `fixedseq 1:1, eager`."""
    first = name.split(",")[0].split(" ")[0]
    return first if first in variant_names() else "standard"


def _throughput(
    path: Path, size: str, tokens: str, reference: str, bars: list[Bar], result: dict[str, Any]
) -> Throughput:
    origin = _origin(result)
    key = path.stem if size in path.stem else f"{path.stem}-{size}"
    ordered = sorted(bars, key=lambda bar: -bar.tokens_per_second)
    return Throughput(key, f"{size} on {origin.device}, {tokens}", reference, ordered, origin)


def _origin(result: dict[str, Any]) -> Origin:
    machine, versions = result["machine"], result["versions"]
    device = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "deepspeed", "transformers") if name in versions)
    return Origin(device, result["date"], shown, result["command"])
