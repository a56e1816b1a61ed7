"""Null GPU's tables: `python -m tests.nullgpu.table --data PACKED`, with a CUDA build of PyTorch.

The result is committed for the lowest and the newest supported PyTorch, each a part of the page.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks import machine
from benchmarks.machine import write_result
from deconattn.mixers import variant_names
from tests.nullgpu.build import build
from tests.nullgpu.cases import MICRO_BATCHES, OPTIONS, Case, of_every_variant, of_topologies, planned
from tests.nullgpu.run import run_all_ranks

Row = dict[str, Any]
KINDS = (
    "products",
    "attention",
    "ours",
    "compiled",
    "norms",
    "reductions",
    "elementwise",
    "copies",
    "optimizer",
    "other",
)


@dataclass
class Arguments:
    """Flags of the tables.

    Attributes:
        data: packed corpus.
        size: of the models.
        layers: of the models; 0 is the size's own.
        variants: to trace; none is every one.
        topologies: trace those of several ranks as well.
        capability: of the GPU, 80 or 90.
        out: folder of the result.
    """

    data: Path
    size: str = "70m"
    layers: int = 0
    variants: tuple[str, ...] = ()
    topologies: bool = True
    capability: int = 80
    out: Path = Path("benchmarks/results")


def main() -> None:
    """Trace every case, and write `null_gpu-TORCH.json` and, of all of those that there are, `null_gpu.md`."""
    import torch

    arguments = tyro.cli(Arguments)
    version = torch.__version__.split("+")[0]
    options = {"size": arguments.size, "layers": arguments.layers, "capability": arguments.capability}
    with tempfile.TemporaryDirectory() as folder:
        rows: list[Row] = []
        for more in traced(arguments, Path(folder)):
            rows += more
            result = {"torch": version, "options": options, "results": rows}
            write_result(arguments.out / f"null_gpu-{version}.json", result)
            _write_page(arguments.out)


def _write_page(folder: Path) -> None:
    """Write `null_gpu.md` of the results that there are."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("null_gpu-*.json"))]
    (folder / "null_gpu.md").write_text(page(found), encoding="utf-8")


def traced(arguments: Arguments, folder: Path) -> Iterator[list[Row]]:
    """Yield rows: those of one rank, of compiled layers, and of topologies, one for every rank."""
    environment = {"TRITON_CACHE_DIR": str(folder / "triton")} | build(folder / "gpu")
    environment["NULLGPU_CAP"] = str(arguments.capability)
    cases = of_every_variant(arguments.variants)
    # The layer that a model of three has beyond one of two: its launches.
    names = dict.fromkeys(case.variant for case in cases)
    layers = [Case(variant, 1, layers=count) for variant in names for count in (2, 3)]
    parts = {"plain": (1, [case for case in cases if "compile" not in case.option])}
    if arguments.topologies:
        parts |= {f"of-{ranks}": (ranks, of_topologies(ranks)) for ranks in (2, 4)}
    parts |= {"layers": (1, layers), "compiled": (1, [case for case in cases if "compile" in case.option])}
    for name, (ranks, some) in parts.items():
        words = [case.words(arguments.size, arguments.data, arguments.layers) for case in some]
        every = run_all_ranks(words, environment, folder / name, ranks)
        yield [
            _row(case, rank, flags, answers[number])
            for number, (case, flags) in enumerate(zip(some, words, strict=True))
            for rank, answers in enumerate(every)
        ]


def _row(case: Case, rank: int, words: Sequence[str], answer: Row) -> Row:
    planned_gib = round(planned(words, case.ranks, rank), 3)
    return asdict(case) | {"precision": case.precision, "rank": rank, "planned_gib": planned_gib} | answer


def page(results: Sequence[Row]) -> str:
    """Return the page of results, one a version of PyTorch."""
    parts = [
        "Null GPU: counts of a training step, no times; a stand-in for CUDA on which nothing is computed. "
        f"{MICRO_BATCHES} micro-batches of 8 x 2048 tokens a step. "
        "`python -m tests.nullgpu.table --data PACKED`, with a CUDA build of PyTorch. It cannot stand in for an AMD "
        "GPU: that would need a ROCm build."
    ]
    for result in results:
        options, rows = result["options"], result["results"]
        layers = f", {options['layers']} layers" if options["layers"] else ""
        parts.append(f"## torch {result['torch']}, {options['size']}{layers}, sm_{options['capability']}")
        parts += [f"**{title}**\n\n{table.rstrip()}" for title, table in tables(rows) if table]
    return "\n\n".join(parts) + "\n"


