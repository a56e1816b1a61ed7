"""Tables of the prediction."""

from collections.abc import Sequence
from typing import Any

from benchmarks.machine import markdown_table
from benchmarks.roofline.prediction import MODES
from benchmarks.roofline.works import PARTS

SHOWN = "H100"
"""The card whose steps are told of in full."""
PLAIN = (
    "A prediction, not a measurement: made without a GPU, from the launches, bytes and FLOPs of a traced step "
    "([counting.py](../roofline/counting.py)) and published rates ([cards.py](../../deconattn/cost/cards.py))."
)
Rows = Sequence[dict[str, Any]]


def markdown(rows: Rows, options: dict[str, Any]) -> str:
    """Return the result as a page: every size, mode and variant, before and after."""
    heading = f"{PLAIN} A step is {what(options)}."
    parts = [heading]
    for size in dict.fromkeys(row["size"] for row in rows):
        for mode in MODES:
            some = [row for row in rows if row["size"] == size and row["mode"] == mode]
            if some:
                parts.append(f"## {size}, {mode}\n\nA step on an {SHOWN}:\n\n{steps_table(some)}")
                parts.append(f"MFU by card:\n\n{cards_table(some)}")
                parts.append(f"Milliseconds of an {SHOWN} by part of the step:\n\n{parts_table(some)}")
    return "\n\n".join(parts)


def what(options: dict[str, Any]) -> str:
    """What a step is, in words."""
    return (
        f"{options['micro_batches']} micro-batches of {options['micro_batch_size']} x {options['seq_len']} tokens and "
        "the update, bf16 under ZeRO-1 on one card"
    )


def steps_table(rows: Rows) -> str:
    """A row a variant: launches and traffic of a micro-batch, milliseconds and MFU of a step."""
    columns = ["variant", "launches a micro-batch", "GB a micro-batch", "ms a step", "host's ms", "MFU", "MFU at best"]
    table = []
    for variant, sides in _by_variant(rows):
        counts = [_micro_batch(row["counted"]) for row in sides]
        on = [row["predicted"][SHOWN] for row in sides]
        table.append([
            variant, _then(f"{launches:,.0f}" for launches, _ in counts), _then(f"{moved:.0f}" for _, moved in counts),
            _then(f"{one['expected']:,.0f}" for one in on), _then(f"{one['host']:,.0f}" for one in on),
            _then(f"{one['mfu']:.0%}" for one in on), _then(f"{one['best_mfu']:.0%}" for one in on),
        ])  # fmt: skip
    return markdown_table(columns, table)


def cards_table(rows: Rows) -> str:
    """A row a variant, a column a card: MFU."""
    cards = list(rows[0]["predicted"])
    table = [
        [variant, *(_then(f"{row['predicted'][card]['mfu']:.0%}" for row in sides) for card in cards)]
        for variant, sides in _by_variant(rows)
    ]
    return markdown_table(["variant", *cards], table)


def parts_table(rows: Rows) -> str:
    """A row a part of the step, a column a variant: milliseconds of the device."""
    every = _by_variant(rows)
    table = [
        [part, *(_then(f"{row['predicted'][SHOWN]['parts'][part]:,.1f}" for row in sides) for _, sides in every)]
        for part in PARTS
    ]
    return markdown_table(["part", *(variant for variant, _ in every)], table)


def _by_variant(rows: Rows) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of each variant, `before` first."""
    names = dict.fromkeys(row["variant"] for row in rows)
    key = {"before": 0, "after": 1}
    return [(n, sorted((r for r in rows if r["variant"] == n), key=lambda row: key[row["side"]])) for n in names]


def _micro_batch(counted: dict[str, Any]) -> tuple[float, float]:
    """Launches and gigabytes of a micro-batch, the mean over a step's."""
    parts = [value for name, value in counted.items() if name != "update"]
    return sum(part["launches"] for part in parts), sum(part["gigabytes"] for part in parts)


def _then(values: Any) -> str:
    """Before and after, or the only one there is."""
    return " → ".join(values)
