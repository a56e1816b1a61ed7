"""The fastest topologies of a model over numbers of GPUs and sequence lengths."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from deconattn.config.flags import TrainingFlags
from deconattn.cost.cluster import Cluster
from deconattn.cost.recommend import LARGEST_BUBBLE, Recommendation, recommend
from deconattn.cost.step_time import utilisation
from deconattn.errors import UserError
from deconattn.layers.config import ModelConfig
from deconattn.progress import Advance, unseen


@dataclass(frozen=True)
class Cell:
    """One number of GPUs at one length.

    Attributes:
        batch: sequences of the global batch.
        best: the fastest topology, or None.
        used: its MFU.
        reason: why there is none.
    """

    gpus: int
    length: int
    batch: int
    best: Recommendation | None = None
    used: float = 0.0
    reason: str = ""


def swept(
    flags: TrainingFlags,
    model: Callable[[int], ModelConfig],
    gpus: Sequence[int],
    lengths: Sequence[int],
    gib: float,
    cluster: Cluster,
    advance: Advance = unseen,
) -> list[Cell]:
    """Return the fastest topology of each number of GPUs and length; the global batch keeps its number of tokens.

    Args:
        model: makes the model for a length.
        advance: told of each cell that is done.
    """
    tokens = flags.optimization.global_batch_size * flags.data.seq_len
    cells = []
    for length in lengths:
        batch = max(1, tokens // length)
        at_length = dataclasses.replace(
            flags,
            data=dataclasses.replace(flags.data, seq_len=length),
            optimization=dataclasses.replace(flags.optimization, global_batch_size=batch),
        )
        for count in gpus:
            try:
                best = recommend(model(length), at_length, count, gib, cluster, count=1)[0]
            except UserError as error:
                cells.append(Cell(count, length, batch, reason=str(error)))
            else:
                cells.append(Cell(count, length, batch, best, utilisation(best.job, cluster, best.time.total)))
            advance(1)
    return cells


def sweep_table(cells: Sequence[Cell], title: str) -> Table:
    """Tabulate a sweep; a bubble that is much is marked."""
    table = Table(title=title)
    for column in ("length", "GPUs", "batch", "flags", "step", "tokens/s", "MFU", "bubble", "GiB"):
        table.add_column(column, justify="left" if column == "flags" else "right")
    length = None
    for cell in cells:
        if length not in (None, cell.length):
            table.add_section()
        length = cell.length
        table.add_row(*row(cell))
    return table


def row(cell: Cell) -> list[str]:
    """Return a cell's figures as text."""
    head = [f"{cell.length:,}", f"{cell.gpus:,}", f"{cell.batch:,}"]
    best = cell.best
    if best is None:
        return [*head, cell.reason, "", "", "", "", ""]
    much = " !" if best.time.bubble_share > LARGEST_BUBBLE else ""
    return [
        *head,
        best.command,
        f"{best.time.total:.3g} s",
        f"{best.tokens_per_second:,.0f}",
        f"{cell.used:.0%}",
        f"{best.time.bubble_share:.0%}{much}",
        f"{best.peak.memory.total / 2**30:.1f}",
    ]
