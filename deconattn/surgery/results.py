"""Results of a measurement and a search: one row a number, in `results.json` and `results.parquet`."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from deconattn import durable
from deconattn.statistics import Interval, mean_interval
from deconattn.surgery.assignments import as_flag, kept_layers
from deconattn.surgery.comparison import FOUND, Comparison, Pair
from deconattn.surgery.folder import Asked, Cell, Heads, Own, SearchFolder

FORMAT = 1
RESULTS, PARQUET = "results.json", "results.parquet"
Kind = Literal["layer", "head", "pair", "hybrid"]


@dataclass(frozen=True)
class Row:
    """What replacing something does to the loss, nats a token; intervals are at 95 %, over sequences.

    Each random draw has a row.
    """

    kind: Kind
    layer: int | None
    """Layer, from 1; of a pair the lower one."""
    other_layer: int | None
    """The upper layer of a pair."""
    head: int | None
    """Head, from 1."""
    name: str
    """Variant; of a pair both; of a hybrid the name of the pattern."""
    pattern: str | None
    """A hybrid as --pattern takes it."""
    kept: int | None
    """Layers of a hybrid that are the model's own."""
    increase: float | None
    """Mean increase, paired by sequence; None: it failed."""
    low: float | None
    high: float | None
    beyond_found: float | None
    """Mean loss of a hybrid less that of the found one, paired by sequence, and its interval."""
    beyond_low: float | None
    beyond_high: float | None
    sum: float | None
    """Of a pair: what the increases of the two add up to."""
    error: float | None
    """Of a layer: the replacement's mean squared error as a part of the output's mean square."""
    loss: float | None
    sequences: int
    part: float | None
    """A hybrid's cost as a part of the model's own, where there is a budget."""
    seconds: float | None
    state: Literal["done", "failed"]
    reason: str | None


@dataclass(frozen=True)
class Findings:
    """All that is known in a folder.

    Attributes:
        cells: by layer, from 0, and variant; so are heads.
    """

    asked: Asked
    own: Own
    cells: dict[tuple[int, str], Cell]
    heads: dict[tuple[int, str], Heads]
    pairs: Sequence[Pair] = ()
    comparison: Comparison | None = None

    def increase(self, layer: int, variant: str) -> Interval | None:
        """Return the increase of the loss with a variant in a layer's place, paired by sequence."""
        cell = self.cells.get((layer, variant))
        return None if cell is None or cell.losses is None else increase_of(cell.losses, self.own)


def read_findings(folder: SearchFolder, asked: Asked, own: Own) -> Findings:
    """Read the cells that are there."""
    places = [(layer, variant) for layer in range(len(asked.variants)) for variant in asked.request.variants]
    cells = {place: cell for place in places if (cell := folder.cell(*place)) is not None}
    heads = {place: found for place in places if (found := folder.heads(*place)) is not None}
    return Findings(asked, own, cells, heads)


def increase_of(losses: Sequence[float], own: Own) -> Interval:
    """Return the mean increase of held-out losses, paired by sequence."""
    return mean_interval([now - before for now, before in zip(losses, own.held_out, strict=True)])


def rows(findings: Findings) -> Iterator[Row]:
    """Yield all rows: layers, heads, pairs, hybrids."""
    for (layer, variant), cell in findings.cells.items():
        found = findings.increase(layer, variant)
        loss = None if cell.losses is None else sum(cell.losses) / len(cell.losses)
        row = _row("layer", variant, found, loss=loss, layer=layer + 1, error=cell.error, seconds=cell.seconds)
        yield row if cell.reason is None else dataclasses.replace(row, state="failed", reason=cell.reason)
    for (layer, variant), of_heads in findings.heads.items():
        if of_heads.losses is None:
            row = _row("head", variant, None, layer=layer + 1, seconds=of_heads.seconds)
            yield dataclasses.replace(row, state="failed", reason=of_heads.reason)
        for head, losses in enumerate(of_heads.losses or (), start=1):
            found = increase_of(losses, findings.own)
            yield _row("head", variant, found, loss=sum(losses) / len(losses), layer=layer + 1, head=head)
    for pair in findings.pairs:
        lower, upper = pair.layers
        name = " + ".join(pair.variants)
        yield _row("pair", name, pair.both, layer=lower + 1, other_layer=upper + 1, sum=pair.sum)
    if findings.comparison is not None:
        yield from _hybrid_rows(findings, findings.comparison)


def _hybrid_rows(findings: Findings, comparison: Comparison) -> Iterator[Row]:
    best = next(line.losses[0] for line in comparison.lines if line.name == FOUND)
    for line in comparison.lines:
        for assignment, losses in zip(line.assignments, line.losses, strict=True):
            pairs = zip(losses, line.own, strict=True)
            found = mean_interval([now - before for now, before in pairs])
            kept = len(kept_layers(assignment, findings.asked.variants))
            told: dict[str, Any] = {"pattern": as_flag(assignment), "kept": kept, "part": line.part}
            if line.name != FOUND:
                beyond = mean_interval([mine - its for mine, its in zip(losses, best, strict=True)])
                told |= {"beyond_found": beyond.mean, "beyond_low": beyond.low, "beyond_high": beyond.high}
            yield _row("hybrid", line.name, found, loss=sum(losses) / len(losses), **told)


def _row(kind: Kind, name: str, found: Interval | None, **known: Any) -> Row:
    fields: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Row))
    if found is not None:
        fields |= {"increase": found.mean, "low": found.low, "high": found.high}
    fields |= {"kind": kind, "name": name, "sequences": found.count if found else 0, "state": "done", **known}
    return Row(**fields)


def write_results(out: Path, findings: Findings) -> None:
    """Replace the folder's results, each file as a whole."""
    import pyarrow
    import pyarrow.parquet

    told = [dataclasses.asdict(row) for row in rows(findings)]
    asked = json.loads(TypeAdapter(Asked).dump_json(findings.asked))
    content = {"format": FORMAT, **asked, "loss": sum(findings.own.held_out) / len(findings.own.held_out)}
    durable.write_json(out / RESULTS, {**content, "rows": told})
    kinds = {"int": pyarrow.int64(), "float": pyarrow.float64()}
    schema = pyarrow.schema(
        (field.name, next((kind for word, kind in kinds.items() if word in str(field.type)), pyarrow.string()))
        for field in dataclasses.fields(Row)
    )
    partial = out / f".{PARQUET}.partial"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(told, schema=schema), partial)
    durable.sync_file(partial)
    partial.replace(out / PARQUET)
    durable.sync_folder(out)
