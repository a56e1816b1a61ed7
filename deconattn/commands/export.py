"""Write a run or a checkpoint as a Hugging Face folder: export RUN_OR_CHECKPOINT OUT."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from deconattn.cli import parse
from deconattn.extras import require
from deconattn.program import command


@dataclass(frozen=True)
class Arguments:
    """Export a trained model for AutoModelForCausalLM.from_pretrained."""

    source: Annotated[Path, tyro.conf.Positional]
    """A run folder (its newest good checkpoint) or one of its step-N folders."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder to write."""
    dtype: Literal["fp32", "bf16"] | None = None
    """Precision of the stored weights; by default what the run computed in."""
    tokenizer: bool = True
    """Carry the tokenizer along."""
    gguf: bool = False
    """Write model.gguf for llama.cpp too: models that are standard throughout, with a byte-level BPE."""
    license: str | None = None
    """The weights' licence as the Hub names it (apache-2.0, mit, ...), for the card."""
    language: tuple[str, ...] = ()
    """Languages of the text by their codes (en, cs, ...), for the card."""
    plugin: tuple[Path, ...] = ()
    """Python files that register the run's third-party variants, in the place of those it was trained with."""
    trust_plugins: bool = False
    """Run the plugins that a run names, which are somebody's code, without being given them."""
    overwrite: bool = False
    """Replace an earlier export."""


def main(words: Sequence[str]) -> None:
    """Read the flags and export."""
    export_checkpoint(parse(Arguments, words, program=command("export")))


def export_checkpoint(arguments: Arguments) -> None:
    """Open, export, and say where it is."""
    import torch

    from deconattn.checkpoint.format import open_checkpoint
    from deconattn.hf.export import export
    from deconattn.hf.gguf_file import gguf_vocabulary
    from deconattn.hf.model_card import Provenance

    if arguments.gguf:
        require("gguf", "--gguf")
    checkpoint = open_checkpoint(arguments.source).with_plugins(arguments.plugin, arguments.trust_plugins)
    precision = arguments.dtype or checkpoint.precision
    tokenizer_folder = checkpoint.tokenizer_folder if arguments.tokenizer else None
    if arguments.tokenizer and tokenizer_folder is None:
        print(f"note: {checkpoint.folder} has no tokenizer, and so the export has none", file=sys.stderr)
    vocabulary = gguf_vocabulary(checkpoint.model_config, tokenizer_folder) if arguments.gguf else None
    export(
        checkpoint.weights(),
        checkpoint.model_config,
        arguments.out,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        tokenizer_folder=tokenizer_folder,
        plugins=checkpoint.plugins,
        provenance=Provenance(
            checkpoint.step,
            checkpoint.datasets,
            checkpoint.origin.get("base_model"),
            arguments.license,
            arguments.language,
        ),
        kept=checkpoint.origin.get("kept", {}),
        overwrite=arguments.overwrite,
        gguf=vocabulary,
    )
    for note in vocabulary.notes if vocabulary else ():
        print(f"note: model.gguf: {note}", file=sys.stderr)
    print(f"step {checkpoint.step} of {checkpoint.folder} -> {arguments.out} ({precision})")
