"""What `plot.py` shows, read from the files in `results/`: training, generation, and mixing operations."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deconattn.mixers import variant_names

OPERATIONS = {"softmax": "standard", "taylor": "approximate", "prefix": "nonapproximate", "fixed map": "fixedseq"}
"""The cases that are shown, each with the variant whose colour it has."""
MOVED = {
    "benchmarks/decode.py": "benchmarks/decoding/decode.py",
    "benchmarks/kernels.py": "benchmarks/kernels/operations.py",
    "benchmarks/train_cpu.py": "benchmarks/training/cpu.py",
    "benchmarks/train_step.py": "benchmarks/training/step.py",
}
"""A result names its script as it lay at the result's commit; a page names it as it lies now."""


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


@dataclass(frozen=True)
class Point:
    """A contestant's step of generation.

    Attributes:
        ratio: speed over the peer's in the same rounds; None where the peer failed.
        cache_bytes: of the batch, 0 where there is nothing to hold; `fixed_bytes` are held once for all rows.
    """

    ms_a_token: float
    ratio: float | None
    cache_bytes: int = 0
    fixed_bytes: int = 0


@dataclass(frozen=True)
class Curve:
    """A contestant's steps by batch and by tokens held; whole calls of `generate`, and steps of the smallest model.

    Attributes:
        variant: None for the peer.
        pattern: of the peer and of `standard`, the one that they were measured with.
    """

    name: str
    variant: str | None
    pattern: str
    points: dict[int, dict[int, Point]]
    generate: Point | None
    overhead: Point | None


@dataclass(frozen=True)
class Decoding:
    """One run of `decoding/decode.py`, the peer first."""

    key: str
    title: str
    peer: str
    curves: list[Curve]
    origin: Origin

    @property
    def batches(self) -> list[int]:
        return sorted({batch for curve in self.curves for batch in curve.points})

    @property
    def lengths(self) -> list[int]:
        return sorted({length for curve in self.curves for points in curve.points.values() for length in points})

    @property
    def patterns(self) -> list[str]:
        return list(dict.fromkeys(curve.pattern for curve in self.curves))

    def of_pattern(self, pattern: str) -> list[Curve]:
        """With what every pattern is compared with: the peer, and `standard`."""
        return [curve for curve in self.curves if curve.pattern == pattern or curve.variant in (None, "standard")]


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
                origin, baselines = origin_of(result), {row["training"]["baseline"] for row in rows}
                baseline = "fastest of " + ", ".join(sorted(name for name in baselines if name))
                found.append(
                    Operations(f"{path.stem}-{precision}", f"{origin.device}, {precision}", baseline, ratios, origin)
                )
    return found


def decodings(results: Path) -> list[Decoding]:
    """Of `decode-*.json`, in the order of their names, GPUs first."""
    found = []
    for path in sorted(results.glob("decode-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        options, peer, origin = result["options"], result["peer"], origin_of(result)
        names = dict.fromkeys(name for case in result["cases"] for name in case["contestants"])
        curves = [_curve(name, None if name == peer else _variant(name), result["cases"]) for name in names]
        curves = [curve for curve in curves if curve.points]
        if curves:
            title = f"{options['size']} on {origin.device}, {options['precision']}"
            found.append(Decoding(path.stem, title, peer, curves, origin))
    return sorted(found, key=lambda decoding: decoding.key.endswith("cpu"))


def _curve(name: str, variant: str | None, cases: list[dict[str, Any]]) -> Curve:
    points: dict[int, dict[int, Point]] = {}
    others: dict[str, Point] = {}
    for case in cases:
        row = case["contestants"].get(name, {})
        if "ms_a_token" not in row:
            continue
        held = {key: row[key] for key in ("cache_bytes", "fixed_bytes") if key in row}
        point = Point(row["ms_a_token"], row["ratio"], **held)
        if case["kind"] == "step":
            points.setdefault(case["batch"], {})[case["length"]] = point
        else:
            others[case["kind"]] = point
    pattern = name.partition(" ")[2] if variant else ""
    return Curve(name, variant, pattern or "uniform", points, others.get("generate"), others.get("overhead"))


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
    origin = origin_of(result)
    key = path.stem if size in path.stem else f"{path.stem}-{size}"
    ordered = sorted(bars, key=lambda bar: -bar.tokens_per_second)
    return Throughput(key, f"{size} on {origin.device}, {tokens}", reference, ordered, origin)


def origin_of(result: dict[str, Any]) -> Origin:
    """Return where a result file came from."""
    machine, versions = result["machine"], result["versions"]
    on_cpu = result.get("options", {}).get("device") == "cpu"  # though there may have been a GPU
    device = (None if on_cpu else machine.get("gpu")) or f"{machine['cpu']}, {machine['cores']} cores"
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "deepspeed", "transformers") if name in versions)
    command = " ".join(MOVED.get(word, word) for word in result["command"].split(" "))
    return Origin(device, result["date"], shown, command)
