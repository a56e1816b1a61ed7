"""Look inside trained models: analyze MODEL... --out DIR.

Attention indicators of every layer and head, the activations before the softmax, induction heads, loss by position,
and maps to look at:

    analyze runs/standard runs/fixedseq-1to3 --out analysis --maps 1 6

What each mixer and each head is worth, and how far the maps of layers and models agree:

    analyze runs/standard runs/fixedseq-1to3 --out mechanisms --measure ablation heads agreement

How the entropy of a run's maps changed over its checkpoints:

    analyze runs/fixedseq-1to3 --all-steps --out over-steps
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from deconattn.analysis.sample import Sample
from deconattn.cli import parse, show
from deconattn.errors import UserError
from deconattn.extras import require
from deconattn.program import command
from deconattn.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from deconattn.analysis.agreement import Agreement
    from deconattn.analysis.findings import ModelFindings
    from deconattn.checkpoint.stored_model import StoredModel

Measure = Literal["indicators", "induction", "position", "ablation", "heads", "agreement"]


@dataclass(frozen=True)
class Arguments:
    """Look inside trained models: attention indicators, activations before the softmax, mechanisms, maps.

    Writes pictures, with their data as Parquet and JSON beside them, and tables, which it prints.
    """

    model: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL...")]
    """Run folders (their newest good checkpoint), step-N folders, exports, models of Llama's kind."""
    out: Path
    """The folder to write. It appears when everything is in it."""
    sample: Sample = field(default_factory=Sample)
    measure: tuple[Measure, ...] = ("indicators", "induction", "position")
    """Indicators; induction and previous-token scores of heads; loss by position in the context and in-context
    learning; ablation of each mixer (3 passes a layer) or of heads (2 a head); agreement of maps between layers and
    models, which are then in memory together."""
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
    from deconattn.analysis.models import open_models
    from deconattn.analysis.report import check_free, printed, summary_tables, write_report
    from deconattn.analysis.tokens import read_sample

    check_free(arguments.out)
    if arguments.maps and "indicators" not in arguments.measure:
        raise UserError("--maps are drawn along with the indicators: add indicators to --measure")
    models = open_models(arguments.model, arguments.all_steps, arguments.plugin, arguments.trust_plugins)
    depth = max(stored.model_config.num_hidden_layers for stored in models)
    for layer in arguments.maps:
        if not 1 <= layer <= depth:
            raise UserError(f"--maps {layer}: there are layers 1 to {depth}")
    ids = read_sample(arguments.sample, models)
    if "agreement" in arguments.measure:
        _check_one_tokenizer(models, ids)
    found = [
        look_into(stored, tokens, arguments, f"{stored.label} ({place} of {len(models)})")
        for place, (stored, tokens) in enumerate(zip(models, ids, strict=True), start=1)
    ]
    agreement = _agreement(models, found, ids[0]) if "agreement" in arguments.measure else None
    sequences, length = ids[0].shape
    sample = {"source": arguments.sample.source, "sequences": sequences, "seq_len": length}
    write_report(found, sample, arguments.out, agreement)
    for title, cells in summary_tables(found, agreement):
        show(printed(title, cells))
    print(f"{sequences} sequences of {length} tokens of {sample['source']}; written: {arguments.out}")


def look_into(stored: "StoredModel", ids: "Tensor", arguments: Arguments, name: str) -> "ModelFindings":
    """Run one model over its tokens, int64 [N, L], once for each thing to measure."""
    from deconattn.analysis.ablation import ablate
    from deconattn.analysis.collect import LayerFindings, collect
    from deconattn.analysis.findings import ModelFindings
    from deconattn.analysis.induction import induction, repeated_tokens
    from deconattn.analysis.losses import position_losses
    from deconattn.checkpoint.manifest import step_of
    from deconattn.checkpoint.stored_model import run_of

    measure, label, variants = arguments.measure, stored.label, stored.model_config.layer_variants
    layers = [LayerFindings(variant, None, None, None) for variant in variants]
    heads = position = ablations = None
    if set(measure) - {"agreement"}:
        decoder, head = stored.decoder_and_head()
        if "indicators" in measure:
            pictured = [layer - 1 for layer in arguments.maps]
            with progress_bar(f"{name}: indicators", len(ids), "sequences") as advance:
                layers = collect(decoder, ids, label, pictured, advance)
        if "induction" in measure:
            special = set(stored.tokenizer.all_special_ids)
            words = set(range(min(len(stored.tokenizer), stored.model_config.vocab_size))) - special
            repeated = repeated_tokens(len(ids), ids.shape[1], words)
            with progress_bar(f"{name}: induction", len(ids), "sequences") as advance:
                heads = induction(decoder, head, repeated, label, advance)
        if "position" in measure:
            with progress_bar(f"{name}: position", len(ids), "sequences") as advance:
                position = position_losses(decoder, head, ids, label, advance)
        if {"ablation", "heads"} & set(measure):
            with progress_bar(f"{name}: ablation", len(ids), "sequences") as advance:
                ablations = ablate(decoder, head, ids, label, "ablation" in measure, "heads" in measure, advance)
    run = run_of(stored.path)
    step = None if run is None else step_of(stored.path.resolve())
    home = None if run is None else label.rpartition("/")[0]
    return ModelFindings(label, str(stored.path), home, step, layers, heads, position, ablations)


def _agreement(models: "Sequence[StoredModel]", found: "Sequence[ModelFindings]", ids: "Tensor") -> "Agreement":
    """Agreement of the maps of each run's last step, and of models of no run."""
    from deconattn.analysis.agreement import agreement
    from deconattn.analysis.findings import newest

    labels = {one.label for one in newest(found)}
    decoders = [stored.decoder() for stored in models if stored.label in labels]
    with progress_bar("agreement", len(ids), "sequences") as advance:
        return agreement(decoders, ids, advance)


def _check_one_tokenizer(models: "Sequence[StoredModel]", ids: "Sequence[Tensor]") -> None:
    for stored, tokens in zip(models, ids, strict=True):
        if not tokens.equal(ids[0]):
            raise UserError(
                f"{stored.path} reads the text as other tokens than {models[0].path}, and agreement is of maps of the "
                "same tokens: leave it out of --measure, or give models of one tokenizer"
            )
