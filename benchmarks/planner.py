"""The planner's table: the fastest topologies of three sizes on 64 to 4096 GPUs at three lengths, and their picture.

    python benchmarks/planner.py

A prediction: no GPU is needed, minutes on a core. It goes into docs/planner.md between its marks.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, markdown_table, write_result
from deconattn.analysis.sweep_picture import draw_sweep
from deconattn.cli import parse, run
from deconattn.config.flag_groups import EngineFlags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.config.presets import size_defaults
from deconattn.cost.cluster import Cluster
from deconattn.cost.sweep import Cell, row, swept
from deconattn.layers.config import ModelConfig

BEGIN, END = "<!-- planner's table -->", "<!-- end of the planner's table -->"
COLUMNS = ["size", "length", "GPUs", "batch", "flags", "step", "tokens/s", "MFU", "bubble", "GiB"]


@dataclass(frozen=True)
class Arguments:
    """Tabulate the fastest topologies of several sizes."""

    sizes: tuple[str, ...] = ("1.7b", "7b", "70b")
    """Presets."""
    gpus: tuple[int, ...] = (64, 256, 1024, 4096)
    """Numbers of GPUs."""
    lengths: tuple[int, ...] = (2048, 32768, 131072)
    """Tokens of a sequence."""
    tokens: int = 2**22
    """Tokens of a global batch."""
    gpu: str = "h100"
    """The GPU."""


def main() -> None:
    """Sweep, and write JSON, page and pictures."""
    arguments = parse(Arguments)
    cluster = Cluster.of(arguments.gpu, 8, None, 5)
    lines: list[list[str]] = []
    results: list[dict[str, Any]] = []
    for size in arguments.sizes:
        flags = _flags(size, arguments)
        cells = swept(flags, _model(flags), arguments.gpus, arguments.lengths, cluster.card.memory, cluster)
        lines += [[size, *row(cell)] for cell in cells]
        results += [{"size": size, **_as_json(cell)} for cell in cells]
        draw_sweep(cells, ROOT / "docs" / "images" / f"planner-{size}.svg")
    write_result(RESULTS / "planner.json", {"options": dataclasses.asdict(arguments), "results": results})
    page = ROOT / "docs" / "planner.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{table(lines)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(table(lines))


def table(lines: list[list[str]]) -> str:
    """Return the Markdown table of cells as :func:`deconattn.cost.sweep.row` has them."""
    shown = [[*line[:4], f"`{line[4]}`" if line[5] else line[4], *line[5:]] for line in lines]
    return markdown_table(COLUMNS, shown)


def _flags(size: str, arguments: Arguments) -> TrainingFlags:
    flags = dataclasses.replace(size_defaults(size), engine=EngineFlags(precision="bf16"))
    batch = arguments.tokens // flags.data.seq_len
    optimization = dataclasses.replace(flags.optimization, global_batch_size=batch)
    return dataclasses.replace(flags, optimization=optimization)


def _model(flags: TrainingFlags) -> Any:
    def of_length(length: int) -> ModelConfig:
        return model_config(flags.model, 50277, length)

    return of_length


def _as_json(cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = {"gpus": cell.gpus, "length": cell.length, "batch": cell.batch}
    if cell.best is None:
        return found | {"reason": cell.reason}
    time = {name: float(f"{value:.4g}") for name, value in dataclasses.asdict(cell.best.time).items()}
    return found | {
        "flags": cell.best.command,
        "seconds": time,
        "tokens_per_second": round(cell.best.tokens_per_second),
        "mfu": round(cell.used, 4),
        "peak_gib": round(cell.best.peak.memory.total / 2**30, 2),
    }


if __name__ == "__main__":
    run(main)
