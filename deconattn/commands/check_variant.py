"""Try a third party's variant on what the contract of a mixer promises: check-variant FILE."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from deconattn.cli import parse
from deconattn.errors import UserError
from deconattn.program import command

DIMENSIONS: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "head_dim": 16,
}
HEADS: dict[str, dict[str, Any]] = {
    "4 heads": {"num_key_value_heads": 4},
    "4 heads, 2 of keys and values": {"num_key_value_heads": 2},
    "4 heads, 2 of keys and values, QK norm, no bias": {
        "num_key_value_heads": 2,
        "qk_norm": True,
        "attention_bias": False,
    },
}


@dataclass(frozen=True)
class Arguments:
    """Try a variant: causality, gradients, decoding, parameters, and its parts under tensor parallelism.

    A training tries the same, at its own sizes, before it starts.
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A Python file that registers variants, as --plugin takes it."""


def main(words: Sequence[str]) -> None:
    """Read the flags and try what the file registers."""
    check(parse(Arguments, words, program=command("check-variant")))


def check(arguments: Arguments) -> None:
    """Try each variant of the file in several layouts of heads, whole and in parts.

    Raises:
        UserError: the first promise that is not kept.
    """
    from deconattn.layers.config import ModelConfig
    from deconattn.mixers import mixer_class, variant_names
    from deconattn.mixers.plugins import code_digest, load_plugins, mixer_digest, plugin_files
    from deconattn.mixers.registry import zoo_name
    from deconattn.parallel.trial import Trial

    if not arguments.file.is_file():
        raise UserError(f"no such file: {arguments.file}")
    if shipped := zoo_name(arguments.file):
        found = [shipped]
    else:
        load_plugins([arguments.file])
        digest = code_digest(arguments.file)
        found = [variant for variant in plugin_files(variant_names()) if mixer_digest(variant) == digest]
    if not found:
        raise UserError(f"{arguments.file} registers no variant: decorate a Mixer with deconattn.mixers.register")
    for variant in found:
        for name, heads in HEADS.items():
            config = ModelConfig(
                **DIMENSIONS,
                **heads,
                num_attention_heads=4,
                max_position_embeddings=64,
                layer_variants=(variant,),
            )
            tp_size = 1 if mixer_class(variant).splits is None else 2
            trial = Trial(variant, config, tp_size)
            print(f"{variant}, {name}: {', '.join(trial.run())}")
            print(f"    {trial.figures()}")
        try:
            Trial(variant, config, doc_mask=True).run()
        except UserError as error:
            print(error)
        if mixer_class(variant).splits is None:
            print(f"{variant} declares no splits: it trains with --tp 1 alone")
