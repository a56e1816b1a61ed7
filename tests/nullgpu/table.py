"""Null GPU's table: `python -m tests.nullgpu.table --data PACKED`, with a CUDA build of PyTorch."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.machine import markdown_table, write_result
from tests.nullgpu.build import build
from tests.nullgpu.run import run

VARIANTS = ("standard", "rndemb", "approximate", "mlp")


@dataclass
class Arguments:
    """Flags of the table.

    Attributes:
        data: packed corpus.
        size: of the models.
        seq_len: tokens.
        micro_batches: in a step.
        out: folder of the result.
    """

    data: Path
    size: str = "70m"
    seq_len: int = 2048
    micro_batches: int = 3
    out: Path = Path("benchmarks/results")


def main() -> None:
    """Trace every case and write `null_gpu.json` and `null_gpu.md`."""
    arguments = tyro.cli(Arguments)
    cases = [(variant, zero, "bf16" if zero else "fp32") for variant in VARIANTS for zero in range(4)]
    common = f"--size {arguments.size} --seq-len {arguments.seq_len} --micro-batch-size 8".split()
    common += ["--global-batch-size", str(8 * arguments.micro_batches), "--data", str(arguments.data)]
    with tempfile.TemporaryDirectory() as folder:
        environment = build(Path(folder) / "gpu")
        trainings = [
            [*common, "--variant", variant, "--zero", str(zero), "--precision", precision]
            for variant, zero, precision in cases
        ]
        found = run(trainings, environment, Path(folder))
    rows = [{"variant": v, "zero": z, "precision": p} | one for (v, z, p), one in zip(cases, found, strict=True)]
    options = {"size": arguments.size, "seq_len": arguments.seq_len, "micro_batches": arguments.micro_batches}
    write_result(arguments.out / "null_gpu.json", {"options": options, "results": rows})
    heading = (
        f"Null GPU (an A100), {arguments.size}, {arguments.micro_batches} micro-batches of 8 x {arguments.seq_len} "
        "tokens a step, one rank: counts, no times. `python -m tests.nullgpu.table --data PACKED`, with a CUDA build "
        "of PyTorch."
    )
    text = f"{heading}\n\n{table(rows)}"
    (arguments.out / "null_gpu.md").write_text(text, encoding="utf-8")
    print(text)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a row a case."""
    columns = ["variant", "ZeRO", "precision", "waits a micro-batch", "waits a step", "launches", "reductions", "GiB"]
    return markdown_table(
        columns,
        [
            [
                row["variant"], str(row["zero"]), row["precision"], f"{row['waits_a_micro_batch']:g}",
                str(row["waits_a_step"]), str(row["launches"]), ", ".join(row["reductions"]) or "none",
                f"{row['peak_gib']:.2f}",
            ]
            for row in rows
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
