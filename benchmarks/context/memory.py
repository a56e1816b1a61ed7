"""Peak memory of a rank where 1, 2 and 4 ranks share a sequence, beside the prediction; and what a limit lets through.

    python benchmarks/context/memory.py

One step of 70m's widths at 32,768 tokens, each rank a process of its own (gloo, CPU), measured as in
benchmarks/training/memory.py. Then with a limit to each process's memory (RLIMIT_DATA), between what one rank and what
four need: one rank fails, four train. It needs 8 GiB.
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
from deconattn.errors import UserError

SHARED = {"1 rank": 1, "cp 2": 2, "cp 4": 4}
"""Layouts of benchmarks/training/memory.py and how many ranks share a sequence in each."""


@dataclass(frozen=True)
class Arguments:
    """Measure peak memory of ranks that share a sequence."""

    size: str = "70m"
    variant: str = "standard"
    seq_len: int = 32768
    num_hidden_layers: int = 3
    vocab_size: int = 4096
    precision: str = "fp32"
    zero: int = 0
    limit_gib: float = 0.0
    """Memory that each process may have in the last two rows; 0 is halfway between what one rank and four need."""
    out: Path = RESULTS / "context_memory-70m.json"


def main() -> None:
    """Measure, and write JSON.

    Raises:
        UserError: a run failed that needed not, or one that needed to did not.
    """
    arguments = parse(Arguments)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for layout in SHARED:
            rows.append(of_layout(arguments, layout, folder, 0))
            print(rows[-1], flush=True)
        one, _, four = (row.get("measured", 0) for row in rows)
        limit = int(arguments.limit_gib * 2**30) or (one + four) // 2
        for layout in ("1 rank", "cp 4"):
            rows.append(of_layout(arguments, layout, folder, limit))
            print(rows[-1], flush=True)
    options = {name: value for name, value in dataclasses.asdict(arguments).items() if name != "out"}
    write_result(arguments.out, {"options": options, "runs": rows})
    print(f"\n{describe()}\n\n{summary(rows)}")
    if [("failure" in row) for row in rows] != [False, False, False, True, False]:
        raise UserError(f"only one rank under a limit is to fail: see {arguments.out}")


def flags_of(arguments: Arguments, layout: str) -> list[str]:
    """The training command line of a layout: one sequence."""
    return [
        "--size", arguments.size, "--variant", arguments.variant, "--pattern", "uniform",
        "--num-hidden-layers", str(arguments.num_hidden_layers), "--seq-len", str(arguments.seq_len),
        "--vocab-size", str(arguments.vocab_size), "--precision", arguments.precision, "--zero", str(arguments.zero),
        "--micro-batch-size", "1", "--global-batch-size", "1", *LAYOUTS[layout][1],
    ]  # fmt: skip


def of_layout(arguments: Arguments, layout: str, folder: Path, limit: int) -> dict[str, Any]:
    """Measured and predicted bytes of a layout, of the rank that needs most; or why it failed."""
    ranks, command_line = SHARED[layout], flags_of(arguments, layout)
    predicted = predict(parse_training_flags(command_line), ranks)
    row: dict[str, Any] = {"layout": layout, "limit": limit, "predicted": predicted.memory.total}
    row |= {"moment": predicted.name, "activations": predicted.memory.activations}
    try:
        answers = measure(command_line, ranks, 1, folder, limit)
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
