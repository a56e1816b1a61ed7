"""Peak memory of a rank where 1, 2 and 4 ranks share a sequence, beside the prediction; and what a limit lets through.

    python benchmarks/context/memory.py

One step of two layers of 70m's widths at 32,768 tokens, each rank a process of its own (gloo, CPU), measured as in
benchmarks/training/memory.py. Where four share it, each process has a limit to its memory (RLIMIT_DATA), halfway
between what one rank and what four are predicted to need; under the same limit one rank must fail.
"""

import dataclasses
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import RESULTS, describe, markdown_table, write_result
from benchmarks.training.memory import LAYOUTS, measure, predict
from deconattn.cli import parse, run
from deconattn.config.command_line import parse_training_flags
from deconattn.cost.memory import MemorySnapshot
from deconattn.errors import UserError

SHARED = {"1 rank": 1, "cp 2": 2, "cp 4": 4}
"""Layouts of benchmarks/training/memory.py and how many ranks share a sequence in each."""


@dataclass(frozen=True)
class Arguments:
    """Measure peak memory of ranks that share a sequence."""

    size: str = "70m"
    variant: str = "standard"
    seq_len: int = 32768
    num_hidden_layers: int = 2
    vocab_size: int = 4096
    precision: str = "fp32"
    zero: int = 0
    out: Path = RESULTS / "context_memory-70m.json"


def main() -> None:
    """Measure, and write JSON.

    Raises:
        UserError: a run failed that need not, or the one that must did not.
    """
    arguments = parse(Arguments)
    one, _, four = (predicted(arguments, layout).memory.total for layout in SHARED)
    limit = (one + four) // 2
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for layout, allowed in (("1 rank", 0), ("cp 2", 0), ("cp 4", limit), ("1 rank", limit)):
            rows.append(of_layout(arguments, layout, Path(temporary), allowed))
            print(rows[-1], flush=True)
    options = {name: value for name, value in dataclasses.asdict(arguments).items() if name != "out"}
    write_result(arguments.out, {"options": options, "runs": rows})
    print(f"\n{describe()}\n\n{summary(rows)}")
    if [("failure" in row) for row in rows] != [False, False, False, True]:
        raise UserError(f"only one rank under the limit is to fail: see {arguments.out}")


def flags_of(arguments: Arguments, layout: str) -> list[str]:
    """The training command line of a layout: one sequence."""
    return [
        "--size", arguments.size, "--variant", arguments.variant, "--pattern", "uniform",
        "--num-hidden-layers", str(arguments.num_hidden_layers), "--seq-len", str(arguments.seq_len),
        "--vocab-size", str(arguments.vocab_size), "--precision", arguments.precision, "--zero", str(arguments.zero),
        "--micro-batch-size", "1", "--global-batch-size", "1", *LAYOUTS[layout][1],
    ]  # fmt: skip


def predicted(arguments: Arguments, layout: str) -> MemorySnapshot:
    """The largest moment of any rank."""
    return predict(parse_training_flags(flags_of(arguments, layout)), SHARED[layout])


def of_layout(arguments: Arguments, layout: str, folder: Path, limit: int) -> dict[str, Any]:
    """Measured and predicted bytes of a layout, of the rank that needs most; or why it failed."""
    largest = predicted(arguments, layout)
    row: dict[str, Any] = {"layout": layout, "limit": limit, "predicted": largest.memory.total}
    row |= {"moment": largest.name, "activations": largest.memory.activations}
    try:
        answers = measure(flags_of(arguments, layout), SHARED[layout], 1, folder, limit)
    except RuntimeError as error:
        return row | {"failure": str(error).splitlines()[-1]}
    return row | {"measured": max(answer["peak"] for answer in answers), "ranks": answers}


def summary(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a run, MiB."""
    table = []
    for row in rows:
        numbers = [row["limit"], row.get("measured"), row["predicted"], row["activations"]]
        limit, measured, *others = ("" if not number else f"{number / 2**20:,.0f}" for number in numbers)
        table.append([row["layout"], limit, "failed" if "failure" in row else measured, *others])
    return markdown_table(["ranks that share", "limit", "measured", "predicted", "of it activations"], table)


if __name__ == "__main__":
    run(main)