def tables(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return a table for each question, by its title."""
    one = [row for row in rows if not row["topology"] and not row["layers"]]
    several = [row for row in rows if row["topology"]]
    return [
        ("How often the host waits, and what is reduced in, by ZeRO stage (0: fp32, else bf16)", _waits(one)),
        ("Launches a micro-batch and layer (bf16, ZeRO-1), by kind", _layers(rows)),
        ("Launches of a step", _launches(one)),
        ("`--compile`: graphs, breaks, and graphs compiled after the first step", _graphs(one)),
        ("Peak memory of one rank, GiB: counted (planned)", _memory(one)),
        ("Several ranks", _several(several)),
        ("What was said of kernels", _said(rows)),
    ]


def _table(columns: list[str], body: list[list[str]]) -> str:
    """Return a Markdown table; nothing where it has no rows."""
    return machine.markdown_table(columns, body) if body else ""


def _waits(rows: Sequence[Row]) -> str:
    body = []
    for (stage, option), some in _groups(rows, "stage", "option").items():
        counted = {(f"{row['waits_a_micro_batch']:.3g}", str(row["waits_a_step"])) for row in some}
        for waits in sorted(counted):
            here = [r for r in some if (f"{r['waits_a_micro_batch']:.3g}", str(r["waits_a_step"])) == waits]
            names = "every" if len(here) == len(variant_names()) else ", ".join(row["variant"] for row in here)
            reductions = sorted({name for row in here for name in row["reductions"]})
            body.append([str(stage), option, names, *waits, ", ".join(reductions) or "none"])
    return _table(["ZeRO", "option", "variants", "a micro-batch", "then a step", "large reductions"], body)


def _layers(rows: Sequence[Row]) -> str:
    body = []
    for (variant,), some in _groups([row for row in rows if row["layers"]], "variant").items():
        two, three = (next(row["launches"] for row in some if row["layers"] == count) for count in (2, 3))
        each = [(three.get(kind, 0) - two.get(kind, 0)) / MICRO_BATCHES for kind in KINDS]
        body.append([variant, f"{sum(each):.1f}", *(f"{count:.1f}" for count in each)])
    return _table(["variant", "all", *KINDS], body)


def _launches(rows: Sequence[Row]) -> str:
    columns = [f"ZeRO-{stage}" for stage in range(4)] + [option for option in OPTIONS if option]
    body = []
    for (variant,), some in _groups(rows, "variant").items():
        counts = {row["option"] or f"ZeRO-{row['stage']}": sum(row["launches"].values()) for row in some}
        body.append([variant, *(str(counts.get(column, "")) for column in columns)])
    return _table(["variant", *columns], body)


def _graphs(rows: Sequence[Row]) -> str:
    body = [
        [
            f"{row['variant']}, doc-mask" if "doc" in row["option"] else row["variant"],
            str(row["compiled"]),
            str(sum(row["breaks"].values())),
            str(row["recompiled"]),
        ]
        for row in rows
        if "compile" in row["option"]
    ]
    return _table(["variant", "graphs", "breaks", "recompiled"], body)


def _memory(rows: Sequence[Row]) -> str:
    columns = [f"ZeRO-{stage}" for stage in range(4)] + [option for option in OPTIONS if option]
    body = []
    for (variant,), some in _groups(rows, "variant").items():
        cells = {
            row["option"] or f"ZeRO-{row['stage']}": f"{row['peak_gib']:.2f} ({row['planned_gib']:.2f})" for row in some
        }
        body.append([variant, *(cells.get(column, "") for column in columns)])
    return _table(["variant", *columns], body)


def _several(rows: Sequence[Row]) -> str:
    columns = ["topology", "variant", "ZeRO", "rank", "waits a micro-batch", "then a step", "launches"]
    return _table(
        [*columns, "large reductions", "GiB (planned)"],
        [
            [
                *(str(row[name]) for name in ("topology", "variant", "stage", "rank")),
                f"{row['waits_a_micro_batch']:.3g}",
                str(row["waits_a_step"]),
                str(sum(row["launches"].values())),
                ", ".join(row["reductions"]) or "none",
                f"{row['peak_gib']:.2f} ({row['planned_gib']:.2f})",
            ]
            for row in rows
        ],
    )


def _said(rows: Sequence[Row]) -> str:
    lines = dict.fromkeys(line for row in rows for line in row["said"] if line.startswith(("note:", "warning:")))
    return "\n".join(f"- {line}" for line in lines)


def _groups(rows: Sequence[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


if __name__ == "__main__":
    main()
