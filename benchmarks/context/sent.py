"""What ranks that share sequences send, by mixer and length: predicted, counted in dry runs, tabulated and drawn.

    python benchmarks/context/sent.py

A byte a token and layer is what a rank sends in forward and backward pass of one layer, over the tokens of its part,
in a model that has the mixer in every layer. Prediction and count must be equal. No GPU is needed, minutes on a core.
The table goes into docs/context.md between its marks.
"""

import dataclasses
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.machine import RESULTS, ROOT, markdown_table, write_result
from benchmarks.plots.section import with_section
from deconattn.cli import parse, run
from deconattn.config.flag_groups import EngineFlags
from deconattn.config.flags import TrainingFlags, model_config
from deconattn.config.presets import size_defaults
from deconattn.cost.communication import stage_traffic
from deconattn.cost.job import Job
from deconattn.dry_run.ranks import dry_run
from deconattn.errors import UserError
from deconattn.mixers import mixer_class, variant_names
from deconattn.mixers.exchange import ContextExchange, exchange_of
from deconattn.pages.palette import STYLE, variant_colour

BEGIN, END = "<!-- bytes sent: made by python benchmarks/context/sent.py -->", "<!-- end of bytes sent -->"
LAYERS, MICRO_BATCHES, VOCABULARY = 2, 8, 50277
"""Of the jobs: one sequence in each micro-batch."""


@dataclass(frozen=True)
class Arguments:
    """Tabulate and draw what ranks that share sequences send."""

    size: str = "1.7b"
    """Preset of the widths."""
    cp: int = 8
    """Ranks that share each sequence."""
    lengths: tuple[int, ...] = tuple(2**power for power in range(11, 21))
    """Tokens of a sequence."""
    counted: tuple[int, ...] = (4096, 65536)
    """Of those, the lengths that are counted too."""
    page: Path = ROOT / "docs" / "context.md"
    """Page with the marks that the table goes between."""
    picture: Path = ROOT / "docs" / "images" / "context-sent.svg"
    out: Path = RESULTS / "context_sent-1.7b.json"


def main() -> None:
    """Predict and count, and write JSON, page and picture.

    Raises:
        UserError: what was counted is not what was predicted.
    """
    arguments = parse(Arguments)
    found = [of_variant(variant, arguments) for variant in variant_names()]
    options = {"size": arguments.size, "cp": arguments.cp, "layers": LAYERS, "micro_batches": MICRO_BATCHES}
    write_result(arguments.out, {"options": options, "results": found})
    draw(found, arguments)
    text = table(found, arguments.counted)
    page = with_section(arguments.page.read_text(encoding="utf-8"), text, BEGIN, END)
    arguments.page.write_text(page, encoding="utf-8")
    print(text)
    wrong = [row["variant"] for row in found if not row["counted"].items() <= row["sent"].items()]
    if wrong:
        raise UserError(f"counted is not what was predicted, of {', '.join(wrong)}: see {arguments.out}")


def of_variant(variant: str, arguments: Arguments) -> dict[str, Any]:
    """What a rank sends with a mixer in every layer: bytes a token and layer by length, predicted and counted."""
    sent: dict[int, float] = {}
    counted: dict[int, float] = {}
    for length in arguments.lengths:
        flags = flags_of(variant, length, arguments)
        model = model_config(flags.model, VOCABULARY, length)
        tokens = MICRO_BATCHES * length // arguments.cp * LAYERS
        sent[length] = stage_traffic(Job.of(model, flags, arguments.cp), 0).context / tokens
        if length in arguments.counted:
            (report,) = dry_run(model, flags, arguments.cp, 80.0, [0])
            if report.refusal is not None:
                raise UserError(f"{variant} at {length} tokens: {report.refusal}")
            counted[length] = report.sent("context") / tokens
            print(
                f"{variant} at {length:,} tokens: {sent[length]:,.1f} predicted, {counted[length]:,.1f} counted",
                flush=True,
            )
    return {"variant": variant, "exchange": summary(variant), "sent": sent, "counted": counted}


def flags_of(variant: str, length: int, arguments: Arguments) -> TrainingFlags:
    """Flags of a training in which `cp` ranks share each sequence."""
    flags = size_defaults(arguments.size)
    return dataclasses.replace(
        flags,
        model=dataclasses.replace(flags.model, variant=variant, pattern="uniform", num_hidden_layers=LAYERS),
        data=dataclasses.replace(flags.data, seq_len=length),
        optimization=dataclasses.replace(flags.optimization, global_batch_size=MICRO_BATCHES, micro_batch_size=1),
        engine=EngineFlags(precision="bf16", cp=arguments.cp, zero=1),
    )


def summary(variant: str) -> str:
    """The first sentence of what a variant's exchange says of itself."""
    kind = type(exchange_of(mixer_class(variant)))
    said = inspect.getdoc(kind) or inspect.getdoc(ContextExchange) or ""
    return " ".join(said.split("\n\n")[0].split())


def table(found: Sequence[dict[str, Any]], shown: Sequence[int]) -> str:
    """Return the Markdown table, with the lengths that were counted and the longest."""
    lengths = [*shown, max(found[0]["sent"])]
    rows = [
        [f"`{row['variant']}`", *(f"{row['sent'][length]:,.0f}" for length in lengths), row["exchange"]]
        for row in found
    ]
    return markdown_table(["mixer", *(f"{length:,}" for length in lengths), "what crosses"], rows).rstrip()


def draw(found: Sequence[dict[str, Any]], arguments: Arguments) -> None:
    """Draw bytes a token and layer by length, both axes logarithmic; circles were counted."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 4.2), layout="constrained")
        axes = figure.subplots()
        alike: dict[tuple[float, ...], list[str]] = {}
        for row in found:
            alike.setdefault(tuple(row["sent"].values()), []).append(row["variant"])
        for row in found:
            names = alike[tuple(row["sent"].values())]
            if names[0] != row["variant"]:
                continue  # another mixer's line lies there
            colour, sent = variant_colour(row["variant"]), row["sent"]
            axes.plot(list(sent), list(sent.values()), color=colour, label=", ".join(names))
            axes.plot(list(row["counted"]), list(row["counted"].values()), "o", color=colour)
        axes.set_xscale("log", base=2)
        axes.set_yscale("symlog", linthresh=0.1)  # `mlp` sends nothing
        axes.set_ylim(0, 2 * max(max(row["sent"].values()) for row in found))
        axes.set_xticks(list(arguments.lengths)[::2], [f"{length:,}" for length in arguments.lengths[::2]])
        axes.set_xlabel("tokens of a sequence")
        axes.set_ylabel("bytes sent, a token and layer")
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
        figure.savefig(arguments.picture, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    run(main)
