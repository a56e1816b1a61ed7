"""Look inside trained models: analyze MODEL... --out DIR.

Attention indicators of every layer and head, the activations before the softmax, and maps to look at:

    analyze runs/standard runs/fixedseq-1to3 --out analysis --maps 1 6

How the entropy of a run's maps changed over its checkpoints:

    analyze runs/fixedseq-1to3 --all-steps --out over-steps
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deconattn.analysis.sample import Sample
from deconattn.cli import parse, show
from deconattn.errors import UserError
from deconattn.extras import require
from deconattn.program import command

if TYPE_CHECKING:
    from torch import Tensor

    from deconattn.analysis.findings import ModelFindings
    from deconattn.checkpoint.stored_model import StoredModel


@dataclass(frozen=True)
class Arguments:
    """Look inside trained models: attention indicators, activations before the softmax, maps.

    Writes pictures, with their data as Parquet and JSON beside them, and prints the indicators' means.
    """

    model: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")]
    """Run folders (their newest good checkpoint), step-N folders, exports, Qwen2 or Qwen3 models."""
    out: Path
    """The folder to write. It appears when everything is in it."""
    sample: Sample = field(default_factory=Sample)
    maps: tuple[int, ...] = ()
    """Layers, counted from 1, whose maps of the first sequence are drawn, a heat map a head."""
    all_steps: bool = False
    """Look into every checkpoint of each run, and draw entropy over training steps."""
    plugin: tuple[Path, ...] = ()
    """Python files that register the variants of third parties that the models have."""
    trust_plugins: bool = False
    """Run the plugins that a run names, which are somebody's code, without being given them."""


def main(words: Sequence[str]) -> None:
    """Read the flags and analyse."""
    analyze(parse(Arguments, words, program=command("analyze")))


def analyze(arguments: Arguments) -> None:
    """Check everything, run each model over the sample, write the folder, and print the means."""
    arguments.sample.check()
    require("plot", "analysis")
    from transformers.utils.logging import disable_progress_bar

    from deconattn.analysis.models import open_models
    from deconattn.analysis.report import check_free, summary_table, write_report
    from deconattn.analysis.tokens import read_sample

    disable_progress_bar()
    check_free(arguments.out)
    models = open_models(arguments.model, arguments.all_steps, arguments.plugin, arguments.trust_plugins)
    depth = max(stored.model_config.num_hidden_layers for stored in models)
    for layer in arguments.maps:
        if not 1 <= layer <= depth:
            raise UserError(f"--maps {layer}: there are layers 1 to {depth}")
    ids = read_sample(arguments.sample, models)
    found = [
        look_into(stored, tokens, arguments.maps, f"{place} of {len(models)}")
        for place, (stored, tokens) in enumerate(zip(models, ids, strict=True), start=1)
    ]
    sequences, length = ids[0].shape
    sample = {"source": arguments.sample.source, "sequences": sequences, "seq_len": length}
    write_report(found, sample, arguments.out)
    show(summary_table(found))
    print(f"{sequences} sequences of {length} tokens of {sample['source']}; written: {arguments.out}")


def look_into(stored: "StoredModel", ids: "Tensor", maps: tuple[int, ...], place: str) -> "ModelFindings":
    """Run one model over its tokens, int64 [N, L], telling a terminal how far it is."""
    from deconattn.analysis.collect import collect
    from deconattn.analysis.findings import ModelFindings
    from deconattn.checkpoint.manifest import step_of
    from deconattn.checkpoint.stored_model import run_of

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{escape(stored.label)} ({place})", total=len(ids))
        layers = collect(
            stored.decoder(),
            ids,
            stored.label,
            pictured=[layer - 1 for layer in maps],
            advance=lambda sequences: progress.advance(task, sequences),
        )
    run = run_of(stored.path)
    step = None if run is None else step_of(stored.path.resolve())
    name = None if run is None else stored.label.rpartition("/")[0]
    return ModelFindings(stored.label, str(stored.path), name, step, layers)
