"""Write a run or a checkpoint as a Hugging Face folder: python tools/export_hf.py RUN_OR_CHECKPOINT OUT."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deconattn.cli import parse, run


@dataclass(frozen=True)
class Arguments:
    """Export a trained model for AutoModelForCausalLM.from_pretrained."""

    source: Annotated[Path, tyro.conf.Positional]
    """A run folder (its newest good checkpoint) or one of its step-N folders."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder to write."""
    dtype: Literal["fp32", "bf16"] | None = None
    """What the weights are stored in; by default what the run computed in."""
    tokenizer: bool = True
    """Carry the tokenizer along."""
    gguf: bool = False
    """Write model.gguf for llama.cpp too: models that are standard throughout, with a byte-level BPE."""
    overwrite: bool = False
    """Replace an earlier export."""


def export_checkpoint(arguments: Arguments) -> None:
    """Open, export, and say where it is."""
    import torch

    from deconattn.hf.export import export
    from deconattn.hf.gguf_file import gguf_vocabulary, require_gguf
    from deconattn.train.checkpoint import open_checkpoint

    if arguments.gguf:
        require_gguf()
    checkpoint = open_checkpoint(arguments.source)
    precision = arguments.dtype or checkpoint.precision
    tokenizer_folder = checkpoint.tokenizer_folder if arguments.tokenizer else None
    vocabulary = gguf_vocabulary(checkpoint.model_config, tokenizer_folder) if arguments.gguf else None
    export(
        checkpoint.weights(),
        checkpoint.model_config,
        arguments.out,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        tokenizer_folder=tokenizer_folder,
        plugins=checkpoint.plugins,
        step=checkpoint.step,
        overwrite=arguments.overwrite,
        gguf=vocabulary,
    )
    for note in vocabulary.notes if vocabulary else ():
        print(f"note: model.gguf: {note}", file=sys.stderr)
    print(f"step {checkpoint.step} of {checkpoint.folder} -> {arguments.out} ({precision})")


if __name__ == "__main__":
    run(lambda: export_checkpoint(parse(Arguments)))
